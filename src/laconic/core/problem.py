"""Problems: f(x) = (1/n) sum_i f_i(x). What to solve, what its local workers can compute, and its constants.

Most are minimised. A *variational* problem is a saddle point: f_i is minimised over some coordinates u and maximised
over the others w, and what takes the gradient's place is the operator F_i = (grad_u f_i, -grad_w f_i), zero in the mean
over workers at the solution.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from laconic.core.entry import Entry
from laconic.core.keys import Keys
from laconic.core.regulariser import Regulariser
from laconic.kernels import fold


@dataclass(frozen=True)
class Block:
    """The workers low..high-1 of n that live in this process (possibly none)."""

    low: int
    high: int
    n: int

    @property
    def size(self) -> int:
        """How many workers live here."""
        return self.high - self.low

    @functools.cached_property
    def workers(self) -> np.ndarray:
        """Their numbers, int64 of shape (size,); not to be written to."""
        return np.arange(self.low, self.high)

    @staticmethod
    def whole(n: int) -> Block:
        """All n workers."""
        return Block(0, n, n)

    @staticmethod
    def deal(n: int, parts: int) -> list[Block]:
        """n workers over `parts` processes in order, sizes differing by at most one."""
        ends = [n * part // parts for part in range(parts + 1)]
        return [Block(low, high, n) for low, high in zip(ends, ends[1:], strict=False)]


class Kind(enum.Enum):
    """How sure a constant is."""

    EXACT = "exact"
    BOUND = "bound"  # on the safe side: an upper bound of a smoothness constant, a lower bound of mu
    ESTIMATE = "estimate"  # may lie on the unsafe side; a guarantee made of it says so


@dataclass(frozen=True)
class Constant:
    """A constant of a problem, with its kind and, in words, how it was found."""

    value: float
    kind: Kind = Kind.EXACT
    how: str = ""

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True)
class Constants:
    """Constants of f and of the f_i. None means that the problem does not know it.

    Of a variational problem they are those of F and the F_i, wherever a gradient is named: L is F's Lipschitz constant,
    mu says that it is strongly monotone, delta how far F_i - F is from constant.

    L : smoothness of f.  L_workers : of each f_i.  L_max, L_tilde : their maximum and root mean square.
    L_plus : mean ||grad f_i(x) - grad f_i(y)||^2 <= L_plus^2 ||x - y||^2.
    L_pm : the same mean less ||grad f(x) - grad f(y)||^2 is <= L_pm^2 ||x - y||^2 (Szlendak et al. 2021).
    mu : strong convexity of f.  mu_workers : of the least convex f_i.
    mu_pl : the Polyak-Lojasiewicz constant of an f that has one and is not strongly convex: ||grad f||^2 >= 2 mu_pl
    (f - f*).
    delta : max_i sup_x ||hess f_i(x) - hess f(x)||.  delta_server : the same for worker 0's f_i (the server's copy).
    delta_mean : mean ||(grad f_i - grad f)(x) - (grad f_i - grad f)(y)||^2 <= delta_mean^2 ||x - y||^2.
    delta_first : max_i sup_x ||hess f_i(x) - hess f_1(x)||, f_1 being worker 0's; at most 2 delta.
    L_sample : smoothness of the least smooth single term of any f_i.
    sigma_star : sqrt((1/n) sum ||grad f_i(x*)||^2), how different the workers are at the solution.
    hessian_lipschitz : of the Hessian of f, in spectral norm.
    """

    L: Constant
    L_workers: tuple[float, ...]
    L_max: Constant
    L_tilde: Constant
    L_plus: Constant
    L_pm: Constant
    mu: Constant | None = None
    mu_workers: Constant | None = None
    delta: Constant | None = None
    delta_server: Constant | None = None
    delta_mean: Constant | None = None
    delta_first: Constant | None = None
    L_sample: Constant | None = None
    sigma_star: Constant | None = None
    hessian_lipschitz: Constant | None = None
    mu_pl: Constant | None = None

    @property
    def polyak(self) -> Constant | None:
        """The Polyak-Lojasiewicz constant: mu where f is strongly convex, else mu_pl."""
        return self.mu if self.mu is not None else self.mu_pl

    def named(self) -> dict[str, Constant]:
        """Every known constant by name."""
        pairs = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: value for name, value in pairs if isinstance(value, Constant)}


@dataclass(frozen=True)
class Solution:
    """A minimiser with its certificate: f(x) - f* <= gap. Of a variational problem ||x - x*||^2 <= gap."""

    x: Tensor
    value: float
    gap: float


@dataclass(frozen=True)
class Batch:
    """A minibatch as a value: `indices[r]` are the terms that row r of `rows` looks at, int64 of shape (rows, size)."""

    rows: np.ndarray
    indices: np.ndarray


@dataclass
class Calls:
    """How often the local workers' oracles, and the server's own, were asked, in terms (a gradient of m terms is m)."""

    gradient_terms: int = 0
    hessian_terms: int = 0
    product_terms: int = 0  # of Hessians with vectors; each costs about what a gradient costs
    server_terms: int = 0  # gradients and products of the server's own copy
    server_hessian_terms: int = 0
    by_worker: np.ndarray | None = None  # gradients and products of each local worker, (local,), if somebody wants them


class Oracles(ABC):
    """What the workers of one block can compute, at one point (*shape) for all rows or one per row (rows, *shape).

    Rows are positions inside the block, int64; None means all of them. A worker that is not asked computes nothing.
    """

    block: Block
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float64
    convex: bool = True
    regulariser: Regulariser | None = None  # what everyone adds to f; oracles are of the f_i alone
    maximised: Tensor | None = None  # bool (*shape): where f is maximised; its gradients are then of the operator

    def __init__(self) -> None:
        self.calls = Calls()
        self._server: Callable[[], Oracles] | None = None
        self._everyone: Callable[[], Oracles] | None = None

    @functools.cached_property
    def server(self) -> Oracles:
        """The server's own copy of worker 0's function, as a block of one worker (for methods that use similarity)."""
        if self._server is None:
            raise ValueError(
                f"{type(self).__name__} was not made by Problem.host: the server has no function of its own"
            )
        return self._server()

    def asked(self) -> Calls:
        """The calls so far, those of the server's own copy among them."""
        if "server" not in vars(self):
            return dataclasses.replace(self.calls)
        own = self.server.calls
        terms = own.gradient_terms + own.product_terms
        return dataclasses.replace(self.calls, server_terms=terms, server_hessian_terms=own.hessian_terms)

    def forget_calls(self) -> None:
        """Counts calls from zero again."""
        self.calls = Calls()
        if "server" in vars(self):
            self.server.calls = Calls()

    @property
    def d(self) -> int:
        """The number of coordinates of x."""
        return math.prod(self.shape)

    @property
    def variational(self) -> bool:
        """Whether f is maximised over some coordinates: `gradients` are F_i = (grad_u f_i, -grad_w f_i) then."""
        return self.maximised is not None

    def among(self, rows: np.ndarray) -> Oracles:
        """What some of the local workers can compute, as if they were all: row r of it is rows[r]. Calls are shared."""
        return _Among(self, rows)

    @abstractmethod
    def terms(self) -> np.ndarray:
        """How many terms each local f_i averages, int64 of shape (local,)."""

    @functools.cached_property
    def most_terms(self) -> int:
        """The largest number of terms of any worker of the problem, those of other blocks among them."""
        if self.block.size == self.block.n:
            return int(self.terms().max())
        if self._everyone is None:
            raise ValueError(f"{type(self).__name__} was not made by Problem.host: it knows no other workers' terms")
        return self._everyone().most_terms

    @abstractmethod
    def _values(self, x: Tensor, rows: np.ndarray) -> Tensor: ...

    @abstractmethod
    def _gradients(self, x: Tensor, rows: np.ndarray, batch: Batch | None) -> Tensor: ...

    def _hessians(self, x: Tensor, rows: np.ndarray) -> Tensor:
        raise ValueError(f"{type(self).__name__} has no Hessians; use a method that needs gradients only")

    def _hessian_changes(self, x: Tensor, since: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        change = self._hessians(x, rows).sub_(since)
        return change, fold.dots(change, change)

    def _products(self, x: Tensor, v: Tensor, rows: np.ndarray) -> Tensor:
        raise ValueError(f"{type(self).__name__} has no Hessian products; use a method that needs gradients only")

    def _spans(self, rows: np.ndarray) -> tuple[Tensor, float]:
        raise ValueError(f"{type(self).__name__} is no linear model, whose data span something; use standard_basis")

    def start(self) -> Tensor:
        """x^0, of shape `shape`."""
        return torch.zeros(self.shape, dtype=self.dtype)

    def values(self, x: Tensor, rows: np.ndarray | None = None) -> Tensor:
        """f_i(x) for the rows, shape (rows,)."""
        return self._values(x, self._rows(rows))

    def gradients(self, x: Tensor, rows: np.ndarray | None = None, batch: Batch | None = None) -> Tensor:
        """grad f_i(x) for the rows, or the mean over a minibatch of those rows, shape (rows, *shape).

        The caller owns it. Raises ValueError where a minibatch is of other rows.
        """
        rows = self._rows(rows)
        if batch is not None and not np.array_equal(batch.rows, rows):
            raise ValueError(
                f"a minibatch of the rows {batch.rows.tolist()} for the rows {rows.tolist()}; give its rows"
            )
        self.calls.gradient_terms += self._terms(rows, batch)
        self._note(rows, batch)
        return self._gradients(x, rows, batch)

    def hessians(self, x: Tensor, rows: np.ndarray | None = None) -> Tensor:
        """Hessians as svec: the upper triangle by rows, off-diagonals times sqrt(2), so that norms are Frobenius norms.

        Shape (rows, d (d + 1) / 2). The tensor is borrowed until the next call and may be written to.
        """
        rows = self._rows(rows)
        self.calls.hessian_terms += self._terms(rows)
        return self._hessians(x, rows)

    def hessian_changes(self, x: Tensor, since: Tensor, rows: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        """What `hessians` gives less `since`, (rows, d (d + 1) / 2) like it, and the squared norm of each row, (rows,).

        For methods that learn Hessians: a problem may fuse the passes over memory. The first tensor is borrowed until
        the next call and may be written to.
        """
        rows = self._rows(rows)
        self.calls.hessian_terms += self._terms(rows)
        return self._hessian_changes(x, since, rows)

    def products(self, x: Tensor, v: Tensor, rows: np.ndarray | None = None) -> Tensor:
        """hess f_i(x) v for the rows, shape (rows, *shape); v is one (*shape) for all or one per row (rows, *shape).

        No Hessian is formed: it costs about as much as a gradient. The caller owns it.
        """
        rows = self._rows(rows)
        self.calls.product_terms += self._terms(rows)
        self._note(rows)
        return self._products(x, v, rows)

    def spans(self, rows: np.ndarray | None = None) -> tuple[Tensor, float]:
        """Of linear models, whose f_i = g_i + c ||x||^2 / 2 with g_i of <a, x> alone: the rows' V_i, and c.

        V_i are orthonormal columns that span the a of worker i, zero columns behind those of the largest rank among the
        rows: shape (rows, d, that rank). All grad g_i(x) and hess g_i(x) lie in the span. No derivative is computed.
        Raises ValueError where the f_i are of another form.
        """
        return self._spans(self._rows(rows))

    def sample(self, keys: Keys, size: int, rows: np.ndarray | None = None) -> Batch:
        """A minibatch of `size` terms per row, drawn with replacement."""
        rows = self._rows(rows)
        words = keys.at(rows).words(size) >> np.uint64(11)
        counts = self.terms()[rows][:, None]
        return Batch(rows, np.minimum((words * 2.0**-53 * counts).astype(np.int64), counts - 1))

    def _rows(self, rows: np.ndarray | None) -> np.ndarray:
        return self._all_rows if rows is None else np.asarray(rows, dtype=np.int64)

    @functools.cached_property
    def _all_rows(self) -> np.ndarray:
        return np.arange(self.block.size)

    @functools.cached_property
    def _all_terms(self) -> int:
        return int(self.terms().sum())

    def _terms(self, rows: np.ndarray, batch: Batch | None = None) -> int:
        """How many terms are looked at."""
        if batch is not None:
            return batch.indices.size
        return self._all_terms if rows is self._all_rows else int(self.terms()[rows].sum())

    def _note(self, rows: np.ndarray, batch: Batch | None = None) -> None:
        """Enters the terms that each worker looks at, where somebody wants to know."""
        if self.calls.by_worker is not None:
            terms = self.terms()[rows] if batch is None else batch.indices.shape[1]
            np.add.at(self.calls.by_worker, self._of_block(rows), terms)

    def _of_block(self, rows: np.ndarray) -> np.ndarray:
        """Rows as positions inside the block."""
        return rows


class _Among(Oracles):
    """The oracles of some rows of a block."""

    def __init__(self, whole: Oracles, rows: np.ndarray) -> None:
        super().__init__()
        self.block, self.shape, self.dtype, self.convex = whole.block, whole.shape, whole.dtype, whole.convex
        self.calls, self.regulariser, self._whole, self._chosen = whole.calls, whole.regulariser, whole, rows
        self.maximised = whole.maximised

    @functools.cached_property
    def server(self) -> Oracles:
        return self._whole.server

    @functools.cached_property
    def most_terms(self) -> int:
        return self._whole.most_terms

    @functools.cached_property
    def _all_rows(self) -> np.ndarray:
        return np.arange(len(self._chosen))

    def terms(self) -> np.ndarray:
        return self._whole.terms()[self._chosen]

    def start(self) -> Tensor:
        return self._whole.start()

    def _of_block(self, rows: np.ndarray) -> np.ndarray:
        return self._whole._of_block(self._chosen[rows])

    def _values(self, x: Tensor, rows: np.ndarray) -> Tensor:
        return self._whole._values(x, self._chosen[rows])

    def _gradients(self, x: Tensor, rows: np.ndarray, batch: Batch | None) -> Tensor:
        here = self._chosen[rows]
        return self._whole._gradients(x, here, None if batch is None else Batch(here, batch.indices))

    def _hessians(self, x: Tensor, rows: np.ndarray) -> Tensor:
        return self._whole._hessians(x, self._chosen[rows])

    def _hessian_changes(self, x: Tensor, since: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return self._whole._hessian_changes(x, since, self._chosen[rows])

    def _products(self, x: Tensor, v: Tensor, rows: np.ndarray) -> Tensor:
        return self._whole._products(x, v, self._chosen[rows])

    def _spans(self, rows: np.ndarray) -> tuple[Tensor, float]:
        return self._whole._spans(self._chosen[rows])


class Problem(Entry, ABC):
    """A problem of the catalogue: its data, its workers, how rows are dealt. `host` gives what a block computes."""

    kind: ClassVar[str] = "problem"

    @property
    @abstractmethod
    def n(self) -> int:
        """The number of workers."""

    @abstractmethod
    def oracles(self, block: Block, data_dir: Path | None = None) -> Oracles:
        """The oracles of the workers in `block`.

        Raises ValueError where the data are absent or do not fit (more workers than rows, not two classes).
        """

    def host(self, block: Block, data_dir: Path | None = None) -> Oracles:
        """The oracles of a block, with the server's copy of worker 0's function made where a method asks for it."""
        oracles = self.oracles(block, data_dir)
        oracles._server = lambda: self.oracles(Block(0, 1, self.n), data_dir)
        oracles._everyone = lambda: self.oracles(Block.whole(self.n), data_dir)
        return oracles

    @abstractmethod
    def constants(self, data_dir: Path | None = None) -> Constants:
        """The constants, the same bits on every call and process."""

    def smoothness_matrices(self, data_dir: Path | None = None) -> Tensor | None:
        """L_i with f_i(y) <= f_i(x) + <grad f_i(x), y - x> + <L_i (y - x), y - x> / 2, float64 of shape (n, d, d).

        Symmetric, without negative eigenvalues, the same tensor on every call; None where the problem knows none.
        """
        return None

    def solution(self, data_dir: Path | None = None) -> Solution | None:
        """A certified reference solution, or None where there is none (non-convex problems)."""
        return None

    def fingerprint(self, data_dir: Path | None = None) -> str:
        """A hash of everything that defines f: data, split, regulariser."""
        return hashlib.sha256(str(self).encode()).hexdigest()


P = ParamSpec("P")
R = TypeVar("R")


def single_threaded(function: Callable[P, R]) -> Callable[P, R]:
    """Runs a function's dense algebra on one thread of torch, so that its bits do not depend on how many there are."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return function(*args, **kwargs)
        finally:
            torch.set_num_threads(threads)

    return run
