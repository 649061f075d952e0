"""FedNL: Newton's method with learned, compressed Hessians. Shifted, projected, and cubically regularised."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from laconic.core.compressor import Compressor
from laconic.core.entry import Interval
from laconic.core.flight import together
from laconic.core.link import Link
from laconic.core.method import Method, number
from laconic.core.problem import Oracles
from laconic.core.rows import svec_to_matrix
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, Setting, estimates, known
from laconic.methods._cubic import cubic_step
from laconic.methods._hessian_learning import (
    LEARNED,
    attempted,
    convexity,
    first_hessians,
    learning_rate,
    local,
    newton_step,
    of_hessians,
    paper,
    projected_step,
)


@dataclass
class State:
    """The model, each worker's Hessian and their mean, as svec (see Oracles.hessians)."""

    x: Server  # (*shape)
    shift: Worker  # H_i, (local, d (d + 1) / 2)
    hessian: Server  # H = mean H_i, (d (d + 1) / 2,)


@dataclass(frozen=True)
class _Learned(Method):
    """What starts from Hessians of the workers and learns them."""

    compressor: Compressor
    learning_rate: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None
    start: Compressor | None = None

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        sent = await first_hessians(x, oracles, link, self.start)
        return State(x, sent.own.dense(), sent.mean.dense())

    def point(self, state: State) -> Tensor:
        return state.x


@dataclass(frozen=True)
class _Shifted(_Learned):
    """Workers send gradients, changes of Hessians and how far theirs are off; `move` steps with the old H + l I."""

    @abstractmethod
    def move(self, hessian: Tensor, error: Tensor, g: Tensor) -> Tensor:
        """x+ - x from the svec H, l of shape () and grad f(x) of shape (*shape)."""

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        a = number(self.learning_rate)
        x = await link.broadcast(state.x)
        change, squares = oracles.hessian_changes(x, state.shift)
        gradient, learned, distance = await together(
            link.uplink(None, oracles.gradients(x)),
            link.uplink(self.compressor, change),
            link.uplink(None, squares.sqrt()),
        )
        g, error = gradient.mean.dense(), distance.mean.dense()
        step = attempted(link, lambda: self.move(state.hessian, error, g), like=state.x)
        learned.own.add_to(state.shift, scale=a)
        learned.mean.add_to(state.hessian, scale=a)
        return State(state.x + step, state.shift, state.hessian)


@dataclass(frozen=True)
class FedNL(_Shifted):
    """Newton's method with the old H and its distance l to the Hessians: x+ = x - (H + l I)^{-1} grad f(x) (option 2).

    Worker i sends its gradient, S_i = C(hess f_i(x) - H_i) and l_i = ||hess f_i(x) - H_i||_F in one round; then
    H_i <- H_i + a S_i and H <- H + a mean S_i. Matrices are handed over as svec (upper triangle, off-diagonals times
    sqrt(2)), so that a compressor of vectors keeps its constant in Frobenius norm: top-k has k / (d (d + 1) / 2),
    which top-k by |a_ij| has not (on ones + 0.01 I it keeps about half of that). H + l I is at least the Hessian, so
    convex problems always have a step.

    Guarantee (local, from the paper): with a = 1 for contractive and 1 / (1 + omega) for unbiased compressors,
    ||x_k - x*||^2 halves per iteration and in the end faster than any geometric rate, independent of conditioning.

    Parameters
    ----------
    compressor : of the svec of the Hessian's change.
    learning_rate : a; None is theory's.
    start : what the first Hessians H_i^0 = hess f_i(x^0) are sent by; None is at full width. Counted either way.

    >>> from laconic.compressors.topk import TopK
    >>> str(FedNL(TopK(k=2408)))
    'fednl(topk(k=2408))'
    """

    name = "fednl"
    example = "fednl(topk(k=0.05))"
    source = paper("Algorithm 1, option 2")

    def settled(self, setting: Setting) -> FedNL:
        rate = learning_rate(self, self.learning_rate, self.compressor, of_hessians(setting))
        return dataclasses.replace(self, learning_rate=rate)

    def guarantee(self, setting: Setting) -> Guarantee:
        return local(setting, paper("Theorem 3.6"), LEARNED)

    def move(self, hessian: Tensor, error: Tensor, g: Tensor) -> Tensor:
        return -newton_step(hessian, error, g)


