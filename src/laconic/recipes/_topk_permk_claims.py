"""What the tuned panels say of the claims about experiments: who wins where, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from laconic.lab.figures import Grid, Panel, Series
from laconic.lab.recipe import Outcome, Ruling, Verdict
from laconic.recipes._common import cost, line
from laconic.recipes._topk_permk_panels import BESIDE, COMBINED, DESCENT, LABELS, MARINA, MEMORIES, PLAIN, Cell

GRADIENT, GAP, BYTES = "‖∇f(x)‖²", "f(x) − f*", "uplink per worker [B]"
_BARE = ("TopK", "n TopK∘PermK", MARINA, DESCENT)
_FED = ("TopK EF14", "TopK EF21", *MEMORIES, MARINA)
_SHORT = ("TopK", "TopK EF14", "TopK EF21", "n TopK∘PermK", "TopK∘PermK EF21", MARINA)
_SMALL = 0.05  # noise up to here is low


def claims(cells: Sequence[Cell]) -> Outcome:
    """Verdicts, figures and tables."""
    verdicts = [
        _nonconvex(cells), _pays(cells), _nodes(cells), _together(cells), _low_noise(cells), _ef21(cells),
        _further(cells),
    ]  # fmt: skip
    figures = {
        "without-memory": _grid(cells, _BARE, "grad_norm2", GRADIENT, "Without memories: tuned steps, equal bytes."),
        "with-memory": _grid(cells, _FED, "grad_norm2", GRADIENT, "Memories, and MARINA: tuned steps, equal bytes."),
        "gap": _grid(cells, _SHORT, "gap", GAP, "The same curves by the gap, which falls slowly where L/μ is large."),
        "complexity": _complexity(cells),
    }
    scores = [{"n": c.n, "noise": c.noise, **{label: c.score(label) for label in LABELS}} for c in cells]
    tables = {
        "scores": pd.DataFrame(scores),
        "bytes": pd.DataFrame([_bytes(cell) for cell in cells]),
        "steps": pd.concat([cell.choices for cell in cells], ignore_index=True),
    }
    return Outcome(verdicts, figures, tables)


# ---- who wins --------------------------------------------------------------------------------------------------------


def _where(cells: Sequence[Cell]) -> str:
    return "; ".join(
        f"n = {n}: noise " + ", ".join(f"{c.noise:g}" for c in cells if c.n == n)
        for n in dict.fromkeys(c.n for c in cells)
    )


def _ratio(cell: Cell, one: str, other: str) -> float:
    """Bytes of one over bytes of the other, to the lowest level that both reach."""
    level = max(cell.least(one), cell.least(other)) * (1.0 + 1e-9)
    bytes_ = [cost(cell.runs[label], label, level, "uplink", "grad_norm2") for label in (one, other)]
    return bytes_[0] / bytes_[1] if bytes_[1] > 0.0 and math.isfinite(bytes_[0]) else math.inf


def _ruling(good: int, of: int) -> Ruling:
    """Holds everywhere, somewhere, nowhere."""
    return Ruling.HOLDS if good == of else Ruling.CORRECTED if good else Ruling.FAILS


def _nonconvex(cells: Sequence[Cell]) -> Verdict:
    shares = [cell.nonconvex / cell.n for cell in cells]
    good = [cell for cell, share in zip(cells, shares, strict=True) if share > 0.0]
    return Verdict(
        "nonconvex-workers",
        "the quadratics have nonconvex f_i (figure 1)",
        _ruling(len(good), len(cells)),
        max(shares),
        f"some f_i are not convex in {len(good)} of {len(cells)} panels ({_where(good) or 'none'}), at most "
        f"{max(shares):.0%} of them; with noise 0 all are convex",
    )


def _pays(cells: Sequence[Cell]) -> Verdict:
    ratios = []
    for cell in cells:
        best = cell.best([label for label in LABELS if label != DESCENT])
        ratios.append(_ratio(cell, best, DESCENT))
    good = sum(ratio < 1.0 for ratio in ratios)
    return Verdict(
        "compression-pays",
        "compressing what is sent reduces the cost of communication (motivation)",
        _ruling(good, len(cells)),
        max(ratios),
        f"to the level where gradient descent ends, the best method sends {min(ratios):.2g} to {max(ratios):.2g} times "
        f"its bytes, fewer in {good} of {len(cells)} panels",
    )


def _nodes(cells: Sequence[Cell]) -> Verdict:
    """Bytes of EF21 with TopK over those of MARINA with PermK: who wins, and what moves it more, n or the noise."""
    one, other = "TopK EF21", MARINA
    logs = {(cell.n, cell.noise): math.log2(_ratio(cell, one, other)) for cell in cells}
    counts, noises = sorted({n for n, _ in logs}), sorted({noise for _, noise in logs})
    by_n = max(_spread([logs[n, noise] for n in counts if (n, noise) in logs]) for noise in noises)
    by_noise = max(_spread([logs[n, noise] for noise in noises if (n, noise) in logs]) for n in counts)
    flips = min(logs.values()) < 0.0 < max(logs.values())
    ruling = Ruling.FAILS if not flips else Ruling.HOLDS if by_n > by_noise else Ruling.CORRECTED
    found = [2.0**value for value in logs.values()]
    theory = [_per_step(cell, one) / _per_step(cell, other) for cell in cells]
    raised = [float(np.median([_tuned(cell, label)["step / theorem"] for cell in cells])) for label in (one, other)]
    winner = "the winner changes" if flips else f"{one if max(found) < 1.0 else other} wins everywhere"
    return Verdict(
        "nodes-decide",
        "TopK and PermK approaches compete, mainly depending on the number of nodes (experiment reproduction)",
        ruling,
        max(found),
        f"EF21 with TopK, k = d/(10n), sends {min(found):.2g} to {max(found):.2g} times the bytes of MARINA with "
        f"PermK: {winner}; n moves the ratio by up to a factor of {2.0**by_n:.1f}, noise by {2.0**by_noise:.1f}; with "
        f"the theorems' steps, in bytes per length of step, it would be {min(theory):.2g} to {max(theory):.2g}: "
        f"tuning takes EF21's step to {raised[0]:g} times the theorem's, MARINA's to {raised[1]:g} times",
    )


def _spread(values: Sequence[float]) -> float:
    return max(values) - min(values)


def _tuned(cell: Cell, label: str) -> dict[str, float]:
    """Its row in the table of steps."""
    return cell.choices[cell.choices["method"] == label].iloc[0].to_dict()


def _per_step(cell: Cell, label: str) -> float:
    """Bytes of a round, the start left out, over the theorem's step."""
    rows, tuned = cell.runs[label].trace, _tuned(cell, label)
    spent = rows["uplink"].iloc[-1] - rows["uplink"].iloc[0]
    rounds = rows["rounds"].iloc[-1] - rows["rounds"].iloc[0]
    return float(spent / rounds * tuned["step / theorem"] / tuned["step"])


