"""`sparsifier | compressor`: its text, its bytes, its laws over every outcome, and what it refuses."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from laconic.compressors.composition import Composition, Sparsifier
from laconic.compressors.natural import Natural
from laconic.compressors.permk import PermK
from laconic.compressors.randk import RandK, SharedRandK
from laconic.compressors.scaled import Scaled
from laconic.compressors.topk import TopK
from laconic.compressors.topk_permk import TopKPermK
from laconic.compressors.unscaled_randk import UnscaledRandK
from laconic.core.compressor import AB, Contractive, Sparse, Unbiased
from laconic.core.keys import Keys
from laconic.core.message import Message
from laconic.core.registry import catalogue
from laconic.core.spec import example, parse
from planted import RoundRobin
from sending import keys_of, send, wholes

F64 = torch.float64
SPARSIFIERS: list[Any] = [
    parse(example(cls)) for cls in catalogue().of_kind("compressor") if issubclass(cls, Sparsifier)
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


# ---- sparsifiers -----------------------------------------------------------------------------------------------------


def test_every_compressor_that_keeps_coordinates_is_a_sparsifier() -> None:
    names = "topk block_topk randk shared_randk unscaled_randk randk_replacement randseqk bernoulli shared_bernoulli "
    names += "threshold relative_threshold permk permk_blocks permk_sampling topk_permk adaptive_random"
    assert set(names.split()) <= {sparsifier.name for sparsifier in SPARSIFIERS}


@pytest.mark.parametrize("sparsifier", SPARSIFIERS, ids=str)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (4, 13), (9, 4), (5, 200)])
def test_a_sparsifier_says_values_last_and_how_many_there_may_be(sparsifier: Any, n: int, d: int) -> None:
    v, seen = normal(n, d), set()
    for step in range(20):
        keys = keys_of(n, step)
        message = sparsifier.compress(v, keys)
        decoded = sparsifier.decode(message, (d,), F64, keys)
        assert isinstance(decoded, Sparse) and torch.equal(decoded.values, message.codes[-1])
        assert message.schema[-1].dtype == F64 and np.array_equal(decoded.offsets, message.offsets[-1])
        seen |= set(np.diff(message.offsets[-1]).tolist())
    assert seen <= set(sparsifier.numbers(d, n))
    if d > 1 and len(sparsifier.numbers(d, n)) <= 2:
        assert seen == set(sparsifier.numbers(d, n))


# ---- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("topk(k=0.01) | natural", TopK(0.01) | Natural()),
        ("permk|natural", Composition(PermK(), Natural())),
        ("topk(k=3) | randk(k=2) | natural", TopK(3) | RandK(2) | Natural()),
        ("topk(k=3) | (randk(k=2) | natural)", TopK(3) | (RandK(2) | Natural())),
        ("composition(topk(k=3), randk(k=2) | natural)", TopK(3) | RandK(2) | Natural()),
    ],
)
def test_texts_and_what_they_mean(text: str, entry: Composition) -> None:
    assert parse(text) == entry and parse(str(entry)) == entry
    for outer in (f"ef21({text})", f"mean_of({text}, copies=3)", f"induced(topk(k=1), unbiased={text})"):
        if "induced" not in outer or "topk" not in text and "composition" not in text:
            assert str(parse(str(parse(outer)))) == str(parse(outer)) and str(entry) in str(parse(outer))


def test_the_text_is_what_was_written_and_composition_associates() -> None:
    a, b, c = TopK(4), RandK(3), Natural()
    assert (a | b) | c == a | (b | c) == Composition(a, Composition(b, c))
    assert str(a | b | c) == "topk(k=4) | randk(k=3) | natural"
    assert str(parse("ef21_sgdm(topk(k=0.01) | natural)")) == "ef21_sgdm(topk(k=0.01) | natural)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("natural | natural", "natural | natural : what stands before | must be a sparsifier"),
        ("topk(k=1) | natural | natural", "natural | natural : what stands before | must be a sparsifier"),
        ("composition(natural, natural)", "Composition(first=natural) : first must be a sparsifier, as `topk` is"),
        (
            "gd | topk(k=1)",
            "cannot read 'gd | topk(k=1)' in the spec 'gd | topk(k=1)': | stands between two compressors",
        ),
        ("topk(k=1) | gd", "cannot read 'topk(k=1) | gd'"),
        ("topk(k=1) | 3", "cannot read 'topk(k=1) | 3'"),
        ("gd(ef21(3 | 4))", "cannot read '3 | 4' in the spec 'gd(ef21(3 | 4))'"),
        (
            "topk(k=1) |",
            "cannot read the spec 'topk(k=1) |': it must be a name, or name(value, key=value, ...), or two",
        ),
        ("permk | topk(k=1)", "permk | topk(k=1) : the rows of permk keep different numbers of values, and the fields"),
        ("bernoulli(p=0.1) | threshold(t=1.0)", "bernoulli(p=0.1) | threshold(t=1.0) : the rows of bernoulli keep"),
        (
            "threshold(t=0.1) | topk(k=2)",
            "threshold(t=0.1) | topk(k=2) : how many values threshold keeps is known from",
        ),
        ("threshold(t=0.1) | randk(k=0.5)", "threshold(t=0.1) | randk(k=0.5) : how many values threshold keeps"),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_states_and_other_things_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Composition\(second=round_robin\) : second must be a compressor without"):
        _ = TopK(1) | RoundRobin()
    with pytest.raises(TypeError):
        _ = TopK(1) | 3  # pyright: ignore[reportOperatorIssue]
    with pytest.raises(ValueError, match="cannot read the spec"):
        parse(" | ".join(["topk(k=1)"] * 5000))


# ---- bytes -----------------------------------------------------------------------------------------------------------

PAIRS = [
    "topk(k=3) | natural",
    "topk(k=0.5) | scaled(natural)",
    "topk(k=4) | randk(k=2) | natural",
    "topk(k=4) | threshold(t=0.5)",
    "topk(k=4) | bernoulli(p=0.5)",
    "adaptive_random | natural",
    "block_topk(k=1, block=4) | ternary",
    "permk | natural",
    "permk | randk(k=0.5)",
    "permk_sampling | bernoulli(p=0.5) | scaled_sign",
    "bernoulli(p=0.3) | natural",
    "shared_bernoulli(p=0.3) | qsgd(levels=2)",
    "randk_replacement(k=5) | natural",
    "threshold(t=0.5) | natural",
    "threshold(t=0.5) | ternary",
    "relative_threshold(t=0.5) | sign",
    "topk_permk(k=2) | natural",
]


@pytest.mark.parametrize("text", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(1,), (13,), (4, 3, 2)])
def test_bytes_meaning_and_company(text: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Bytes give back what was sent; a row is the same in any company; the input stays; nothing stays nothing."""
    compressor: Any = parse(text)
    n = 5
    for step in range(2):
        v, keys = normal(n, *shape, seed=step).to(dtype), keys_of(n, step)
        v[2] = 0.0
        v[3].view(-1)[1:] = 0.0
        before, message = v.clone(), compressor.compress(v, keys)
        out, buffer, ends = send(compressor, v, keys), message.pack(), np.cumsum(message.nbytes)
        assert torch.equal(v, before) and out.shape == v.shape and out.dtype == dtype and not out[2].any()
        for row in range(n):
            own = keys.at([row])
            alone = compressor.compress(v[row : row + 1], own)
            assert alone.pack().tobytes() == buffer[ends[row] - message.nbytes[row] : ends[row]].tobytes()
            assert torch.equal(compressor.decode(message.at(row, row + 1), shape, dtype, own).dense()[0], out[row])
        assert torch.equal(send(compressor, v[::2], keys.at([0, 2, 4])), out[::2])
        assert send(compressor, v[:0], keys.at([])).shape == (0, *shape)


