"""Low-rank compressors in training: EF21's theorem, bytes, quality, conditions, others at equal bytes, and seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from laconic.core.problem import Block, Constants, Problem
from laconic.core.rows import norm2
from laconic.core.spec import parse
from laconic.lab.figures import Grid, Panel, Series
from laconic.lab.recipe import Outcome, Ruling, Verdict
from laconic.lab.run import run
from laconic.lab.trace import numbers
from laconic.problems._images import HELD
from laconic.recipes._common import ruled, seeds_of
from laconic.recipes._low_rank_contest import (
    ALTERNATING,
    BARE,
    DECOMPOSITIONS,
    DENSE,
    EF14,
    LONG,
    NATURAL,
    NETWORKS,
    OTHERS,
    OURS,
    POWERSGD,
    QSGD,
    QSGD_SHIFTED,
    SECONDS,
    SVD,
    TOPK,
    Arena,
    Contest,
    Raced,
)

_SHOWN = (DENSE, *DECOMPOSITIONS, POWERSGD, TOPK, QSGD, NATURAL)
_KILO = 1000.0
_BYTES = "uplink per worker [kB]"
_LESS = 1.5  # times less bytes are what counts as a reduction
_LOSS_MORE = 0.10  # what counts as a significant loss of quality


# ---- EF21's theorem --------------------------------------------------------------------------------------------------


def theorem(arena: Arena, seeds: int, rounds: int) -> Outcome:
    """EF21 at its theorem's step with alpha = r / min(m, n): mean ||grad f||^2 against the bound, at every horizon."""
    problem = parse(arena.problem)
    assert isinstance(problem, Problem)
    oracles = problem.oracles(Block.whole(problem.n), arena.data_dir)
    alpha = 1.0 / min(oracles.shape)
    theta = 1.0 - math.sqrt(1.0 - alpha)
    c: Constants = problem.constants(arena.data_dir)
    assert c.L is not None and c.L_tilde is not None
    step = 1.0 / (float(c.L) + float(c.L_tilde) * math.sqrt((1.0 - alpha) / theta**2))
    start = oracles.start()
    above = float(oracles.values(start).mean()) - arena.best
    error = (1.0 - alpha) * float(norm2(oracles.gradients(start)).mean())
    methods = [(label, f"gd(ef21({text.format(rank=1)}), step={step!r})") for label, text in DECOMPOSITIONS.items()]
    runs = run(arena.problem, methods, rounds=rounds, seeds=seeds, data_dir=arena.data_dir)
    horizon = np.arange(1.0, rounds + 1.0)
    bound = 2.0 * above / (step * horizon) + error / (theta * horizon)
    worst, lines = {}, []
    for label, _ in methods:
        squares = np.mean([numbers(one, "grad_norm2")[:rounds] for one in seeds_of(runs, label)], axis=0)
        means = np.cumsum(squares) / horizon
        worst[label] = float((means / bound).max())
        lines.append(Series(label, horizon, means))
    lines.append(Series("bound", horizon, bound, dashed=True))
    most = max(worst.values())
    return Outcome(
        [
            Verdict(
                "fits-ef21",
                "such operators can be put into methods of distributed optimization (EF21 is cited)",
                ruled(most <= 1.0),
                most,
                f"at the step of EF21's theorem with α = r/min(m, n) = 1/{min(oracles.shape)} the mean of ‖∇f‖² over "
                f"T rounds is at most {worst['SVD']:.2f} (SVD), {worst['randomised SVD']:.2f} (randomised SVD) and "
                f"{worst['power iteration']:.2f} (power iteration, which has no α) of the bound, for every T up to "
                f"{rounds}; constants are estimates",
            )
        ],
        {
            "theorem": Grid(
                f"EF21 with rank 1 at its theorem's step on {arena.problem}: the mean of ‖∇f‖² so far and what the "
                "theorem allows.",
                [[Panel(arena.name, "rounds T", "mean ‖∇f‖² up to T", lines, "xy")]],
            )
        },
        {},
    )


# ---- contests --------------------------------------------------------------------------------------------------------


def training(met: Sequence[Contest]) -> Outcome:
    """All claims about training."""
    table = _table(met)
    verdicts = [_bytes(met), _quality(met), _conditions(met), _memory(met), _others(met), _seconds(met)]
    return Outcome(verdicts, _figures(met), {"contests": table})


def _above(one: Contest, label: str) -> float:
    """How far above the least value a method ends."""
    return one.raced[label].end("f") - one.arena.best


def _gain(one: Contest, label: str, column: str = "uplink") -> float:
    """How many times less a method needs than all that no compression spends, to the loss at which that ends."""
    dense = one.raced[DENSE]
    return dense.end(column) / one.raced[label].to(dense.end("f"), column)


def _ours(one: Contest) -> tuple[str, ...]:
    return tuple(label for label in OURS if label in one.raced)