def _together(cells: Sequence[Cell]) -> Verdict:
    gains = {(c.n, c.noise): c.score(c.best(BESIDE)) - c.score(c.best(COMBINED)) for c in cells}
    good = [cell for cell in cells if gains[cell.n, cell.noise] > 0.0]
    return Verdict(
        "better-together",
        "TopK and PermK are combined for better performance (motivation)",
        _ruling(len(good), len(cells)),
        max(gains.values()),
        f"in equal bytes the best combination beats the best of TopK and PermK alone in {len(good)} of {len(cells)} "
        f"panels ({_where(good) or 'none'}); decades of ‖∇f‖² won: "
        + ", ".join(f"{gain:+.2f} (n = {n}, {noise:g})" for (n, noise), gain in gains.items()),
    )


def _low_noise(cells: Sequence[Cell]) -> Verdict:
    """The scaled combination against TopK, both without a memory."""
    gains = {(c.n, c.noise): c.score("TopK") - c.score("n TopK∘PermK") for c in cells}
    counts = sorted({n for n, _ in gains})
    ends = {n: sorted(noise for m, noise in gains if m == n) for n in counts}
    good = [n for n in counts if gains[n, ends[n][0]] > 0.0 and gains[n, ends[n][0]] > gains[n, ends[n][-1]]]
    return Verdict(
        "low-noise",
        "the combination is for low noise (results: experiments with low noise)",
        _ruling(len(good), len(counts)),
        gains[counts[-1], ends[counts[-1]][0]],
        "without memories n TopK∘PermK beats TopK by decades of ‖∇f‖²: "
        + "; ".join(
            f"n = {n}: " + ", ".join(f"{gains[n, noise]:+.2f} (noise {noise:g})" for noise in ends[n]) for n in counts
        ),
    )


