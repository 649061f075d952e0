"""A small neural network that tells digits apart."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from laconic.core.entry import Count, Interval, OneOf, Source
from laconic.core.keys import Keys
from laconic.core.problem import Block, Constants, Oracles, Problem, single_threaded
from laconic.problems import _cache, _images, _split
from laconic.problems._module import Flat, Modules

SPLITS = ("shuffled", "contiguous", "sorted", "dirichlet")


class Perceptron(torch.nn.Module):
    """classes x tanh(inputs W + b) with W (pixels, hidden), b (hidden,) and the classes' rows stacked in one matrix."""

    def __init__(self, stacked: Tensor, pixels: int) -> None:
        super().__init__()
        self.stacked, self.pixels = torch.nn.Parameter(stacked), pixels

    def forward(self, inputs: Tensor) -> Tensor:
        """The logits (count, classes)."""
        d = self.pixels
        return torch.tanh(inputs @ self.stacked[:d] + self.stacked[d]) @ self.stacked[d + 1 :].T


@dataclass(frozen=True)
class Network(Problem):
    """Cross-entropy of a network with one hidden layer, tanh(a W + b) V', on pictures of ten digits, plus l2/2 ||x||^2.

    x is one matrix, [W; b; V] of shape (pixels + 1 + 10, hidden): a column is all that one hidden unit has. So
    compressors of matrices and `powersgd` see a matrix as it is, and the layers lie one after another when it is flat:
    `layers` gives their shapes, and `per_tensor(topk(k=0.01), sizes=(2048, 32, 320))` has their sizes (pixels * hidden,
    hidden, 10 * hidden), here for the digits and hidden=32. x^0 is uniform in +-1 / sqrt(inputs of a layer).

    Not convex: no solution and no gap. Smoothness is estimated at x^0 and at points around it, so every stepsize from
    theory leans on estimates; `accuracy` gives the share of held-out pictures that a model x gets right.

    Parameters
    ----------
    data : "digits" (8 x 8, embedded; 1500 to learn from, 297 held out) or "mnist" (28 x 28, from --data-dir, else
        LACONIC_DATA; 60,000 and 10,000).
    hidden : units.
    workers : n. All pictures are dealt, and sizes differ by at most one.
    split : "shuffled" (alike), "contiguous" (the files' order), "sorted" (by digit: as unlike as can be) or "dirichlet"
        (every worker has its own proportions of the digits, sizes equal all the same).
    concentration : of the Dirichlet split; small is more skewed.
    l2 : the weight of ||x||^2 / 2.
    seed : of the split and of x^0.

    Raises
    ------
    ValueError : data absent or broken, or more workers than pictures.

    Examples
    --------
    >>> problem = Network(hidden=8, workers=4)
    >>> problem.layers
    ((64, 8), (8,), (10, 8))
    >>> problem.accuracy(problem.oracles(Block.whole(4)).start()) < 0.3
    True
    """

    data: Annotated[str, OneOf(_images.NAMES)] = "digits"
    hidden: Annotated[int, Count(1)] = 32
    workers: Annotated[int, Count(1)] = 10
    split: Annotated[str, OneOf(SPLITS)] = "shuffled"
    concentration: Annotated[float, Interval(0.0, open="low")] = 0.5
    l2: Annotated[float, Interval(0.0)] = 0.0
    seed: Annotated[int, Count(0)] = 0

    name: ClassVar[str] = "network"
    example: ClassVar[str] = "network(data='digits', hidden=32, workers=10)"
    source: ClassVar[Source | None] = Source(
        authors="Yann LeCun, Léon Bottou, Yoshua Bengio, Patrick Haffner",
        year=1998,
        title="Gradient-based learning applied to document recognition",
    )

    @property
    def n(self) -> int:
        """The number of workers."""
        return self.workers

    @property
    def layers(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of W, b and V, which follow one another in x."""
        pixels = {"digits": 64, "mnist": 784}[self.data]
        return (pixels, self.hidden), (self.hidden,), (_images.CLASSES, self.hidden)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many coordinates each layer has."""
        return tuple(math.prod(shape) for shape in self.layers)

    def modules(self, data_dir: Path | None = None) -> Modules:
        """The network with everybody's pictures; the same object on every call."""
        return _modules(self, _images.load(self.data, data_dir))

    def oracles(self, block: Block, data_dir: Path | None = None) -> Oracles:
        """The oracles of a block."""
        return self.modules(data_dir).oracles(block)

    def constants(self, data_dir: Path | None = None) -> Constants:
        """Estimates of smoothness, kept on disk so that every process has the same bits."""
        return _cache.constants(self.fingerprint(data_dir), self.modules(data_dir).constants)

    def fingerprint(self, data_dir: Path | None = None) -> str:
        """A hash of the pictures, who holds them, and x^0."""
        return _fingerprint(self.modules(data_dir))

    @single_threaded
    def accuracy(self, x: Tensor, data_dir: Path | None = None) -> float:
        """The share of the held-out pictures whose digit the model x says."""
        images = _images.load(self.data, data_dir)
        module = Perceptron(x.reshape(-1, self.hidden).to(torch.float64), images.d)
        with torch.no_grad():
            said = module(torch.from_numpy(images.held_levels * images.scale)).argmax(dim=1)
        return float((said.numpy() == images.held_labels).mean())


@functools.lru_cache(maxsize=4)
def _fingerprint(modules: Modules) -> str:
    return modules.fingerprint()


@functools.lru_cache(maxsize=4)
def _modules(problem: Network, images: _images.Images) -> Modules:
    starts = _split.ends(len(images.labels), problem.workers, drop_last=False)
    order = _split.of_classes(problem.split, problem.concentration).order(images.labels, starts, problem.seed)
    parts = [order[low:high] for low, high in zip(starts, starts[1:], strict=False)]
    start = _start(problem, images.d)
    flat = Flat(Perceptron(start, images.d), torch.nn.functional.cross_entropy, problem.l2, tuple(start.shape))
    inputs = tuple(torch.from_numpy(images.levels[part] * images.scale) for part in parts)
    return Modules(flat, inputs, tuple(torch.from_numpy(images.labels[part]) for part in parts))


def _start(problem: Network, pixels: int) -> Tensor:
    rows = pixels + 1 + _images.CLASSES
    draws = Keys(problem.seed, 0, "problem/network", np.arange(1), 1).uniform(rows * problem.hidden)
    start = 2.0 * draws.view(rows, problem.hidden) - 1.0
    start[: pixels + 1] /= math.sqrt(pixels)
    start[pixels + 1 :] /= math.sqrt(problem.hidden)
    return start
