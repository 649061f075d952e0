"""DORE: the model's residual goes down, with error feedback, and the server steps from what the workers hold."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from laconic.core.broadcast import Broadcast
from laconic.core.compressor import Compressor, as_contractive, as_unbiased
from laconic.core.entry import Interval, Source
from laconic.core.estimator import Estimator
from laconic.core.link import Cohort, Link
from laconic.core.mechanism import Mechanism
from laconic.core.state import Server, Shared
from laconic.core.theory import Guarantee, NoTheorem, Setting
from laconic.mechanisms.diana import DIANA, noise_of, shifted


@dataclass
class Memory:
    """What DORE keeps."""

    model: Shared  # x^, (*shape)
    error: Server  # e, (*shape)


@dataclass(frozen=True)
class DORE(Broadcast):
    """q = x - x^ + feedback e; the server sends C(q) and keeps e = q - C(q); everyone adds rate C(q) to the model x^.

    The server's next step starts from x^, so that nobody holds another model; gd(diana(Q), down=dore(C)) is DORE. With
    feedback = rate = 1 and any contractive C, x^ + e moves as the uncompressed model would.

    Guarantee with DIANA on the way up, feedback = 0 and rate = 1 / (1 + omega_down) (derived): x^ then moves by a
    compressed step times the rate, and E||C(q)||^2 <= (1 + omega_down) ||q||^2, so that DIANA's own stepsize holds,
    and x^ converges at the rate max(1 - step mu / (1 + omega_down), 1 - a / 2) (the Lyapunov function of `artemis`).
    The paper's conditions for feedback > 0 were not re-read.

    Parameters
    ----------
    compressor : unbiased, or contractive.
    feedback : eta >= 0 of the error; None is 1 for contractive compressors that claim no omega, else 1 / (1 + omega),
        which keeps the error's second moment bounded (omega feedback^2 < 1).
    rate : beta of the model; None is 1 for contractive compressors that claim no omega, else 1 / (1 + omega).

    >>> from laconic.compressors.natural import Natural
    >>> str(DORE(Natural()))
    'dore(natural)'
    """

    compressor: Compressor
    feedback: Annotated[float | None, Interval(0.0, 1.0)] = None
    rate: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None

    name = "dore"
    example = "dore(natural)"
    source: ClassVar[Source] = Source(
        "Liu, Li, Tang, Yan",
        2019,
        "A double residual compression algorithm for efficient distributed learning",
        "1910.07561",
        "Algorithm 1; constants derived anew",
    )

    def init(self, x: Tensor, link: Link) -> Memory:
        return Memory(x, x.new_zeros(x.shape))

    async def send(
        self, x: Tensor, memory: Memory, link: Link, to: Cohort | None = None
    ) -> tuple[Tensor, Tensor, Memory]:
        if self.feedback is None or self.rate is None:
            raise ValueError(f"{self} has no feedback or rate; use settled(), or give feedback= and rate=")
        residual = x - memory.model + self.feedback * memory.error
        sent = await link.broadcast(residual, self.compressor, to)
        model = memory.model + self.rate * sent
        return model, model, Memory(model, residual - sent)

    def settled(self, setting: Setting) -> DORE:
        own = self._scale(setting) if self.feedback is None or self.rate is None else 1.0
        return dataclasses.replace(
            self,
            feedback=own if self.feedback is None else self.feedback,
            rate=own if self.rate is None else self.rate,
        )

    def _scale(self, setting: Setting) -> float:
        claim = self.compressor.claim(setting.d, setting.n)
        omega = as_unbiased(claim)
        if omega is None and as_contractive(claim) is None:
            raise NoTheorem(f"{self.compressor} claims nothing, so {self} has no parameters; give feedback and rate")
        return 1.0 if omega is None else 1.0 / (1.0 + omega)

    def guarantee(self, setting: Setting, mechanism: Mechanism, estimator: Estimator, step: float | None) -> Guarantee:
        omega = as_unbiased(self.compressor.claim(setting.d, setting.n))
        if omega == 0.0 and self.rate in (None, 1.0):
            return mechanism.guarantee(setting, estimator, step)
        if not (isinstance(mechanism, DIANA) and estimator.exact and omega is not None and self.feedback == 0.0):
            raise NoTheorem(
                f"no theorem is known for {mechanism} with {self} on the way down: one is for diana with full "
                "gradients, an unbiased compressor and feedback=0.0; give an explicit step"
            )
        beta = 1.0 / (1.0 + omega) if self.rate is None else self.rate
        most = 1.0 / (1.0 + omega)
        if beta > most + 1e-12:
            raise NoTheorem(f"the theorem of {self} needs rate <= 1 / (1 + omega) = {most:.6g}; give an explicit step")
        up = mechanism.guarantee(setting, estimator, None)
        noise, a = noise_of(mechanism, mechanism.compressor, setting), mechanism.settled(setting).rate
        assert a is not None
        inner = shifted(self.source, setting, noise, a, beta * (up.step if step is None else step), down=omega)
        return dataclasses.replace(inner, step=up.step, lyapunov=None, gap_factor=None)