def _table(met: Sequence[Contest]) -> pd.DataFrame:
    rows = []
    for one in met:
        for label, raced in one.raced.items():
            row = {"problem": one.arena.name, "method": label, "f − least": _above(one, label)}
            row |= {"accuracy": raced.end("accuracy"), "‖∇f‖²": raced.end("grad_norm2"), "rounds": raced.end("rounds")}
            row |= {"kB": raced.end("uplink") / _KILO, "times less bytes": _gain(one, label)}
            row |= {f"times less {column}": _gain(one, label, column) for column in SECONDS}
            rows.append(row | {"winner": raced.spec, "edge": raced.edge})
    return pd.DataFrame(rows)


def _bytes(met: Sequence[Contest]) -> Verdict:
    gains = {one.arena.name: max(_gain(one, label) for label in _ours(one)) for one in met}
    plain = [_gain(one, label) for one in met for label in DECOMPOSITIONS]
    saved = sum(gain >= _LESS for gain in gains.values())
    return Verdict(
        "communication",
        "low-rank compression reduces the cost of communication (introduction)",
        Ruling.HOLDS if saved == len(met) else Ruling.CORRECTED if saved else Ruling.FAILS,
        min(gains.values()),
        "to the loss at which tuned gradient descent without compression ends, the best low-rank method sends "
        + _listed(gains, "{:.1f}")
        + f" times less (significant: {_LESS:.1f} times); the three in EF21 send {min(plain):.1f} to {max(plain):.1f} "
        "times less",
    )


def _quality(met: Sequence[Contest]) -> Verdict:
    """Against no compression after as many rounds: what is lost by sending less in each of them."""
    losses, points, unsure = {}, {}, {}
    for one in met:
        best = one.best(_ours(one))
        losses[one.arena.name] = _above(one, best) / _above(one, LONG)
        ours, long = one.raced[best].end("accuracy"), one.raced[LONG].end("accuracy")
        if math.isfinite(ours):
            points[one.arena.name] = 100.0 * (long - ours)
            unsure[one.arena.name] = 200.0 * math.sqrt((ours * (1.0 - ours) + long * (1.0 - long)) / HELD)
    accurate = all(drop <= unsure[name] for name, drop in points.items())
    low = max(losses.values()) <= 1.0 + _LOSS_MORE
    ruling = Ruling.HOLDS if accurate and low else Ruling.CORRECTED if accurate else Ruling.FAILS
    return Verdict(
        "quality",
        "without significant loss of the quality of training (introduction)",
        ruling,
        max(losses.values()),
        "against no compression after as many rounds, tuned anew, the best low-rank method's loss above the least one "
        "is "
        + _listed(losses, "{:.2f}")
        + f" times as high (significant: over {1.0 + _LOSS_MORE:.1f}), and its accuracy on held-out pictures lower by "
        + _listed(points, "{:.1f}")
        + f" points (significant: twice the standard error, {min(unsure.values()):.1f})",
    )


def _conditions(met: Sequence[Contest]) -> Verdict:
    """The gain at equal bytes under each of the conditions."""
    gains = {one.arena.name: _above(one, DENSE) / _above(one, one.best(_ours(one))) for one in met}
    return Verdict(
        "conditions",
        "the methods are effective on real data and under different conditions of training (introduction)",
        ruled(min(gains.values()) > 1.0),
        min(gains.values()),
        "at equal bytes the loss above the least one is "
        + _listed(gains, "{:.1f}")
        + " times lower than without compression; PowerSGD's all-reduce needs everybody, so it is not among them where "
        "workers sleep",
    )


def _memory(met: Sequence[Contest]) -> Verdict:
    """Without error feedback, in either of its forms."""
    bare = {one.arena.name: _above(one, BARE) / _above(one, SVD) for one in met}
    older = [_above(one, SVD + EF14) / _above(one, SVD) for one in met]
    slopes = [one.raced[SVD + EF14].end("grad_norm2") / one.raced[SVD].end("grad_norm2") for one in met]
    gain = min(bare.values())
    ruling = Ruling.HOLDS if gain > 1.0 else Ruling.CORRECTED if max(bare.values()) > 1.0 else Ruling.FAILS
    return Verdict(
        "error-feedback",
        "the place of such operators is in methods with error feedback (EF21 is cited; EF14 and no memory beside it)",
        ruling,
        gain,
        "SVD without a memory ends above the least loss "
        + _listed(bare, "{:.1f}")
        + f" times as high as in EF21; EF14 ends {min(older):.2f} to {max(older):.2f} times as high, with ‖∇f‖² "
        f"{min(slopes):.1f} to {max(slopes):.1f} times EF21's",
    )