def _ef21(cells: Sequence[Cell]) -> Verdict:
    forms = ("TopK EF14", "TopK EF21", *MEMORIES)
    best = {(cell.n, cell.noise): cell.best(forms) for cell in cells}
    good = [cell for cell in cells if best[cell.n, cell.noise].endswith("EF21")]
    others = sorted({label for label in best.values() if not label.endswith("EF21")})
    return Verdict(
        "ef21-best",
        "EF21 is the state of the art of error feedback",
        _ruling(len(good), len(cells)),
        len(good) / len(cells),
        f"of six tuned memories in equal bytes an EF21 form is best in {len(good)} of {len(cells)} panels "
        f"({_where(good) or 'none'})" + (f"; elsewhere {', '.join(others)}" if others else ""),
    )


def _further(cells: Sequence[Cell]) -> Verdict:
    low = [cell for cell in cells if cell.noise <= _SMALL]
    ratios = {(c.n, c.noise): _ratio(c, c.best(COMBINED), c.best(BESIDE)) for c in low}
    most = max(n for n, _ in ratios)
    at = [ratio for (n, _), ratio in ratios.items() if n == most]
    return Verdict(
        "further-action",
        "to be found: the combination's communication complexity where noise is small, with more workers (further "
        "actions); judged by whether it is the lower one",
        _ruling(sum(ratio < 1.0 for ratio in at), len(at)),
        min(at),
        "bytes of the best combination over those of the best of TopK and PermK alone, to the lowest common level: "
        + ", ".join(f"{ratio:.2g} (n = {n}, noise {noise:g})" for (n, noise), ratio in ratios.items()),
    )


# ---- figures and tables ----------------------------------------------------------------------------------------------


def _grid(cells: Sequence[Cell], labels: Sequence[str], column: str, name: str, caption: str) -> Grid:
    rows = []
    for n in dict.fromkeys(cell.n for cell in cells):
        rows.append(
            [
                Panel(
                    f"n = {cell.n}, k = {cell.k}, noise {cell.noise:g}", BYTES, name,
                    [line(cell.runs[label], label, "uplink", column) for label in labels], "xy",
                )
                for cell in cells
                if cell.n == n
            ]
        )  # fmt: skip
    return Grid(f"{caption} Steps in the table “steps”; a seed not used for tuning.", rows)


def _level(cells: Sequence[Cell], n: int) -> float:
    """The lowest ||grad f||^2 that some form of TopK and some combination reach at every noise."""
    kinds = (PLAIN, COMBINED)
    return max(min(cell.least(label) for label in kind) for cell in cells if cell.n == n for kind in kinds)


def _cheapest(cell: Cell, labels: Sequence[str], level: float) -> float:
    return min(cost(cell.runs[label], label, level * (1.0 + 1e-9), "uplink", "grad_norm2") for label in labels)


def _complexity(cells: Sequence[Cell]) -> Grid:
    panels = []
    for n in dict.fromkeys(cell.n for cell in cells):
        mine, level = [cell for cell in cells if cell.n == n], _level(cells, n)
        noises = np.array([cell.noise for cell in mine])
        kinds = {"best of TopK": PLAIN, "best of TopK∘PermK": COMBINED, MARINA: (MARINA,)}
        found = {label: np.array([_cheapest(cell, kind, level) for cell in mine]) for label, kind in kinds.items()}
        lines = [Series(label, noises, spent) for label, spent in found.items() if np.isfinite(spent).any()]
        panels.append(Panel(f"n = {n}: bytes to ‖∇f‖² ≤ {level:.1e}", "noise", BYTES, lines))
    return Grid(
        "Communication complexity against noise, to the lowest level that TopK and TopK∘PermK "
        "reach at every noise; MARINA is left out where it does not reach it.",
        [panels],
    )


def _bytes(cell: Cell) -> dict[str, float]:
    """Bytes to the level that half of the methods reach."""
    level = float(np.median([cell.least(label) for label in LABELS]))
    row: dict[str, float] = {"n": cell.n, "noise": cell.noise, "‖∇f‖² ≤": level}
    return row | {
        label: cost(cell.runs[label], label, level * (1.0 + 1e-9), "uplink", "grad_norm2") for label in LABELS
    }
