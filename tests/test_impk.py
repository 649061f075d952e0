"""The ImpK operators: what they keep by given importances, their laws, and what the scaled form claims."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from by_hand import equal
from laconic.compressors.impk import (
    ImpK,
    Importance,
    RandomImpK,
    RandomReweightedImpK,
    ReweightedImpK,
    ScaledReweightedImpK,
)
from laconic.compressors.topk import TopK
from laconic.core.compressor import Compressor
from laconic.core.floats import wide
from laconic.core.keys import Keys
from laconic.core.message import Message
from laconic.core.spec import parse
from sending import keys_of, send

OPERATORS: list[Any] = [ImpK, RandomImpK, ReweightedImpK, RandomReweightedImpK, ScaledReweightedImpK]


def lent(compressor: Compressor, v: Tensor, weights: Tensor, keys: Keys) -> Tensor:
    """What a receiver makes of the bytes of v (rows, *shape) with importances, dense."""
    shape = tuple(v.shape[1:])
    schema = compressor.schema(shape, v.dtype, keys)
    codes, _ = compressor.advance(v, keys, Importance(weights))
    sent = Message(schema, codes, len(v))
    heard = Message.unpack(sent.pack(), sent.nbytes, schema)
    return compressor.decode(heard, shape, v.dtype, keys).dense()


def some(rows: int, d: int, seed: int = 0, low: float = 1.0, high: float = 2.0) -> tuple[Tensor, Tensor]:
    """Vectors and importances."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((rows, d))), torch.from_numpy(rng.uniform(low, high, (rows, d)))


# ---- the operators ---------------------------------------------------------------------------------------------------


def by_numpy(operator: type, k: int, v: np.ndarray, w: np.ndarray, keys: Keys) -> np.ndarray:
    """Row by row, by sorting; `w` must lie in [1, 2] for the scaled form."""
    noise = -np.log(-np.log(keys.uniform(v.shape[1]).numpy() + 2.0**-54))
    out = np.zeros_like(v)
    for row in range(len(v)):
        weight = {ReweightedImpK: w, RandomReweightedImpK: w, ScaledReweightedImpK: w / 1.5}.get(operator)
        product = v[row] if weight is None else weight[row] * v[row]
        with np.errstate(divide="ignore"):
            scores = {ImpK: w[row], RandomImpK: np.log(w[row]) + noise[row]}.get(operator)
            scores = np.log(w[row]) + noise[row] if operator is RandomReweightedImpK else scores
        scores = np.abs(product) if scores is None else scores
        kept = np.argsort(-scores, kind="stable")[:k]
        kept = kept[scores[kept] > -np.inf]
        out[row, kept] = product[kept]
    return out


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(("d", "k"), [(1, 1), (6, 1), (6, 6), (9, 4), (5, 50), (130, 7)])
def test_operators_by_numpy(operator: Any, d: int, k: int) -> None:
    v, w = some(11, d, seed=d)
    keys = keys_of(11, step=k)
    expected = by_numpy(operator, k, v.numpy(), w.numpy(), keys)
    assert np.allclose(lent(operator(k), v, w, keys).numpy(), expected, rtol=1e-15, atol=0)
    assert equal(lent(operator(k), v.view(11, d, 1), w, keys).view(11, d), lent(operator(k), v, w, keys))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_row_is_the_same_alone_and_nothing_is_written_to(operator: Any, dtype: torch.dtype) -> None:
    v, w = some(7, 33)
    v, w = v.to(dtype), w.to(wide(dtype))
    before = v.clone(), w.clone()
    keys, out = keys_of(7), lent(operator(4), v, w, keys_of(7))
    assert out.dtype == dtype and torch.equal(v, before[0]) and torch.equal(w, before[1])
    for row in range(7):
        assert torch.equal(lent(operator(4), v[row : row + 1], w[row : row + 1], keys.at([row]))[0], out[row])
    assert lent(operator(4), v[:0], w[:0], keys.at([])).shape == (0, 33)


def test_without_importances_they_are_what_is_known() -> None:
    v, keys = some(6, 20)[0], keys_of(6)
    assert equal(send(ReweightedImpK(5), v, keys), send(TopK(5), v, keys))
    assert equal(send(ScaledReweightedImpK(5, low=3.0, high=3.0), v, keys), send(TopK(5), v, keys))
    assert equal(send(ImpK(5), v, keys), torch.where(torch.arange(20) < 5, v, 0.0))
    for operator in (RandomImpK(5), RandomReweightedImpK(5)):
        out = send(operator, v, keys)
        assert ((out == v) | (out == 0.0)).all() and ((out != 0).sum(1) == 5).all()
    topk, ours = TopK(5).compress(v, keys), ReweightedImpK(5).compress(v, keys)
    assert topk.pack().tobytes() == ours.pack().tobytes()


def sequential_law(w: np.ndarray, k: int) -> dict[tuple[int, ...], float]:
    """The probability of every k-subset, drawn one after another in proportion to w, over all orders."""
    law: dict[tuple[int, ...], float] = {}
    for order in itertools.permutations(range(len(w)), k):
        chance, left = 1.0, float(w.sum())
        for j in order:
            chance, left = chance * w[j] / left, left - w[j]
        law[tuple(sorted(order))] = law.get(tuple(sorted(order)), 0.0) + chance
    return law


def test_inclusion_probabilities_of_the_sequential_law() -> None:
    law = sequential_law(np.array([0.5, 0.3, 0.1, 0.06, 0.04]), 2)
    found = [sum(p for subset, p in law.items() if j in subset) for j in range(5)]
    assert sum(law.values()) == pytest.approx(1.0) and sum(found) == pytest.approx(2.0)
    assert np.round(found, 3).tolist() == [0.823, 0.665, 0.253, 0.155, 0.104]


