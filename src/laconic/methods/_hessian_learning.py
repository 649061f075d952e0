"""What second-order methods share: Newton's step on an estimate, the first Hessians, learning rates, local theory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from laconic.core.compressor import Compressor, Sent, as_contractive, as_unbiased
from laconic.core.entry import Source
from laconic.core.link import Link
from laconic.core.method import Method
from laconic.core.problem import Oracles, single_threaded
from laconic.core.rows import solve, svec_to_matrix
from laconic.core.theory import Guarantee, NoTheorem, Setting, estimates, known

FEDNL = Source(
    "Safaryan, Islamov, Qian, Richtarik",
    2021,
    "FedNL: making Newton-type methods applicable to federated learning",
    "2106.02969",
)


def paper(where: str) -> Source:
    """A place in the paper on FedNL."""
    return dataclasses.replace(FEDNL, where=where)


class NoStep(torch.linalg.LinAlgError):
    """A Newton step that does not exist; `depth` is how far below 0 the least eigenvalue lies (NaN: not finite)."""

    def __init__(self, text: str, depth: float) -> None:
        super().__init__(text)
        self.depth = depth


def of_hessians(setting: Setting) -> Setting:
    """The setting of methods that send Hessians: the vectors are their svecs."""
    return dataclasses.replace(setting, shape=(setting.d * (setting.d + 1) // 2,))


def learning_rate(method: Method, given: float | None, compressor: Compressor, setting: Setting) -> float:
    """1 for a contractive compressor, 1 / (1 + omega) for an unbiased one; what is given is taken as it is."""
    if given is not None:
        return given
    claim = compressor.claim(setting.d, setting.n)
    omega = as_unbiased(claim)
    if omega:
        return 1.0 / (1.0 + omega)
    if as_contractive(claim) is None:
        raise NoTheorem(
            f"{compressor} claims nothing, so {method.name} has no learning rate for it; give it one explicitly"
        )
    return 1.0


def convexity(given: float | None, setting: Setting) -> float:
    """The mu of [H]_mu: what is given, or the problem's. Raises NoTheorem where there is none."""
    if given is not None:
        return given
    (mu,) = known(mu=setting.constants.mu)
    if mu <= 0.0:
        raise NoTheorem("the projection on matrices of at least mu needs a mu > 0 and the problem's is 0; give mu")
    return mu


def local(setting: Setting, source: Source, *further: str, sure: bool = False) -> Guarantee:
    """A theorem about the neighbourhood of x*: unit steps, and no rate from an arbitrary start."""
    c = setting.constants
    known(mu=c.mu)
    assumes = ("f strongly convex near x*", "Lipschitz Hessians", *further)
    return Guarantee(1.0, source, assumes=assumes, sure=sure, leans_on=estimates(mu=c.mu))


LEARNED = (
    "local: x^0 and H_i^0 close to x* and its Hessians; then ||x_k - x*||^2 <= 2^-k ||x_0 - x*||^2, and superlinear"
)


async def first_hessians(x: Tensor, oracles: Oracles, link: Link, start: Compressor | None) -> Sent:
    """H_i^0: hess f_i(x^0) at full width, or what a compressor leaves of it."""
    return await link.uplink(start, oracles.hessians(x))


# ---- the server's algebra --------------------------------------------------------------------------------------------


def attempted(link: Link, compute: Callable[[], Tensor], like: Tensor) -> Tensor:
    """Work of the server whose algebra may fail: then NaN, with which a run ends as diverged, and a remark on why."""

    def attempt() -> Tensor:
        try:
            return compute()
        except torch.linalg.LinAlgError as failure:
            text = str(failure).splitlines()[0]
            link.remark(text, failure.depth if isinstance(failure, NoStep) else math.nan)
            return torch.full_like(like, torch.nan)

    return link.at_server(attempt, like)


def newton_step(hessian: Tensor, shift: Tensor | float, vector: Tensor) -> Tensor:
    """(H + l I)^{-1} vector for an svec H. Raises NoStep where the matrix is not positive definite."""
    matrix = svec_to_matrix(hessian, vector.numel())
    matrix.diagonal().add_(shift)
    try:
        return solve(matrix, vector.reshape(-1)).view(vector.shape)
    except torch.linalg.LinAlgError:
        raise _why(matrix) from None


@single_threaded
def _why(matrix: Tensor) -> NoStep:
    if not bool(torch.isfinite(matrix).all()):
        return NoStep("no Newton step: the Hessian estimate is not finite", math.nan)
    depth = -float(torch.linalg.eigvalsh(matrix)[0])
    return NoStep(
        "no Newton step: the Hessian estimate is singular or indefinite; start nearer to a minimiser, or take a method "
        "that projects, such as fednl_projected or newton_3pc (so far below 0 is its least eigenvalue)",
        depth,
    )


@single_threaded
def projected(hessian: Tensor, mu: float, d: int) -> Tensor:
    """[H]_mu, (d, d): the nearest matrix >= mu I of an svec H; H itself where that is one, which is cheaper to see."""
    matrix = svec_to_matrix(hessian, d)
    if not bool(torch.isfinite(matrix).all()):
        raise _why(matrix)
    lower = matrix.clone()
    lower.diagonal().sub_(mu)
    if int(torch.linalg.cholesky_ex(lower)[1]) == 0:
        return matrix
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=mu)) @ vectors.T


def projected_step(hessian: Tensor, mu: float, vector: Tensor) -> Tensor:
    """[H]_mu^{-1} vector for an svec H."""
    return solve(projected(hessian, mu, vector.numel()), vector.reshape(-1)).view(vector.shape)