@dataclass(frozen=True)
class FedNLProjected(_Learned):
    """FedNL with x+ = x - [H]_mu^{-1} grad f(x) (option 1): [H]_mu is the nearest matrix with eigenvalues >= mu.

    As `fednl`, without the distances l_i. The server decomposes H only where H - mu I has no Cholesky factor, for
    else [H]_mu is H. With a compressor that sends nothing this is `n0`. From H_i^0 = 0 it wanders for long; `fednl`
    does not.

    Guarantee (local, from the paper): that of `fednl`, from a neighbourhood that is larger.

    Parameters
    ----------
    compressor : of the svec of the Hessian's change.
    learning_rate : a; None is theory's.
    start : what the first Hessians are sent by; None is at full width. Counted either way.
    mu : None is the problem's strong convexity.

    >>> from laconic.compressors.topk import TopK
    >>> str(FedNLProjected(TopK(k=100), mu=0.001))
    'fednl_projected(topk(k=100), mu=0.001)'
    """

    mu: Annotated[float | None, Interval(0.0, open="low")] = None

    name = "fednl_projected"
    example = "fednl_projected(topk(k=0.05))"
    source = paper("Algorithm 1, option 1")

    def settled(self, setting: Setting) -> FedNLProjected:
        rate = learning_rate(self, self.learning_rate, self.compressor, of_hessians(setting))
        return dataclasses.replace(self, learning_rate=rate, mu=convexity(self.mu, setting))

    def guarantee(self, setting: Setting) -> Guarantee:
        return local(setting, paper("Theorem 3.6"), LEARNED)

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        a, mu = number(self.learning_rate), number(self.mu)
        x = await link.broadcast(state.x)
        change, _ = oracles.hessian_changes(x, state.shift)
        gradient, learned = await together(
            link.uplink(None, oracles.gradients(x)), link.uplink(self.compressor, change)
        )
        g = gradient.mean.dense()
        step = attempted(link, lambda: projected_step(state.hessian, mu, g), like=state.x)
        learned.own.add_to(state.shift, scale=a)
        learned.mean.add_to(state.hessian, scale=a)
        return State(state.x - step, state.shift, state.hessian)


@dataclass(frozen=True)
class FedNLCR(_Shifted):
    """FedNL with cubic regularisation: x+ = x + argmin_s <g, s> + s'(H + l I) s / 2 + (L_* / 6) ||s||^3.

    As `fednl`, with g = grad f(x) and L_* the Lipschitz constant of the Hessian of f: H + l I is at least the Hessian,
    so the model lies above f and f never grows. The authors' published code updates H_i outside the loop over workers,
    so that only the last one learns; here all do.

    Guarantee (from the paper, recalled): global, f - f* = O(1 / k) for convex f and linear where it is strongly convex;
    locally that of `fednl`. Constants are not given here.

    Parameters
    ----------
    compressor : of the svec of the Hessian's change.
    learning_rate : a; None is theory's.
    start : what the first Hessians are sent by; None is at full width. Counted either way.
    hessian_lipschitz : L_*; None is the problem's.

    >>> from laconic.compressors.topk import TopK
    >>> str(FedNLCR(TopK(k=100)))
    'fednl_cr(topk(k=100))'
    """

    hessian_lipschitz: Annotated[float | None, Interval(0.0)] = None

    name = "fednl_cr"
    example = "fednl_cr(topk(k=0.05))"
    source = paper("Algorithm 4, FedNL-CR")

    def settled(self, setting: Setting) -> FedNLCR:
        rate = learning_rate(self, self.learning_rate, self.compressor, of_hessians(setting))
        bend = self.hessian_lipschitz
        if bend is None:
            (bend,) = known(hessian_lipschitz=setting.constants.hessian_lipschitz)
        return dataclasses.replace(self, learning_rate=rate, hessian_lipschitz=bend)

    def guarantee(self, setting: Setting) -> Guarantee:
        c = setting.constants
        known(mu=c.mu, hessian_lipschitz=c.hessian_lipschitz)
        return Guarantee(
            1.0,
            paper("theorem on FedNL-CR"),
            assumes=("f convex", "Lipschitz Hessians", "O(1 / k) from any start, linear for strongly convex f"),
            sure=False,
            leans_on=estimates(mu=c.mu, hessian_lipschitz=c.hessian_lipschitz),
        )

    def move(self, hessian: Tensor, error: Tensor, g: Tensor) -> Tensor:
        matrix = svec_to_matrix(hessian, g.numel())
        matrix.diagonal().add_(error)
        return cubic_step(matrix, g.reshape(-1), number(self.hessian_lipschitz)).view(g.shape)
