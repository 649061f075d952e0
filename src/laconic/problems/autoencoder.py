"""The linear autoencoder of the PermK paper, with its dial for how alike the workers are."""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from torch import Tensor

from laconic.core.entry import Count, Interval, OneOf, Source
from laconic.core.keys import Keys
from laconic.core.problem import Block, Constants, Oracles, Problem
from laconic.problems import _cache, _images, _split
from laconic.problems._around import estimates
from laconic.problems._bilinear import BilinearOracles, Samples

SPLITS = ("shuffled", "contiguous", "sorted")
GRAM_BYTES = 1 << 30  # of all workers' d x d matrices beyond which samples are gone through instead


@dataclass(frozen=True)
class Autoencoder(Problem):
    """f_i(D, E) = mean_a ||D E a - a||^2 + penalty ||D E - I||_F^2 over worker i's pictures a, in [0, 1]^pixels.

    D is (pixels, features) and E (features, pixels). x is one matrix, [D; E'] of shape (2 pixels, features), so that
    compressors of matrices and `powersgd` see it as it is.

    The dial: the pictures are dealt in workers + 1 equal parts, the first of which is held back. Every picture of a
    worker is replaced, with probability `homogeneity`, by the one at the same place in the held part. With 1 all f_i
    are equal, with 0 no two workers share a picture.

    Not convex: no solution and no gap. Smoothness is estimated at x^0 and at points around it, so every stepsize from
    theory leans on estimates. x^0 is normal with variance 1 / pixels.

    Parameters
    ----------
    data : "digits" (8 x 8, embedded, 1500 of them) or "mnist" (28 x 28, from --data-dir, else LACONIC_DATA, 60,000).
    features : what a picture is encoded in.
    workers : n. What does not divide evenly by workers + 1 is left out.
    homogeneity : the dial.
    penalty : the weight of ||D E - I||_F^2; the paper's experiments take 0 to 1e-2.
    split : "shuffled", "contiguous" (the files' order) or "sorted" (by digit; for unlike workers, with homogeneity 0).
    seed : of the split, of the dial and of x^0.

    Raises
    ------
    ValueError : data absent or broken, or not one picture for each of workers + 1 parts.

    Examples
    --------
    >>> problem = Autoencoder(features=4, workers=5, homogeneity=1.0)
    >>> oracles = problem.oracles(Block.whole(5))
    >>> oracles.shape, oracles.values(oracles.start()).unique().numel()
    ((128, 4), 1)
    """

    data: Annotated[str, OneOf(_images.NAMES)] = "digits"
    features: Annotated[int, Count(1)] = 16
    workers: Annotated[int, Count(1)] = 10
    homogeneity: Annotated[float, Interval(0.0, 1.0)] = 0.0
    penalty: Annotated[float, Interval(0.0)] = 0.0
    split: Annotated[str, OneOf(SPLITS)] = "shuffled"
    seed: Annotated[int, Count(0)] = 0

    name: ClassVar[str] = "autoencoder"
    aliases: ClassVar[tuple[str, ...]] = ("linear_autoencoder",)
    example: ClassVar[str] = "autoencoder(data='digits', features=16, workers=10, homogeneity=0.5)"
    source: ClassVar[Source | None] = Source(
        authors="Rafał Szlendak, Alexander Tyurin, Peter Richtárik",
        year=2021,
        arxiv="2110.03300",
        where="experiments with autoencoders",
        title="Permutation Compressors for Provably Faster Distributed Nonconvex Optimization",
    )

    @property
    def n(self) -> int:
        """The number of workers."""
        return self.workers

    def samples(self, data_dir: Path | None = None) -> Samples:
        """Who holds which pictures; the same object on every call."""
        return _samples(self, _images.load(self.data, data_dir))

    def oracles(self, block: Block, data_dir: Path | None = None) -> Oracles:
        """The oracles of a block."""
        return _oracles(self, block, data_dir)

    def constants(self, data_dir: Path | None = None) -> Constants:
        """Estimates of smoothness, kept on disk so that every process has the same bits."""
        whole = Block.whole(self.n)
        return _cache.constants(self.fingerprint(data_dir), lambda: estimates(_oracles(self, whole, data_dir)))

    def fingerprint(self, data_dir: Path | None = None) -> str:
        """A hash of the pictures, who holds them, the penalty and x^0."""
        return _fingerprint(self, self.samples(data_dir))


def _oracles(problem: Autoencoder, block: Block, data_dir: Path | None) -> BilinearOracles:
    samples = problem.samples(data_dir)
    d, count = samples.images.d, int(samples.starts[1])
    grams = 2 * count > d and 8 * d * d * problem.workers <= GRAM_BYTES
    return BilinearOracles(samples, problem.penalty, _start(problem, d), grams, block)


def _start(problem: Autoencoder, d: int) -> Tensor:
    draws = Keys(problem.seed, 0, "problem/autoencoder", np.arange(1), 1).normal(2 * d * problem.features)
    return draws.view(2 * d, problem.features) / math.sqrt(d)


@functools.lru_cache(maxsize=4)
def _samples(problem: Autoencoder, images: _images.Images) -> Samples:
    n, total = problem.workers, len(images.labels)
    if n + 1 > total:
        raise ValueError(
            f"Autoencoder(workers={n}) : {total} pictures are dealt in workers + 1 parts; take fewer workers"
        )
    starts = _split.ends(total, n + 1, drop_last=True)
    order = _split.named(problem.split, 1.0).order(images.labels, starts, problem.seed)
    parts = order[: starts[-1]].reshape(n + 1, -1)
    replaced = Keys(problem.seed, 0, "split/homogeneity", np.arange(n), n).uniform(parts.shape[1]).numpy()
    chosen = np.where(replaced < problem.homogeneity, parts[0], parts[1:])
    return Samples(images, starts[:-1], np.ascontiguousarray(chosen.reshape(-1)))


@functools.lru_cache(maxsize=4)
def _fingerprint(problem: Autoencoder, samples: Samples) -> str:
    digest = hashlib.sha256(f"{problem.penalty!r} {samples.images.scale!r} {samples.starts.tolist()}".encode())
    start = _start(problem, samples.images.d)
    for array in (samples.images.levels, samples.chosen, start.numpy()):
        digest.update(repr(array.shape).encode() + array.tobytes())
    return digest.hexdigest()
