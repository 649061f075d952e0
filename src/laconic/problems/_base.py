"""What the problems made of linear models share: oracles, constants and solutions of dealt rows and a model."""

from __future__ import annotations

import functools
import hashlib
from abc import abstractmethod
from pathlib import Path

import torch
from torch import Tensor

from laconic.core.problem import Block, Constants, Problem, Solution
from laconic.problems import _cache
from laconic.problems._linear import Dealt, LinearOracles, Model
from laconic.problems._solve import least_norm, minimise
from laconic.problems._spectra import DENSE, linear_constants


class LinearProblem(Problem):
    """A problem whose f_i are linear models on dealt rows. Subclasses give the rows and the model."""

    @abstractmethod
    def model(self) -> Model:
        """The loss and the regularisers."""

    @abstractmethod
    def dealt(self, data_dir: Path | None = None) -> Dealt:
        """The rows in the order of the workers; the same object on every call."""

    def oracles(self, block: Block, data_dir: Path | None = None) -> LinearOracles:
        """The oracles of a block. Raises ValueError where data are absent, broken, or fewer than the workers."""
        if block.n != self.n:
            raise ValueError(f"{self} : the block is one of {block.n} workers and the problem has {self.n}")
        return LinearOracles(self.dealt(data_dir), self.model(), block)

    def constants(self, data_dir: Path | None = None) -> Constants:
        """The constants, kept on disk (see LACONIC_CACHE) so that every process has the same bits."""
        return _constants(self.dealt(data_dir), self.model(), self.fingerprint(data_dir))

    def smoothness_matrices(self, data_dir: Path | None = None) -> Tensor | None:
        """A_i'A_i times the loss's largest curvature / m_i, and the regularisers' on the diagonal."""
        return _matrices(self.dealt(data_dir), self.model())

    def solution(self, data_dir: Path | None = None) -> Solution | None:
        """The minimiser with its certificate ||grad f||^2 / (2 l2), kept on disk; None without convexity.

        Without l2 there is one of squared losses only: the least-norm minimiser, by ||grad f||^2 / (2 mu_pl).
        """
        return _solution(self.dealt(data_dir), self.model(), self.fingerprint(data_dir))

    def fingerprint(self, data_dir: Path | None = None) -> str:
        """A hash of the rows, who holds them, the loss and the regularisers."""
        model = self.model()
        text = f"{_digest(self.dealt(data_dir))} {type(model.loss).__name__} {model.l2!r} {model.nonconvex!r}"
        return hashlib.sha256(text.encode()).hexdigest()


@functools.lru_cache(maxsize=2)
def _matrices(data: Dealt, model: Model) -> Tensor:
    matrices = torch.empty(data.n, data.d, data.d, dtype=torch.float64)
    for worker, matrix in enumerate(matrices):
        part = data.part(worker)
        matrix.copy_(torch.from_numpy((part.T @ part).toarray() * (model.loss.curvature / part.shape[0])))
        matrix.diagonal().add_(model.regularity)
    return matrices


@functools.lru_cache(maxsize=16)
def _digest(data: Dealt) -> str:
    return data.digest()


@functools.lru_cache(maxsize=16)
def _solution(data: Dealt, model: Model, key: str) -> Solution | None:
    oracles = LinearOracles(data, model, Block.whole(data.n))
    if model.convex and model.l2 > 0.0:
        return _cache.solution(key, lambda: minimise(oracles, data))
    if model.quadratic and data.d <= DENSE:
        return _cache.solution(key, lambda: least_norm(oracles, data))
    return None


@functools.lru_cache(maxsize=16)
def _constants(data: Dealt, model: Model, key: str) -> Constants:
    return _cache.constants(key, lambda: linear_constants(data, model, _solution(data, model, key)))
