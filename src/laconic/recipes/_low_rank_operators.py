"""Low-rank decompositions as compressors: contraction, the bound of the randomised one, spectra of real gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from laconic.compressors.power_iteration import PowerIteration, Subspace
from laconic.compressors.rank import RandomRank, Rank
from laconic.compressors.topk import TopK
from laconic.core.compressor import Compressor
from laconic.core.keys import Keys
from laconic.core.message import Message
from laconic.core.problem import Oracles, single_threaded
from laconic.core.rows import mean
from laconic.lab.figures import Grid, Panel, Series
from laconic.lab.recipe import Outcome, Verdict
from laconic.lab.trace import numbers
from laconic.recipes._common import ruled

_MESSAGES = 12  # of power iteration on a matrix that stays as it is
_ROUNDING = 1e-8  # shares below are not drawn
_PER_ROW = 3  # panels
_OVERSAMPLING = (2, 3, 4, 6, 8)
RANDOMISED = RandomRank(rank=1, oversampling=2, powers=0)  # as little as the bound needs


@dataclass(frozen=True)
class Moment:
    """Matrices that workers have to send at some moment of a training, (workers, rows, columns)."""

    name: str
    matrices: Tensor


def keys(kind: str, count: int) -> Keys:
    """Addresses of so many rows."""
    return Keys(0, 0, f"recipe/{kind}", np.arange(count), count)


def decoded(compressor: Compressor, message: Message, like: Tensor, addresses: Keys) -> Tensor:
    """What a message says."""
    return compressor.decode(message, tuple(like.shape[1:]), like.dtype, addresses).dense()


def kept(compressor: Compressor, matrices: Tensor, kind: str) -> Tensor:
    """1 - ||C(M) - M||^2 / ||M||^2 of every matrix."""
    addresses = keys(kind, len(matrices))
    arrived = decoded(compressor, compressor.compress(matrices, addresses), matrices, addresses)
    return 1.0 - (arrived - matrices).square().sum((1, 2)) / matrices.square().sum((1, 2))


def _share(matrix: Tensor, factory: Callable[[int], Compressor], rank: int, draws: int) -> tuple[float, float]:
    """The mean of what is kept of a matrix, over draws, and its standard error."""
    values = kept(factory(rank), matrix.expand(draws, *matrix.shape), "contraction")
    return float(values.mean()), float(values.std() / math.sqrt(draws)) if draws > 1 else 0.0


# ---- contraction -----------------------------------------------------------------------------------------------------


def _test_matrices(rows: int, columns: int) -> dict[str, Tensor]:
    """By their spectra: flat (the worst case), falling slowly and fast, and Gaussian entries."""
    draws = keys("matrices", 1).normal(rows * columns).view(rows, columns)
    u, _, v = torch.linalg.svd(draws, full_matrices=False)
    order = torch.arange(1.0, min(rows, columns) + 1.0, dtype=torch.float64)
    spectra = {"flat spectrum": torch.ones_like(order), "σ_j = 1/√j": order**-0.5, "σ_j = 1/j": 1.0 / order}
    return {name: (u * sigma) @ v for name, sigma in spectra.items()} | {"Gaussian entries": draws}


@single_threaded
def operators(gradients: Mapping[str, Sequence[Moment]], draws: int) -> Outcome:
    """Contraction of all three operators and the bound of Halko, Martinsson and Tropp."""
    typical = {
        f"{name}, {moment.name}": moment.matrices[0]
        for name, moments in gradients.items()
        for moment in (moments[0], moments[-1])
        if float(moment.matrices[0].square().sum()) > 0.0
    }
    matrices = _test_matrices(32, 16) | typical
    table = _contraction_table(matrices, draws)
    panel, turned = _warm_start(matrices)
    halko, lines = _halko(matrices, draws)
    return Outcome(
        [_contraction(table, set(typical), turned), halko],
        {
            "operators": Grid(
                "Left: the error of Q Q' M for a randomised range Q over the best error of rank r = 2, its mean over "
                "draws, and the bound. Right: power iteration kept warm on a matrix that stays as it is, rank 1: the "
                "share of ‖M‖² that arrives, over what SVD would send.",
                [
                    [
                        Panel("randomised range, r = 2", "oversampling p", "E‖M − QQ'M‖ / tail", lines, ""),
                        Panel("power iteration, warm", "message", "kept / kept by SVD", panel, ""),
                    ]
                ],
            )
        },
        {"contraction": table},
    )


def _contraction_table(matrices: Mapping[str, Tensor], draws: int) -> pd.DataFrame:
    kinds: dict[str, tuple[Callable[[int], Compressor], int]] = {
        "SVD": (lambda rank: Rank(rank), 1),
        "randomised SVD": (lambda rank: RandomRank(rank, oversampling=2, powers=0), draws),
        "no oversampling": (lambda rank: RandomRank(rank, oversampling=0, powers=0), draws),
        "power iteration, first message": (lambda rank: PowerIteration(rank), draws),
    }
    rows = []
    for name, matrix in matrices.items():
        for rank in (1, 2, 4):
            least = rank / min(matrix.shape)
            if rank * sum(matrix.shape) >= matrix.numel() or least >= 1.0:
                continue
            for label, (factory, count) in kinds.items():
                share, error = _share(matrix, factory, rank, count)
                row = {"matrix": name, "operator": label, "rank": rank, "r/min(m,n)": least, "kept": share}
                rows.append({**row, "standard error": error, "kept / (r/min)": share / least})
    return pd.DataFrame(rows)


def _contraction(table: pd.DataFrame, typical: set[str], turned: float) -> Verdict:
    slack = (numbers(table, "kept") + 4.0 * numbers(table, "standard error")) / numbers(table, "r/min(m,n)")
    worst = float(numbers(table, "kept / (r/min)").min())
    chosen = (table["operator"] == "SVD") & (table["rank"] == 1) & table["matrix"].isin(list(typical))
    svd = numbers(pd.DataFrame(table[chosen]), "kept")
    return Verdict(
        "contraction",
        "compression operators can be built on low-rank decompositions (and put into methods that ask for "
        "‖C(M) − M‖² ≤ (1 − α) ‖M‖²)",
        ruled(bool((slack >= 1.0 - 1e-9).all()) and worst > 0.9),
        worst,
        f"SVD, randomised SVD and a first power iteration keep at least {worst:.3f} times the share r/min(m, n) on "
        f"average over draws (1 on flat spectra, within 4 standard errors everywhere), and on gradients rank 1 keeps "
        f"{svd.min():.2f} to {svd.max():.2f} of ‖M‖²; a warm start has no α: a matrix that turns away "
        f"from the last Q kept {turned:.0e} of its square",
    )


def _warm(matrix: Tensor, state: Subspace, address: Keys) -> tuple[Tensor, Subspace]:
    """A message of power iteration from a state, decoded, and the next state."""
    compressor, one = PowerIteration(1), matrix[None]
    codes, following = compressor.advance(one, address, state)
    message = Message(compressor.schema(tuple(matrix.shape), matrix.dtype, address), codes, 1)
    assert following is not None
    return decoded(compressor, message, one, address)[0], following


def _warm_start(matrices: Mapping[str, Tensor]) -> tuple[list[Series], float]:
    """How soon a warm start is as good as SVD on a matrix that stays; and what is left where it turns away."""
    address, lines = keys("warm", 1), []
    for name in ("flat spectrum", "σ_j = 1/√j", "σ_j = 1/j", list(matrices)[-1]):
        matrix, shares = matrices[name], []
        state = PowerIteration(1).start(tuple(matrix.shape), matrix.dtype, address)
        assert state is not None
        for _ in range(_MESSAGES):
            arrived, state = _warm(matrix, state, address)
            shares.append(float(arrived.square().sum() / matrix.square().sum()))
        best = float(kept(Rank(1), matrix[None], "warm")[0])
        lines.append(Series(name, np.arange(1.0, _MESSAGES + 1.0), np.array(shares) / best))
    first, second = torch.zeros(8, 6, dtype=torch.float64), torch.zeros(8, 6, dtype=torch.float64)
    first[0, 0], second[1, 1], second[0, 0] = 1.0, 1.0, 1e-4
    state = PowerIteration(1).start((8, 6), torch.float64, address)
    assert state is not None
    _, state = _warm(first, state, address)
    arrived, _ = _warm(second, state, address)
    return lines, float(1.0 - (arrived - second).square().sum() / second.square().sum())


# ---- the randomised range --------------------------------------------------------------------------------------------


def _halko(matrices: Mapping[str, Tensor], draws: int) -> tuple[Verdict, list[Series]]:
    """E||M - Q Q' M|| over sqrt(1 + r / (p - 1)) tail, over matrices, ranks and oversamplings."""
    lines, worst, single = [], 0.0, 0.0
    spread = np.array(_OVERSAMPLING, dtype=float)
    for name, matrix in matrices.items():
        for rank in (1, 2, 4):
            tail = float(torch.linalg.svdvals(matrix)[rank:].square().sum().sqrt())
            if tail < 1e-12 * float(matrix.norm()):
                continue
            ratios = []
            for p in _OVERSAMPLING:
                errors = _range_errors(matrix, min(rank + p, *matrix.shape), draws) / tail
                bound = math.sqrt(1.0 + rank / (p - 1.0))
                worst, single = max(worst, float(errors.mean()) / bound), max(single, float(errors.max()) / bound)
                ratios.append(float(errors.mean()))
            if rank == 2 and name in ("flat spectrum", "σ_j = 1/√j", "σ_j = 1/j", list(matrices)[-1]):
                lines.append(Series(name, spread, np.array(ratios)))
    lines.append(Series("√(1 + r/(p − 1))", spread, np.sqrt(1.0 + 2.0 / (spread - 1.0)), dashed=True))
    verdict = Verdict(
        "randomised-range",
        "(the randomised SVD that is cited) E‖M − QQ'M‖_F ≤ √(1 + r/(p − 1)) (Σ_{j > r} σ_j²)^½ for r + p Gaussian "
        "columns, p ≥ 2",
        ruled(worst <= 1.0),
        worst,
        f"over {len(matrices)} matrices, r = 1, 2, 4 and p = 2, …, 8, the mean error of {draws} draws is at most "
        f"{worst:.3f} times the bound (a single draw up to {single:.3f})",
    )
    return verdict, lines