@pytest.mark.parametrize("scale", [1.0, 1e-300, 1e300])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_random_subsets_follow_the_sequential_law(k: int, scale: float) -> None:
    """Every subset's frequency over many workers, to 5 standard deviations; the scale of w is of no matter."""
    w, rows = np.array([0.5, 0.3, 0.1, 0.06, 0.04]), 40_000
    v, weights = torch.ones(rows, 5, dtype=torch.float64), torch.from_numpy(w * scale).expand(rows, 5)
    kept = (lent(RandomImpK(k), v, weights, keys_of(rows, step=k)) != 0).numpy()
    seen = dict(zip(*np.unique(kept @ (1 << np.arange(5)), return_counts=True), strict=True))
    law = sequential_law(w, k)
    assert len(law) == math.comb(5, k) and sum(seen.values()) == rows
    for subset, p in law.items():
        count = seen.get(sum(1 << j for j in subset), 0)
        assert abs(count - rows * p) <= 5.0 * math.sqrt(rows * p * (1.0 - p)) + 1.0, subset


@pytest.mark.parametrize("operator", [RandomImpK, RandomReweightedImpK])
@pytest.mark.parametrize("positive", [0, 1, 2, 3])
def test_coordinates_without_importance_are_never_kept(operator: Any, positive: int) -> None:
    """Though places are left: they carry zeros. Importances that are no numbers count as none."""
    w = torch.zeros(200, 6, dtype=torch.float64)
    w[:, 6 - positive :] = 5e-324
    w[::2, 0], w[1::2, 0] = math.nan, -1.0
    out = lent(operator(3), torch.full_like(w, 8.0), w, keys_of(200))
    if operator is RandomImpK:
        assert torch.equal(out != 0, w == 5e-324)
    assert not out[:, : 6 - positive].any()


def test_of_one_choice_there_is_one_outcome_with_values_reweighted() -> None:
    v, w = some(50, 6)
    sure = torch.where(torch.arange(6) % 2 == 0, w, 0.0)
    out = lent(RandomReweightedImpK(3), v, sure, keys_of(50))
    assert torch.equal(out, sure * v)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_extreme_vectors(operator: Any, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    rows = [[info.max, -info.max, 1.0, 0.0], [info.tiny / 4, -info.tiny, 0.0, -0.0], [0.0] * 4, [0.0, 0.0, 7.0, 0.0]]
    v = torch.tensor(rows, dtype=dtype)
    w = torch.tensor([2.0, 1.0, 1.0, 1.5], dtype=wide(dtype)).expand(4, 4)
    out = lent(operator(2), v, w, keys_of(4))
    assert torch.isfinite(out).all() and not out[2].any()
    assert ((out == 0) | (torch.sign(out) == torch.sign(v))).all()


def test_importances_of_other_vectors_are_refused() -> None:
    v, w = some(3, 8)
    with pytest.raises(ValueError, match=r"impk\(k=2\) : importances \(3, 7\) for vectors \(3, 8\)"):
        ImpK(2).advance(v, keys_of(3), Importance(w[:, :7]))


def test_a_combinator_has_no_place_for_importances() -> None:
    with pytest.raises(ValueError, match="must be a compressor without a state"):
        parse("mean_of(impk(k=2), copies=2)")


# ---- the contractive form --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(1.0, 2.0), (0.5, 4.0), (1.0, 1.0), (1e-3, 1.0)])
@pytest.mark.parametrize(("d", "k"), [(1, 1), (5, 1), (8, 3), (8, 8), (40, 4)])
def test_the_claim_of_the_scaled_form_is_attained(d: int, k: int, low: float, high: float) -> None:
    """By the k first with importance `high`, the others with `low`, and products w v that are equal."""
    operator = ScaledReweightedImpK(k, low=low, high=high)
    alpha = operator.claim(d, 3).alpha
    first = (torch.arange(d)[None] < k).double()
    w = first * high + (1.0 - first) * low
    v = (-1.0) ** torch.arange(d).double() / w * (1.0 + 1e-12 * first)  # a tie but for rounding
    error = float(((lent(operator, v, w, keys_of(1)) - v) ** 2).sum() / (v**2).sum())
    assert error == pytest.approx(1.0 - alpha, rel=1e-6, abs=1e-12)
    rho = (high - low) / (high + low)
    assert alpha == pytest.approx((1 - rho**2) * k * low**2 / (k * low**2 + (d - k) * high**2), rel=1e-12)
    if (low, high) == (1.0, 2.0):
        assert alpha == pytest.approx(8 / 9 * k / (4 * d - 3 * k), rel=1e-14)


def test_the_claim_of_the_scaled_form_holds_for_every_importance() -> None:
    """Those outside of [low, high] among them: they are clipped. Unscaled, w = 2 loses all of the vector."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        d = int(rng.integers(1, 12))
        k, low = int(rng.integers(1, d + 1)), float(rng.uniform(0.1, 1.0))
        operator = ScaledReweightedImpK(k, low=low, high=low + float(rng.uniform(0, 3)))
        v = torch.from_numpy(rng.standard_normal((200, d)) ** 3)
        w = torch.from_numpy(rng.choice([0.0, operator.low, operator.high, 9.0, rng.uniform(0, 4)], (200, d)))
        error = ((lent(operator, v, w, keys_of(200)) - v) ** 2).sum(1)
        assert (error <= (1.0 - operator.claim(d, 1).alpha) * (v**2).sum(1) * (1 + 1e-12)).all()
    v = torch.ones(1, 4, dtype=torch.float64)
    assert float(((lent(ReweightedImpK(4), v, 2.0 * v, keys_of(1)) - v) ** 2).sum()) == 4.0
    assert all(operator(2).claim(4, 1) is None for operator in OPERATORS[:4])
