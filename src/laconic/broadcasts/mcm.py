"""MCM: the server keeps its exact model, and the workers a compressed one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from laconic.core.broadcast import Broadcast
from laconic.core.compressor import Compressor, as_unbiased
from laconic.core.entry import Interval, Source
from laconic.core.estimator import Estimator
from laconic.core.link import Cohort, Link
from laconic.core.mechanism import Mechanism
from laconic.core.rows import square
from laconic.core.state import Shared
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known
from laconic.mechanisms.diana import DIANA, noise_of
from laconic.mechanisms.direct import Direct
from laconic.mechanisms.ef21 import three_point


@dataclass
class Memory:
    """What MCM keeps."""

    shift: Shared  # H, (*shape)


@dataclass(frozen=True)
class MCM(Broadcast):
    """The server sends C(x - H); workers evaluate at H + C(x - H), and H learns: H <- H + a C(x - H). H^0 = x^0.

    Guarantee for gradient descent without compression on the way up, with omega of C and a <= 1 / (1 + omega), smooth f
    (derived; worse in omega than the paper's order): the theorem of three-point compressors with spread L, A = a / 2
    and B = omega (1 + 2 / a), so under PL step <= min(1 / (L + L sqrt(2 B / A)), A / (2 mu)), and
    f(x+) - f* + (step omega L^2 / A) ||x+ - H||^2 contracts in expectation by 1 - step mu; x+ is the next model, which
    goes with the H of now. Proof: E||x^ - x||^2 <= omega ||x - H||^2 for the workers' x^, and ||x - H||^2 shrinks by
    1 - a in expectation before x moves. With DIANA on the way up, provisional and only tried: the least of DIANA's step
    and 1 / (8 omega L (1 + omega_up / n)).

    Parameters
    ----------
    compressor : unbiased.
    rate : a of H; None is 1 / (2 (1 + omega)), that of the authors' code.

    >>> from laconic.compressors.natural import Natural
    >>> str(MCM(Natural()))
    'mcm(natural)'
    """

    compressor: Compressor
    rate: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None

    name = "mcm"
    example = "mcm(natural)"
    source: ClassVar[Source] = Source(
        "Philippenko, Dieuleveut",
        2021,
        "Preserved central model for faster bidirectional compression in distributed settings",
        "2102.12528",
        "with constants derived anew",
    )

    def init(self, x: Tensor, link: Link) -> Memory:
        return Memory(x)

    async def send(
        self, x: Tensor, memory: Memory, link: Link, to: Cohort | None = None
    ) -> tuple[Tensor, Tensor, Memory]:
        a = self.rate
        if a is None:
            raise ValueError(f"{self} has no rate for its memory; use settled(), or give rate=")
        change = await link.broadcast(x - memory.shift, self.compressor, to)
        return x, memory.shift + change, Memory(memory.shift + a * change)

    def settled(self, setting: Setting) -> MCM:
        if self.rate is not None:
            return self
        return dataclasses.replace(self, rate=0.5 / (1.0 + self._omega(setting)))

    def _omega(self, setting: Setting) -> float:
        omega = as_unbiased(self.compressor.claim(setting.d, setting.n))
        if omega is None:
            raise NoTheorem(
                f"the theorem of {self} needs an unbiased compressor and {self.compressor} is not known to be one; "
                "give explicit rate and step, or use ef21_p"
            )
        return omega

    def guarantee(self, setting: Setting, mechanism: Mechanism, estimator: Estimator, step: float | None) -> Guarantee:
        omega = self._omega(setting)
        a = self.rate if self.rate is not None else 0.5 / (1.0 + omega)
        if omega == 0.0:
            return mechanism.guarantee(setting, estimator, step)
        most = 1.0 / (1.0 + omega)
        if a > most + 1e-12:
            raise NoTheorem(f"the theorem of {self} needs rate <= 1 / (1 + omega) = {most:.6g}; give an explicit step")
        if not estimator.exact:
            raise NoTheorem(f"the theorem of {self} is about full gradients, not {estimator}; give an explicit step")
        if isinstance(mechanism, Direct) and as_unbiased(mechanism.compressor.claim(setting.d, setting.n)) == 0.0:
            return self._exact(setting, omega, a, step)
        if isinstance(mechanism, DIANA):
            return self._diana(setting, mechanism, estimator, omega)
        raise NoTheorem(
            f"no theorem is known for {mechanism} with {self} on the way down; give an explicit step, or use "
            "direct(identity) or diana on the way up"
        )

    def _exact(self, setting: Setting, omega: float, a: float, step: float | None) -> Guarantee:
        c, shrinks = setting.constants, a / 2.0
        (smooth,) = known(L=c.L)
        leans = estimates(L=c.L, mu=c.polyak)
        promise = three_point(self.source, setting, smooth, shrinks, omega * (1.0 + 2.0 / a), step, leans)
        used = promise.step if step is None else step

        def lyapunov(snapshot: Snapshot) -> Terms:
            ahead = snapshot.x - used * snapshot.state.estimate
            values = snapshot.oracles.values(ahead) - snapshot.solution.value
            apart = square(ahead - snapshot.state.told.shift)
            return Terms(used * omega * smooth**2 / shrinks * apart, values)

        assumes = tuple(words.replace("f and f_i smooth", "f smooth") for words in promise.assumes)
        return dataclasses.replace(promise, lyapunov=promise.lyapunov and lyapunov, assumes=assumes, gap_factor=None)

    def _diana(self, setting: Setting, mechanism: DIANA, estimator: Estimator, omega: float) -> Guarantee:
        up, c = mechanism.guarantee(setting, estimator, None), setting.constants
        (smooth,) = known(L=c.L)
        noise = noise_of(mechanism, mechanism.compressor, setting)
        largest = min(up.step, 1.0 / (8.0 * omega * smooth * (1.0 + noise.omega / setting.n)))
        return Guarantee(
            largest,
            dataclasses.replace(self.source, where="step provisional"),
            assumes=(*up.assumes, "the step is provisional: it was tried, not proved"),
            sure=False,
            leans_on=up.leans_on,
        )