def _range_errors(matrix: Tensor, width: int, draws: int) -> Tensor:
    test = keys("range", draws).normal(matrix.shape[1] * width).view(draws, matrix.shape[1], width)
    basis = torch.linalg.qr(matrix @ test).Q
    return torch.linalg.matrix_norm(matrix - basis @ (basis.transpose(1, 2) @ matrix))


# ---- real gradients --------------------------------------------------------------------------------------------------


def moments(oracles: Oracles, step: float, rounds: int) -> list[Moment]:
    """What the workers of EF21 with SVD of rank 1 have to send: gradients at first and last, the last differences."""
    x, compressor = oracles.start(), Rank(1)
    gradients = oracles.gradients(x)
    first, addresses = Moment("first gradients", gradients.clone()), keys("moments", len(gradients))
    shift = decoded(compressor, compressor.compress(gradients, addresses), gradients, addresses)
    for _ in range(rounds):
        x = x - step * mean(shift)
        gradients = oracles.gradients(x)
        change = gradients - shift
        shift += decoded(compressor, compressor.compress(change, addresses), change, addresses)
    return [first, Moment("last gradients", gradients), Moment("last differences", change)]


def safe_step(oracles: Oracles, rounds: int = 6) -> float:
    """1 / (2 L) at x^0, L by power iterations on differences of gradients."""
    x = oracles.start()
    base, direction = mean(oracles.gradients(x)), keys("direction", 1).normal(x.numel()).view(x.shape)
    size = 1.0
    for _ in range(rounds):
        direction = direction / direction.norm()
        moved = (mean(oracles.gradients(x + 1e-4 * direction)) - base) / 1e-4
        size, direction = float(moved.norm()), moved
    return 0.5 / size


