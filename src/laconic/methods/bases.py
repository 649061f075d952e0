"""Bases of the space of symmetric matrices, in which Basis Learn sends Hessians: coefficients instead of entries."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from laconic.core import rows as per_row
from laconic.core.compressor import Sent
from laconic.core.entry import Entry
from laconic.core.flight import together
from laconic.core.link import Link
from laconic.core.problem import Oracles, single_threaded
from laconic.core.state import Server, Worker
from laconic.core.theory import Setting
from laconic.kernels import bases as kernels
from laconic.kernels.svec import ROOT
from laconic.methods._basis_learn import QIAN


@dataclass
class Span:
    """What both ends know of the data: V_i of the workers here, of all workers at the server, and the ridge c."""

    own: Worker  # (local, d, r)
    everyone: Server  # (n, d, r)
    ridge: float

    def of(self, rows: np.ndarray) -> Tensor:
        """V_i of some of the workers here, (rows, d, r)."""
        return self.own if len(rows) == len(self.own) else self.own[torch.from_numpy(rows)]


class Basis(Entry, ABC):
    """A basis of the space where hess f_i lives; h_i gives the coefficients of a matrix, one row per worker.

    `span` is what `agree` has given: what the two ends had to tell each other about the basis first. What takes the
    rows of all n workers is the server's work.
    """

    kind: ClassVar[str] = "basis"

    def size(self, setting: Setting) -> int:
        """How many coefficients a matrix has, at most."""
        return setting.d * (setting.d + 1) // 2

    async def agree(self, oracles: Oracles, link: Link) -> Any:
        """What both ends must know of the basis, None where that is nothing; what is sent for it is counted."""
        return None

    def width(self, d: int, span: Any) -> int:
        """K, how many coefficients a matrix has."""
        return d * (d + 1) // 2

    # ---- at the workers, for some of their rows ----------------------------------------------------------------

    @abstractmethod
    def changes(self, oracles: Oracles, x: Tensor, known: Tensor, span: Any, rows: np.ndarray) -> Tensor:
        """h_i(hess f_i(x)) - known, (rows, K); borrowed until Hessians are next asked for."""

    def lengths(self, coefficients: Tensor, d: int) -> Tensor:
        """The Frobenius norms of the matrices with these coefficients, (rows,)."""
        return per_row.norm2(coefficients).sqrt()

    def slopes(self, gradients: Tensor, x: Tensor, span: Any, rows: np.ndarray) -> Tensor:
        """What a worker sends of its gradient at x."""
        return gradients

    # ---- at the server -----------------------------------------------------------------------------------------

    def zero(self, like: Tensor, span: Any) -> Tensor:
        """The svec of the matrix whose coefficients are all zero, for x like this one."""
        return like.new_zeros(like.numel() * (like.numel() + 1) // 2)

    @abstractmethod
    def add_mean(self, target: Tensor, sent: Sent, scale: float, span: Any) -> None:
        """target += scale times the mean over workers of the matrices with the coefficients sent, in place; an svec."""

    @abstractmethod
    def products(self, coefficients: Tensor, x: Tensor, span: Any) -> Tensor:
        """Worker i's matrix times x_i, for all workers: (n, *shape), of coefficients (n, K)."""

    def mean_gradient(self, sent: Sent, x: Tensor, span: Any) -> Tensor:
        """grad f(x) of the slopes that all workers have sent."""
        return sent.mean.dense()

    def gradients(self, slopes: Tensor, x: Tensor, span: Any) -> Tensor:
        """grad f_i(x_i) for all workers, (n, *shape), of their slopes there."""
        return slopes


@dataclass(frozen=True)
class StandardBasis(Basis):
    """The entries on and above the diagonal, off-diagonals times sqrt(2): what `fednl` and its like send.

    >>> str(StandardBasis())
    'standard_basis'
    """

    name = "standard_basis"
    example = "standard_basis"
    source = QIAN

    def changes(self, oracles: Oracles, x: Tensor, known: Tensor, span: Any, rows: np.ndarray) -> Tensor:
        return oracles.hessian_changes(x, known, rows)[0]

    def add_mean(self, target: Tensor, sent: Sent, scale: float, span: Any) -> None:
        sent.mean.add_to(target, scale)

    def products(self, coefficients: Tensor, x: Tensor, span: Any) -> Tensor:
        return kernels.products(coefficients, x.reshape(len(x), -1)).view(x.shape)


@single_threaded
def _outward(svecs: Tensor, vectors: Tensor) -> Tensor:
    """The svec of mean V_i S_i V_i' for the svecs of all S_i: the server's algebra, as one product of two matrices."""
    n, d, r = vectors.shape
    images = torch.bmm(vectors, kernels.unpacked(svecs, r))
    left, right = (each.permute(1, 0, 2).reshape(d, n * r) for each in (images, vectors))
    total = torch.mm(left, right.T) / n
    i, j = torch.triu_indices(d, d)
    return torch.where(i == j, total[i, j], ROOT * total[i, j])