def _others(met: Sequence[Contest]) -> Verdict:
    """Against TopK, QSGD and natural compression at equal bytes."""
    ratios, winners = {}, {}
    for one in met:
        best, other = one.best(_ours(one)), one.best(OTHERS)
        ratios[one.arena.name] = _above(one, best) / _above(one, other)
        winners[other] = winners.get(other, 0) + (ratios[one.arena.name] >= 1.0)
    against = {label: sum(_above(one, one.best(_ours(one))) < _above(one, label) for one in met) for label in OTHERS}
    won = sum(ratio < 1.0 for ratio in ratios.values())
    ruling = Ruling.HOLDS if won == len(met) else Ruling.CORRECTED if any(against.values()) else Ruling.FAILS
    return Verdict(
        "others",
        "the potential of compression is not exhausted by the known operators; low rank improves on them",
        ruling,
        max(ratios.values()),
        "at equal bytes the best low-rank method's loss above the least one is "
        + _listed(ratios, "{:.2f}")
        + " times that of the best other; it is lower than "
        + ", ".join(f"{label}'s in {count} of {len(met)}" for label, count in against.items()),
    )


def _seconds(met: Sequence[Contest]) -> Verdict:
    """Simulated time on two networks; computing is not counted."""
    gains = [{one.arena.name: max(_gain(one, label, name) for label in _ours(one)) for one in met} for name in SECONDS]
    even, every = min(gains[0].values()), [gain for found in gains for gain in found.values()]
    ruling = Ruling.HOLDS if min(every) > 1.0 else Ruling.CORRECTED if max(every) > 1.0 else Ruling.FAILS
    return Verdict(
        "speed",
        "the speed of training improves (aim of the experiment)",
        ruling,
        even,
        f"on lines of {NETWORKS[0].name} to the loss of no compression: "
        + _listed(gains[0], "{:.2f}")
        + f" times faster, for a round costs its latency and the dense model down; with {NETWORKS[1].name} "
        + _listed(gains[1], "{:.2f}")
        + " times (64-bit numbers, computing not counted)",
    )


def _listed(values: dict[str, float], form: str) -> str:
    return ", ".join(f"{form.format(value)} ({name})" for name, value in values.items())


# ---- figures ---------------------------------------------------------------------------------------------------------


def _line(raced: Raced, label: str, column: str, below: float = 0.0) -> Series:
    """The median over seeds of a column over bytes."""
    length = min(map(len, raced.curves))
    values = np.median([curve[column].to_numpy()[:length] for curve in raced.curves], axis=0)
    spent = np.median([curve["uplink"].to_numpy()[:length] for curve in raced.curves], axis=0)
    return Series(label, spent / _KILO, values - below)


def _figures(met: Sequence[Contest]) -> dict[str, Grid]:
    names = list(dict.fromkeys(one.arena.problem_name for one in met))
    rows = [[one for one in met if one.arena.problem_name == name] for name in names]
    loss, memory = [], []
    for row in rows:
        loss.append([Panel(one.arena.name, _BYTES, "f − least f", _shown(one)) for one in row])
        memory.append(
            [Panel(one.arena.name, _BYTES, "‖∇f‖²", _memories(one)) for one in row if one.arena.conditions != "i.i.d."]
        )
    accuracies = [
        Panel(one.arena.conditions, _BYTES, "accuracy, held out", _shown(one, "accuracy", 0.0), "")
        for one in met
        if one.arena.problem_name == "network"
    ]
    return {
        "loss": Grid(
            "Loss above the least one (autoencoder: what principal components leave; network: cross-entropy, 0) over "
            "bytes. SVD, randomised SVD, power iteration and TopK in EF21; QSGD by itself or in DASHA, natural by "
            "itself or in EF21, whichever ends lower. Medians over seeds not used for tuning; the network's layers lie "
            "in one matrix [W; b; V].",
            loss,
        ),
        "accuracy": Grid("The network's accuracy on held-out pictures, over bytes.", [accuracies]),
        "memories": Grid(
            "What memory the decompositions have: none, EF14 and EF21 (PowerSGD has its own, of EF14's kind).", memory
        ),
    }


def _shown(one: Contest, column: str = "f", below: float | None = None) -> list[Series]:
    least = one.arena.best if below is None else below
    lines = []
    for label in _SHOWN:
        chosen = one.best((QSGD, QSGD_SHIFTED)) if label == QSGD else label
        if chosen in one.raced:
            lines.append(_line(one.raced[chosen], label, column, least))
    return lines


def _memories(one: Contest) -> list[Series]:
    labels = {BARE: BARE} | {f"{label}, EF21": label for label in DECOMPOSITIONS}
    labels |= {label + EF14: label + EF14 for label in DECOMPOSITIONS} | {POWERSGD: POWERSGD, ALTERNATING: ALTERNATING}
    return [_line(one.raced[label], name, "grad_norm2") for name, label in labels.items() if label in one.raced]
