"""Recipe: low-rank decompositions as compressors, inside error feedback and PowerSGD, against TopK, QSGD, natural."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd

from laconic.core.entry import Count, Interval, Source
from laconic.core.problem import Block, Problem
from laconic.core.spec import parse
from laconic.lab.figures import Grid
from laconic.lab.recipe import Bench, Outcome, Recipe
from laconic.problems.autoencoder import Autoencoder
from laconic.recipes._common import timed
from laconic.recipes._low_rank_contest import SVD, Arena, Contest, contests
from laconic.recipes._low_rank_operators import Moment, moments, operators, safe_step, spectra
from laconic.recipes._low_rank_training import theorem, training

_MNIST_ROUNDS = 10  # of EF21 before the last spectra are taken


@dataclass(frozen=True)
class LowRank(Recipe):
    """Low-rank decompositions as compressors: what they keep, and what they bring in training at equal bytes.

    SVD, randomised SVD and power iteration inside EF21 and EF14, and PowerSGD, against TopK, QSGD and natural
    compression, on a linear autoencoder and a small network over pictures of digits, alike and unlike workers, all or
    some of them taking part. Every step is tuned on some seeds and judged on others.

    Parameters
    ----------
    workers : of the autoencoder; the network has half as many.
    features : of the autoencoder.
    hidden : units of the network.
    messages : the budget, in dense messages per worker that takes part.
    share : the probability with which a worker takes part under partial participation.
    rank : the largest rank tried; the others are its halves.
    steps : powers of two times 1/L that are tried at first, from 1 on; from three on further where the best is an end.
    conditions : how many of three: i.i.d.; sorted by digit with partial participation; sorted by digit.
    network_conditions : how many of them for the network, whose gradients take longer.
    seeds : for what is random.
    draws : of randomised operators.

    >>> LowRank().small().features
    6
    """

    workers: Annotated[int, Count(2)] = 8
    features: Annotated[int, Count(3)] = 16
    hidden: Annotated[int, Count(3)] = 32
    messages: Annotated[float, Interval(1.0)] = 12.0
    share: Annotated[float, Interval(0.0, 1.0, open="low")] = 0.3
    rank: Annotated[int, Count(1)] = 2
    steps: Annotated[int, Count(1)] = 3
    conditions: Annotated[int, Count(1)] = 3
    network_conditions: Annotated[int, Count(1)] = 3
    seeds: Annotated[int, Count(1)] = 3
    draws: Annotated[int, Count(10)] = 1000

    name: ClassVar[str] = "low_rank"
    example: ClassVar[str] = "low_rank"
    title: ClassVar[str] = "Low-rank decompositions as compressors in distributed and federated learning"
    source: ClassVar[Source | None] = Source(
        "Rebrikov, Zyl, Beznosikov", 2024, "Low-rank decompositions in distributed and federated learning (in Russian)"
    )

    def small(self) -> LowRank:
        return LowRank(
            workers=4,
            features=6,
            hidden=8,
            messages=8.0,
            rank=1,
            steps=2,
            conditions=2,
            network_conditions=1,
            seeds=1,
            draws=30,
        )

    def run(self, bench: Bench) -> Outcome:
        minutes: dict[str, float] = {}
        with timed(minutes, "all contests, by the clock"):
            met = contests(self._arenas(bench), bench.jobs)
        with timed(minutes, "spectra and operators"):
            gradients = self._gradients(met, bench)
            parts = [operators(gradients, self.draws), spectra(gradients)]
        with timed(minutes, "EF21's theorem"):
            parts.append(theorem(met[0].arena, self.seeds, 1000 if self.steps > 2 else 150))
        parts.append(training(met))
        for one in met:
            minutes |= {f"{one.arena.name}: {label}": raced.minutes for label, raced in one.raced.items()}
        verdicts = [verdict for part in parts for verdict in part.verdicts]
        figures: dict[str, Grid] = {}
        tables: dict[str, pd.DataFrame] = {}
        for part in parts:
            figures |= part.figures
            tables |= part.tables
        return Outcome(verdicts, figures, tables, minutes)

    # ---- sizes ----------------------------------------------------------------------------------------------------

    def _arenas(self, bench: Bench) -> list[Arena]:
        some = f"sorted, {self.share:.0%} active"
        conditions = [("i.i.d.", "shuffled", 1.0), (some, "sorted", self.share), ("sorted", "sorted", 1.0)]
        network = f"network(hidden={self.hidden}, workers={max(2, self.workers // 2)}, split='{{split}}')"
        problems = {
            "autoencoder": (
                f"autoencoder(features={self.features}, workers={self.workers}, split='{{split}}')",
                conditions[: self.conditions],
            ),
            "network": (network, conditions[: self.network_conditions]),
        }
        exponents = range(self.steps)
        found = []
        for name, (spec, chosen) in problems.items():
            for condition, split, share in sorted(chosen, key=lambda one: -one[2]):
                problem = spec.format(split=split)
                found.append(
                    Arena(
                        problem_name=name,
                        conditions=condition,
                        problem=problem,
                        share=share,
                        messages=self.messages,
                        best=_least(_parsed(problem), bench),
                        ranks=_halves(self.rank),
                        levels=(16, 64) if self.steps > 2 else (64,),
                        multiples=tuple(2.0**power for power in exponents),
                        tuning=(0, 1) if self.steps > 2 else (0,),
                        seeds=self.seeds,
                        widen=4 * int(self.steps > 2),
                        records=60 if self.steps > 2 else 12,
                        data_dir=bench.data_dir,
                    )
                )
        return found

    def _gradients(self, met: Sequence[Contest], bench: Bench) -> dict[str, list[Moment]]:
        """What is sent in training: on the problems of the contests, and on MNIST where it is at hand."""
        found = {}
        for one in met:
            if one.arena.share == 1.0:
                problem, method = _parsed(one.arena.problem), _parsed(one.raced[SVD].spec)
                oracles = problem.oracles(Block.whole(problem.n), bench.data_dir)
                found[one.arena.name] = moments(oracles, float(method.step), int(one.raced[SVD].end("rounds")))
        if self.conditions >= 3:
            found |= self._mnist(bench)
        return found

    def _mnist(self, bench: Bench) -> dict[str, list[Moment]]:
        workers, found = max(2, self.workers // 2), {}
        for name, spec in (
            ("MNIST autoencoder", f"autoencoder(data='mnist', features={self.features}, workers={workers})"),
            ("MNIST network", f"network(data='mnist', hidden={self.hidden}, workers={workers}, split='sorted')"),
        ):
            problem = _parsed(spec)
            try:
                oracles = problem.oracles(Block.whole(problem.n), bench.data_dir)
            except ValueError:  # MNIST is not there, and nothing depends on it
                return {}
            found[name] = moments(oracles, safe_step(oracles), _MNIST_ROUNDS)
        return found


def _parsed(spec: str) -> Any:
    return parse(spec)


def _halves(rank: int) -> tuple[int, ...]:
    """The rank, its half, and so on down to 1."""
    return tuple(sorted({max(1, rank >> shift) for shift in range(rank.bit_length())}))


def _least(problem: Problem, bench: Bench) -> float:
    """The least value: what principal components leave of the pictures; 0 for a cross-entropy."""
    if not isinstance(problem, Autoencoder):
        return 0.0
    samples = problem.samples(bench.data_dir)
    square = samples.images.scale**2
    parts = [samples.part(worker) for worker in range(problem.workers)]
    moment = sum(square * (part.T @ part) / len(part) for part in parts) / problem.workers
    return float(np.linalg.eigvalsh(moment)[: -problem.features].sum())
