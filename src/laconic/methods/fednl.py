"""FedNL: Newton's method with learned, compressed Hessians; all workers or cohorts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.core.compressor import Compressor, as_contractive, as_unbiased
from laconic.core.entry import Count, Interval, Source
from laconic.core.flight import together
from laconic.core.link import Link
from laconic.core.method import Method, number
from laconic.core.problem import Oracles
from laconic.core.rows import norm2, solve, svec_to_matrix
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting, estimates, known

_SOURCE = Source(
    "Safaryan, Islamov, Qian, Richtarik",
    2021,
    "FedNL: making Newton-type methods applicable to federated learning",
    "2106.02969",
)


def _learning_rate(method: FedNL | FedNLPP, setting: Setting) -> float:
    """1 for a contractive compressor, 1 / (1 + omega) for an unbiased one."""
    if method.learning_rate is not None:
        return method.learning_rate
    size = setting.d * (setting.d + 1) // 2
    claim = method.compressor.claim(size, setting.n)
    omega = as_unbiased(claim)
    if omega:
        return 1.0 / (1.0 + omega)
    if as_contractive(claim) is None:
        raise NoTheorem(f"{method.compressor} claims nothing, so fednl has no learning rate for it; give learning_rate")
    return 1.0


def _guarantee(setting: Setting, where: str) -> Guarantee:
    c = setting.constants
    known(mu=c.mu)
    source = dataclasses.replace(_SOURCE, where=where)
    return Guarantee(
        1.0,
        source,
        assumes=(
            "f strongly convex near x*",
            "Lipschitz Hessians",
            "local: x^0 and H_i^0 close to x* and its "
            "Hessians; then ||x_k - x*||^2 <= 2^-k ||x_0 - x*||^2, and superlinear",
        ),
        sure=False,
        leans_on=estimates(mu=c.mu),
    )


def _newton(hessian: Tensor, shift: Tensor, vector: Tensor) -> Tensor:
    """(H + l I)^{-1} vector for an svec H; NaN where the matrix is not positive definite."""
    d = vector.numel()
    matrix = svec_to_matrix(hessian, d)
    matrix.diagonal().add_(shift)
    try:
        return solve(matrix, vector.reshape(-1)).view(vector.shape)
    except torch.linalg.LinAlgError:
        return torch.full_like(vector, torch.nan)


@dataclass
class State:
    """The model, each worker's Hessian and their mean, as svec (see Oracles.hessians)."""

    x: Server  # (*shape)
    shift: Worker  # H_i, (local, d (d + 1) / 2)
    hessian: Server  # H = mean H_i, (d (d + 1) / 2,)


@dataclass(frozen=True)
class FedNL(Method):
    """Newton's method with the old H and its distance l to the Hessians: x+ = x - (H + l I)^{-1} grad f(x) (option 2).

    Worker i sends its gradient, S_i = C(hess f_i(x) - H_i) and l_i = ||hess f_i(x) - H_i||_F in one round; then
    H_i <- H_i + a S_i and H <- H + a mean S_i. Matrices are handed over as svec (upper triangle, off-diagonals times
    sqrt(2)), so that a compressor of vectors keeps its constant in Frobenius norm: top-k has k / (d (d + 1) / 2).
    Start: H_i = hess f_i(x^0), sent at full width and counted.

    Guarantee (local, from the paper): with a = 1 for contractive and 1 / (1 + omega) for unbiased compressors,
    ||x_k - x*||^2 halves per iteration and in the end faster than any geometric rate, independent of conditioning.

    Parameters
    ----------
    compressor : of the svec of the Hessian's change.
    learning_rate : a; None is theory's.

    >>> from laconic.compressors.topk import TopK
    >>> str(FedNL(TopK(k=2408)))
    'fednl(topk(k=2408))'
    """

    compressor: Compressor
    learning_rate: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None

    name = "fednl"
    example = "fednl(topk(k=0.05))"
    source = dataclasses.replace(_SOURCE, where="Algorithm 1, option 2")

    def settled(self, setting: Setting) -> FedNL:
        return dataclasses.replace(self, learning_rate=_learning_rate(self, setting))

    def guarantee(self, setting: Setting) -> Guarantee:
        return _guarantee(setting, "Theorem 3.6")

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        sent = await link.uplink(None, oracles.hessians(x))
        return State(x, sent.own.dense(), sent.mean.dense())

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        a = number(self.learning_rate)
        x = await link.broadcast(state.x)
        difference = oracles.hessians(x).sub_(state.shift)
        gradient, change, distance = await together(
            link.uplink(None, oracles.gradients(x)),
            link.uplink(self.compressor, difference),
            link.uplink(None, norm2(difference).sqrt()),
        )
        g, error = gradient.mean.dense(), distance.mean.dense()
        step = link.at_server(lambda: _newton(state.hessian, error, g), like=state.x)
        change.own.add_to(state.shift, scale=a)
        change.mean.add_to(state.hessian, scale=a)
        return State(state.x - step, state.shift, state.hessian)

    def point(self, state: State) -> Tensor:
        return state.x