@dataclass(frozen=True)
class DataBasis(Basis):
    """h_i = V_i' (hess f_i - c I) V_i, the columns of V_i orthonormal and spanning worker i's data: r x r, not d x d.

    For linear models, f_i = mean loss(<a, x>) + c ||x||^2 / 2; any other problem is refused when the run starts.
    Nothing is lost, for hess f_i - c I and grad f_i - c x lie in the span: gradients take r numbers too. Pays where
    workers have fewer rows than there are coordinates, or sparse ones.

    Each worker finds V_i from its rows (a singular value decomposition) and sends it once, d r numbers, besides its
    rank; the server answers with the largest rank, which is everyone's r (zero columns fill up). All of that is
    counted. Knowing V_i, the server knows the span of the worker's data.

    >>> str(DataBasis())
    'data_basis'
    """

    name = "data_basis"
    example = "data_basis"
    source = QIAN

    def size(self, setting: Setting) -> int:
        most = min(setting.d, setting.terms[1])
        return most * (most + 1) // 2

    async def agree(self, oracles: Oracles, link: Link) -> Span:
        vectors, ridge = oracles.spans()
        ranks = (vectors != 0.0).any(dim=1).sum(dim=1).to(vectors.dtype)
        sent = await link.uplink(None, ranks)
        each = ranks.new_zeros(link.n)
        sent.mean.spread(each)
        # a process without workers hears nothing, and is shown
        _, told = await together(link.broadcast(each.max()), link.show(each.max()))
        own = vectors.new_zeros((len(vectors), oracles.d, int(told)))
        own[:, :, : vectors.shape[2]] = vectors
        sent = await link.uplink(None, own)
        everyone = own.new_zeros((link.n, *own.shape[1:]))
        sent.mean.spread(everyone)
        return Span(own, everyone, ridge)

    def width(self, d: int, span: Any) -> int:
        r = span.own.shape[2]
        return r * (r + 1) // 2

    def changes(self, oracles: Oracles, x: Tensor, known: Tensor, span: Any, rows: np.ndarray) -> Tensor:
        return kernels.inward(oracles.hessians(x, rows), span.ridge, span.of(rows)).sub_(known)

    def slopes(self, gradients: Tensor, x: Tensor, span: Any, rows: np.ndarray) -> Tensor:
        return kernels.coordinates(span.of(rows), gradients - span.ridge * x)

    def zero(self, like: Tensor, span: Any) -> Tensor:
        i, j = torch.triu_indices(like.numel(), like.numel())
        return span.ridge * (i == j).to(like.dtype)

    def add_mean(self, target: Tensor, sent: Sent, scale: float, span: Any) -> None:
        each = target.new_zeros((len(span.everyone), self.width(0, span)))
        sent.mean.spread(each)
        target.add_(scale * _outward(each, span.everyone))

    def products(self, coefficients: Tensor, x: Tensor, span: Any) -> Tensor:
        inner = kernels.products(coefficients, kernels.coordinates(span.everyone, x))
        return kernels.combinations(span.everyone, inner) + span.ridge * x

    def mean_gradient(self, sent: Sent, x: Tensor, span: Any) -> Tensor:
        each = x.new_zeros((len(span.everyone), span.everyone.shape[2]))
        sent.mean.spread(each)
        return per_row.mean(self.gradients(each, x, span))

    def gradients(self, slopes: Tensor, x: Tensor, span: Any) -> Tensor:
        return kernels.combinations(span.everyone, slopes) + span.ridge * x


@dataclass(frozen=True)
class PSDBasis(Basis):
    """e_j e_j' and (e_j + e_l)(e_j + e_l)' for j < l, none with a negative eigenvalue: larger coefficients mean a
    larger matrix, on which `bl3` builds.

    A has c_jl = A_jl and c_jj = A_jj - sum over l != j of A_jl. The basis is not orthonormal, so the error that a
    compressor makes in coefficients may be larger in the matrix.

    >>> str(PSDBasis())
    'psd_basis'
    """

    name = "psd_basis"
    example = "psd_basis"
    source = QIAN

    def coefficients(self, hessians: Tensor, d: int) -> Tensor:
        """h_i of svecs, a fresh tensor."""
        return kernels.squares(hessians, d)

    def matrices(self, coefficients: Tensor, d: int) -> Tensor:
        """The svecs of these coefficients, a fresh tensor."""
        return kernels.of_squares(coefficients, d)

    def changes(self, oracles: Oracles, x: Tensor, known: Tensor, span: Any, rows: np.ndarray) -> Tensor:
        return self.coefficients(oracles.hessians(x, rows), oracles.d).sub_(known)

    def lengths(self, coefficients: Tensor, d: int) -> Tensor:
        return per_row.norm2(self.matrices(coefficients, d)).sqrt()

    def add_mean(self, target: Tensor, sent: Sent, scale: float, span: Any) -> None:
        mean = sent.mean.dense()[None]
        d = math.isqrt(2 * target.numel())  # of d (d + 1) / 2
        target.add_(scale * self.matrices(mean, d)[0])

    def products(self, coefficients: Tensor, x: Tensor, span: Any) -> Tensor:
        flat = x.reshape(len(x), -1)
        return kernels.products(self.matrices(coefficients, flat.shape[1]), flat).view(x.shape)
