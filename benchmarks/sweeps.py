"""Tuning curves together and one by one: the time of a sweep of stepsizes and seeds, in one process.

    python benchmarks/sweeps.py [--rounds 1000] [--repeats 3] [--threads 1]

The same curves, with the same bits, are made by `laconic.lab.sweep`: as a stack, and one after another. Methods without
randomness have one curve for all seeds, which a sweep notices; the column "one seed" leaves that gain out. At n = 100
workers a run alone is already long vectors: what is left is memory traffic and the selection of TopK itself, which a
stack cannot save.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from laconic.core.method import Method
from laconic.core.spec import parse
from laconic.lab.plan import Limits
from laconic.lab.sweep import Field, Recording, alone, sweep

STEPS, SEEDS = 16, 3
CASES = (
    ("quadratic(d=1000, workers=10, noise=0.1)", "gd(ef21(topk(k=20)))"),
    ("quadratic(d=1000, workers=100, noise=0.1)", "gd(ef21(topk(k=20)))"),
    ("quadratic(d=1000, workers=10, noise=0.1)", "gd(marina(randk(k=20)))"),
    ("quadratic(d=100, workers=10, noise=0.1)", "gd(ef21(topk(k=5)))"),
    ("quadratic(d=100, workers=10, noise=0.1)", "gd(marina(randk(k=5)))"),
)


def timed(what: Callable[[], Any]) -> tuple[float, Any]:
    # on one thread the time that this process was given, which other programs do not lengthen
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    found = what()
    return clock() - begin, found


def one_by_one(
    field: Field, methods: Sequence[Method], limits: Limits, every: int, seeds: int
) -> list[list[Recording]]:
    return [[alone(field, method, seed, limits, every) for method in methods] for seed in range(seeds)]


def together(field: Field, methods: Sequence[Method], limits: Limits, every: int, seeds: int) -> list[list[Recording]]:
    found: list[list[Recording]] = []
    for seed in range(seeds):
        if found and not any(one.random for one in found[0]):
            found.append(found[0])
            continue
        curves, why = sweep(field, methods, seed, limits, every)
        assert why == "", why
        found.append(curves)
    return found


def same(a: list[list[Recording]], b: list[list[Recording]]) -> bool:
    pairs = [pair for left, right in zip(a, b, strict=True) for pair in zip(left, right, strict=True)]
    return all(np.array_equal(one[c], other[c], equal_nan=True) for one, other in pairs for c in one.columns)


def measure(problem: str, spec: str, rounds: int, repeats: int) -> None:
    found: Any = parse(problem)
    field, method = Field.of(found), parse(spec)
    # up to the theorem's stepsize, so that none of the curves ends early
    multiples = [f"{2.0 ** -(k / 4)}x" for k in range(STEPS)]
    methods: list[Any] = [dataclasses.replace(method, step=m).settled(field.setting) for m in multiples]  # type: ignore[type-var]
    limits, every = Limits.make(rounds, None, None, None), max(1, rounds // 200)
    together(field, methods, Limits.make(5, None, None, None), 1, 1)  # compiles
    one_by_one(field, methods[:1], Limits.make(5, None, None, None), 1, 1)
    times: dict[str, list[float]] = {"alone": [], "wide": [], "first": []}
    for _ in range(repeats):
        seconds, singles = timed(lambda: one_by_one(field, methods, limits, every, SEEDS))
        times["alone"].append(seconds)
        seconds, stacks = timed(lambda: together(field, methods, limits, every, SEEDS))
        times["wide"].append(seconds)
        times["first"].append(timed(lambda: together(field, methods, limits, every, 1))[0])
        assert same(singles, stacks)
    single, wide, first = (min(times[name]) for name in ("alone", "wide", "first"))
    print(f"{problem:<44}{spec:<26}{single:9.2f}{wide:9.2f}{single / wide:9.1f}{single / SEEDS / first:11.1f}")


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--rounds", type=int, default=1000)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    print(
        f"{STEPS} stepsizes x {SEEDS} seeds, {given.rounds} rounds, {given.threads} threads; seconds, best of repeats"
    )
    print(f"{'problem':<44}{'method':<26}{'alone':>9}{'together':>9}{'times':>9}{'one seed':>11}")
    for problem, spec in CASES:
        measure(problem, spec, given.rounds, given.repeats)


if __name__ == "__main__":
    main()