def spectra(gradients: Mapping[str, Sequence[Moment]]) -> Outcome:
    """What rank r and TopK in as many bytes leave out of real gradients."""
    rows, panels = [], []
    for name, found in gradients.items():
        shape = found[0].matrices.shape[1:]
        most = math.ceil(shape.numel() / sum(shape)) - 1
        lines = []
        for moment in found:
            matrices = moment.matrices[moment.matrices.square().sum((1, 2)) > 0.0]
            left = _left_by_rank(matrices)[:, :most].median(0).values
            sparse = _left_by_topk(matrices, most).median(0).values
            bytes_ = np.arange(1, most + 1) * sum(shape) / shape.numel()
            for label, values in (("SVD", left), ("TopK", sparse)):
                seen = values.numpy() > _ROUNDING
                lines.append(Series(f"{label}, {moment.name}", bytes_[seen], values.numpy()[seen]))
            rows.append(
                {
                    "problem": name,
                    "what is sent": moment.name,
                    "1/min(m,n)": 1.0 / min(shape),
                    "kept by rank 1": 1.0 - float(left[0]),
                    "kept by TopK, same bytes": 1.0 - float(sparse[0]),
                    "rank for 90%": float((left > 0.1).sum() + 1),
                }
            )
        flat = 1.0 - np.arange(1, most + 1) / min(shape)
        lines.append(Series("flat spectrum, 1 − r/min(m, n)", bytes_, flat, dashed=True))
        panels.append(Panel(f"{name}, {shape[0]} × {shape[1]}", "message / dense", "share of ‖M‖² left out", lines))
    table = pd.DataFrame(rows)
    caption = (
        "What r singular triples (r = 1, 2, …, by their bytes) leave out of what workers have to send, and TopK in as "
        "many bytes; medians over the workers. 64-bit numbers, indices entropy-coded."
    )
    panels.sort(key=lambda panel: "network" in panel.title)
    rows_of = [panels[low : low + _PER_ROW] for low in range(0, len(panels), _PER_ROW)] if len(panels) > 4 else [panels]
    return Outcome([_potential(table)], {"spectra": Grid(caption, rows_of)}, {"spectra": table})