def test_the_message_is_the_first_ones_places_and_the_second_ones_values() -> None:
    v, keys = normal(4, 50), keys_of(4)
    for first, second in ((TopK(7), Natural()), (RandK(7), Scaled(Natural())), (SharedRandK(9), RandK(3))):
        *where, values = first.codes(v, keys)
        kept = second.compress(values.view(4, -1), keys.scope("values"))
        message = (first | second).compress(v, keys)
        assert [code.tolist() for code in message.codes] == [code.tolist() for code in (*where, *kept.codes)]
        assert (message.bits == first.compress(v, keys).bits - 64 * values.numel() // 4 + kept.bits).all()
    assert (TopK(7) | Natural()).share(50, 4) == 7 / 50 * 12 / 64


def test_rows_that_keep_different_numbers_are_each_their_own_vector() -> None:
    """PermK's blocks of 3 and 2 of 13 coordinates and Bernoulli's of any size, and a threshold's."""
    for text in ("permk | qsgd(levels=3)", "bernoulli(p=0.4) | qsgd(levels=3)", "threshold(t=0.7) | qsgd(levels=3)"):
        pair: Any = parse(text)
        v, keys = normal(5, 13), keys_of(5, 2)
        sent = pair.first.compress(v, keys)
        offsets, out = sent.offsets[-1], send(pair, v, keys)
        kept = pair.first.decode(sent, (13,), F64, keys)
        assert len(set(np.diff(offsets))) > 1
        for row, (low, high) in enumerate(itertools.pairwise(offsets)):
            expected = torch.zeros(13, dtype=F64)
            values = sent.codes[-1][low:high][None]
            if low < high:
                expected[kept.indices[low:high]] = send(pair.second, values, keys.at([row]).scope("values"))[0]
            assert torch.equal(out[row], expected)


@pytest.mark.parametrize("text", PAIRS)
def test_damaged_bytes_are_malformed_or_mean_something(text: str) -> None:
    compressor: Any = parse(text)
    v, keys, rng = normal(3, 13), keys_of(3), np.random.default_rng(0)
    message, meant = compressor.compress(v, keys), 0
    for _ in range(60):
        buffer = message.pack()
        buffer[rng.integers(len(buffer))] ^= np.uint8(1 << rng.integers(8))
        try:
            heard = Message.unpack(buffer, message.nbytes, compressor.schema((13,), F64, keys))
            assert compressor.decode(heard, (13,), F64, keys).dense().shape == v.shape
            meant += 1
        except ValueError as error:
            assert type(error).__name__ == "Malformed"
    assert meant or "threshold" in text


# ---- laws ------------------------------------------------------------------------------------------------------------


def natural_by_hand(values: list[float]) -> list[tuple[Fraction, tuple[float, ...]]]:
    """Every outcome of natural compression of some values, and its probability."""
    choices = []
    for value in values:
        low = math.copysign(2.0 ** (math.frexp(value)[1] - 1), value) if value else 0.0
        up = Fraction(value) / Fraction(low) - 1 if low else Fraction(0)
        choices.append([(1 - up, low), (up, 2 * low)])
    return [
        (math.prod((p for p, _ in outcome), start=Fraction(1)), tuple(x for _, x in outcome))
        for outcome in itertools.product(*choices)
    ]


def error_of(v: list[float], kept: list[int], factor: int = 1) -> Fraction:
    """E||Q(factor x_S) - x||^2 for natural Q, exactly."""
    rest = sum((Fraction(x) ** 2 for j, x in enumerate(v) if j not in kept), Fraction(0))
    outcomes = natural_by_hand([factor * v[j] for j in kept])
    own = [sum((Fraction(q) - Fraction(v[j])) ** 2 for q, j in zip(out, kept, strict=True)) for _, out in outcomes]
    return rest + sum((p * e for (p, _), e in zip(outcomes, own, strict=True)), Fraction(0))


@pytest.mark.parametrize(("d", "k"), [(1, 1), (4, 1), (5, 3), (6, 6)])
def test_topk_natural_contracts_by_seven_eighths_of_k_over_d(d: int, k: int) -> None:
    """Over natural's outcomes; the claim is attained at equal magnitudes of mantissa 4/3, or the float next to it."""
    claim = (TopK(k) | Natural()).claim(d, 3)
    assert isinstance(claim, Contractive) and claim == Contractive(k / d * 0.875)
    worst = 0.0
    for v in ([4 / 3] * d, [1.0 + j for j in range(d)], [1e3**j for j in range(d)], normal(d, seed=d).tolist()):
        kept = sorted(range(d), key=lambda j: (-abs(v[j]), j))[:k]
        ratio = float(error_of(v, kept) / sum(Fraction(x) ** 2 for x in v))
        assert ratio <= 1 - claim.alpha + 1e-15
        worst = max(worst, ratio)
    assert worst == pytest.approx(1 - claim.alpha, rel=1e-12, abs=1e-15)


def test_topk_scaled_natural_contracts_by_eight_ninths_of_k_over_d() -> None:
    """c Q(x_S) with c = 1 / (1 + 1/8): ||x||^2 - 2c ||x_S||^2 + c^2 E||Q(x_S)||^2, an equality at mantissa 4/3."""
    d, k = 9, 4
    pair = TopK(k) | Scaled(Natural())
    assert pair.claim(d, 1).alpha == pytest.approx(8 / 9 * k / d, rel=1e-15)  # type: ignore[union-attr]
    v, c = Fraction(4 / 3), Fraction(8, 9)
    outcomes = natural_by_hand([4 / 3])
    second = sum(p * Fraction(q[0]) ** 2 for p, q in outcomes)
    error = d * v**2 - 2 * c * k * v**2 + c**2 * k * second
    assert float(error / (d * v**2)) == pytest.approx(1 - 8 / 9 * k / d, rel=1e-12)
    seen = set((send(pair, torch.full((50, d), 4 / 3, dtype=F64), keys_of(50))).unique().tolist())
    assert seen == {0.0, float(torch.tensor(1.0, dtype=F64) * (1 / 1.125)), float(2.0 * (1 / 1.125))}


@pytest.mark.parametrize(("d", "k", "m"), [(3, 2, 1), (4, 2, 1), (4, 3, 2), (5, 1, 1)])
def test_two_unbiased_ones_multiply(monkeypatch: pytest.MonkeyPatch, d: int, k: int, m: int) -> None:
    """RandK of RandK over all pairs of supports: E Q = x and the variance is (1 + omega)(1 + w) - 1, exactly."""
    first, second = list(itertools.combinations(range(d), k)), list(itertools.combinations(range(k), m))
    pairs = list(itertools.product(first, second))
    drawn = {"/up0": [a for a, _ in pairs], "/up0/values": [b for _, b in pairs]}
    monkeypatch.setattr(Keys, "subsets", lambda self, d, k: np.array(drawn[self.stream]))
    v, pair = wholes(1, d, 3)[0], RandK(k) | RandK(m)
    out = send(pair, v.expand(len(pairs), d), keys_of(len(pairs)))
    claim = pair.claim(d, 4)
    assert isinstance(claim, Unbiased) and claim.omega == pytest.approx(d / m - 1, rel=1e-14)
    assert torch.allclose(out.mean(0), v, rtol=1e-13, atol=1e-13)
    assert float(((out - v) ** 2).sum(1).mean()) == pytest.approx(claim.omega * float(v @ v), rel=1e-12)


@pytest.mark.parametrize("shared", [False, True])
def test_a_joint_family_keeps_b_and_a_grows(monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    """One support for both workers, then RandK each for itself or shared, over all outcomes.

    Independent: A' = A + w (1 + omega) / n is an equality. Shared: A' = A + w (1 + omega) is one for equal vectors.
    """
    d, k, n = 3, 2, 2
    first, second = list(itertools.combinations(range(d), k)), [(0,), (1,)]
    inner: Any = SharedRandK(1) if shared else RandK(1)
    pair = SharedRandK(k) | inner
    claim, omega, w = pair.claim(d, n), d / k - 1, k - 1.0
    assert isinstance(claim, AB)
    expected = (w * (1 + omega) / (1 if shared else n), -omega, (1 + omega) * (1 + w) - 1)
    assert (claim.A, claim.B, claim.omega) == pytest.approx(expected, rel=1e-14)
    choices = [(s, s) for s in second] if shared else list(itertools.product(second, repeat=n))
    for a, tight in ((wholes(n, d), not shared), (wholes(1, d).expand(n, d), True)):
        error, total = 0.0, torch.zeros(d, dtype=F64)
        for support, own in itertools.product(first, choices):

            def drawn(self: Keys, d: int, k: int, support: Any = support, own: Any = own) -> np.ndarray:
                rows = own if self.stream.endswith("/values") else [support] * n
                return np.array(rows[: self.rows])

            monkeypatch.setattr(Keys, "subsets", drawn)
            mean = send(pair, a, keys_of(n)).mean(0)
            total += mean
            error += float(((mean - a.mean(0)) ** 2).sum()) / (len(first) * len(choices))
        assert torch.allclose(total / (len(first) * len(choices)), a.mean(0), rtol=1e-12, atol=1e-12)
        bound = claim.A * float((a**2).sum()) / n - claim.B * float((a.mean(0) ** 2).sum())
        assert error <= bound * (1 + 1e-12)
        assert not tight or error == pytest.approx(bound, rel=1e-12)


def test_claims_in_the_other_cases() -> None:
    natural, d, n = Natural(), 12, 4
    assert (RandK(3) | natural).claim(d, n) == Unbiased(4 * 1.125 - 1)
    assert (PermK() | natural).claim(d, n) == AB(1 + 4 / 8 / 4, 1.0, 3.5)
    assert (UnscaledRandK(3) | natural).claim(d, n) == Contractive(0.25 * 0.875)
    assert (TopK(3) | RandK(1)).claim(d, n) is None  # w = 2: may be worse than nothing
    assert (TopK(4) | TopK(1)).claim(d, n) == Contractive(4 / 12 / 4)  # k = 1 in the end
    assert (RandK(4) | TopK(1)).claim(d, n) is None  # neither unbiased nor known to contract
    assert parse("threshold(t=1.0) | natural").claim(d, n) is None  # type: ignore[attr-defined]
    # sizes 3 and 4, of which the larger is worse
    assert (PermK() | RandK(2)).claim(11, 3).omega == 3 * 2 - 1  # type: ignore[union-attr]
    assert (TopKPermK(1, scale=1.5) | natural).claim(d, n) == Contractive((0.75 - 1.5**2 / 8) / 12)
    assert (TopKPermK(1, scale=1.5) | TopK(1)).claim(d, n) is None