@dataclass
class CohortState:
    """What FedNL-PP keeps: H_i, l_i and g_i = (H_i + l_i I) w_i - grad f_i(w_i) of each worker, and their means."""

    x: Server  # (*shape)
    shift: Worker  # H_i, (local, d (d + 1) / 2)
    error: Worker  # l_i, (local,)
    image: Worker  # g_i, (local, *shape)
    hessian: Server  # H, (d (d + 1) / 2,)
    mean_error: Server  # l, ()
    mean_image: Server  # g, (*shape)


def _images(hessians: Tensor, errors: Tensor, x: Tensor, gradients: Tensor) -> Tensor:
    """(H_i + l_i I) x - grad f_i(x) per row, from svecs."""
    d = x.numel()
    flat = x.reshape(-1)
    rows = [(svec_to_matrix(h, d) * flat).sum(1) for h in hessians]
    products = torch.stack(rows) if rows else hessians.new_zeros(0, d)
    return (products + errors[:, None] * flat).view(gradients.shape) - gradients


@dataclass(frozen=True)
class FedNLPP(Method):
    """FedNL where `cohort` random workers take part per iteration; nobody computes for the others.

    x = (H + l I)^{-1} g with the means of H_i, l_i, g_i; a worker of the cohort takes x as its point w_i, sends
    S_i = C(hess f_i(x) - H_i), learns H_i <- H_i + a S_i, and sends the changes of l_i = ||hess f_i(x) - H_i||_F (after
    learning) and of g_i = (H_i + l_i I) w_i - grad f_i(w_i). With all workers this is option 2 with the Hessian learned
    before the step. Start: H_i = hess f_i(x^0) and g_i, sent at full width and counted.

    Parameters
    ----------
    compressor : of the svec of the Hessian's change.
    cohort : how many workers take part.
    learning_rate : a; None is theory's.

    >>> from laconic.compressors.topk import TopK
    >>> str(FedNLPP(TopK(k=100), cohort=4))
    'fednl_pp(topk(k=100), cohort=4)'
    """

    compressor: Compressor
    cohort: Annotated[int, Count(1)] = 1
    learning_rate: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None

    name = "fednl_pp"
    example = "fednl_pp(topk(k=0.05), cohort=2)"
    source = dataclasses.replace(_SOURCE, where="Algorithm 2")

    def settled(self, setting: Setting) -> FedNLPP:
        if self.cohort > setting.n:
            raise ValueError(
                f"FedNLPP(cohort={self.cohort}) : the problem has {setting.n} workers; cohort must not exceed them"
            )
        return dataclasses.replace(self, learning_rate=_learning_rate(self, setting))

    def guarantee(self, setting: Setting) -> Guarantee:
        return _guarantee(setting, "Theorem C.4")

    async def init(self, oracles: Oracles, link: Link) -> CohortState:
        x = oracles.start()
        hessians = oracles.hessians(x).clone()
        error = hessians.new_zeros(hessians.shape[0])
        image = _images(hessians, error, x, oracles.gradients(x))
        sent, images = await together(link.uplink(None, hessians), link.uplink(None, image))
        nothing = hessians.new_zeros(())
        return CohortState(x, hessians, error, image, sent.mean.dense(), nothing, images.mean.dense())

    async def iterate(self, state: CohortState, oracles: Oracles, link: Link) -> CohortState:
        a, who = number(self.learning_rate), link.sample(self.cohort)
        rows = torch.from_numpy(who.rows)
        x = link.at_server(lambda: _newton(state.hessian, state.mean_error, state.mean_image), like=state.x)
        held = await link.broadcast(x, to=who)
        difference = oracles.hessians(held, who.rows) - state.shift[rows]
        packet = link.compress(self.compressor, difference, who)
        learned = a * packet.decoded.dense()
        error = norm2(difference - learned).sqrt()
        image = _images(state.shift[rows] + learned, error, held, oracles.gradients(held, who.rows))
        change, errors, images = await together(
            link.uplink(packet),
            link.uplink(None, error - state.error[rows], who),
            link.uplink(None, image - state.image[rows], who),
        )
        state.shift[rows] += learned
        state.error[rows], state.image[rows] = error, image
        change.mean.add_to(state.hessian, scale=a)
        errors.mean.add_to(state.mean_error)
        images.mean.add_to(state.mean_image)
        return dataclasses.replace(state, x=x)

    def point(self, state: CohortState) -> Tensor:
        return state.x