def _left_by_rank(matrices: Tensor) -> Tensor:
    squares = torch.linalg.svdvals(matrices).square()
    left = squares.flip(1).cumsum(1).flip(1)[:, 1:] / squares.sum(1, keepdim=True)
    return torch.cat([left, torch.zeros_like(left[:, :1])], dim=1)


def _left_by_topk(matrices: Tensor, most: int) -> Tensor:
    rows, d = len(matrices), matrices[0].numel()
    squares = matrices.reshape(rows, d).square().sort(1, descending=True).values
    kept_ = squares.cumsum(1) / squares.sum(1, keepdim=True)
    price = 8 * sum(matrices.shape[1:])
    return torch.stack([1.0 - kept_[:, affordable(rank * price, d) - 1] for rank in range(1, most + 1)], dim=1)


def affordable(bytes_: float, d: int) -> int:
    """The most coordinates of d that a message of TopK of no more bytes holds."""
    low, high, one = 1, d, torch.ones(1, d, dtype=torch.float64)
    while low < high:
        k = (low + high + 1) // 2
        size = float(TopK(k=k).compress(one, keys("price", 1)).nbytes.mean())
        low, high = (k, high) if size <= bytes_ else (low, k - 1)
    return low


def _potential(table: pd.DataFrame) -> Verdict:
    first = numbers(table, "kept by rank 1")
    ratio, late = first / numbers(table, "1/min(m,n)"), (table["what is sent"] == "last differences").to_numpy()
    better = (first > numbers(table, "kept by TopK, same bytes")).mean()
    gradients, changes = first[~late], first[late]
    return Verdict(
        "potential",
        "low-rank decompositions have a rather large potential for compression: what is sent is far from a flat "
        "spectrum (abstract)",
        ruled(float(ratio.min()) > 1.5),
        float(ratio.min()),
        f"one singular triple keeps {gradients.min():.2f} to {gradients.max():.2f} of ‖M‖² of gradients and "
        f"{changes.min():.2f} to {changes.max():.2f} of EF21's late differences, at least {ratio.min():.1f} times what "
        f"a flat spectrum would leave it; TopK keeps less than it in the same bytes in {better:.0%} of the cases",
    )
