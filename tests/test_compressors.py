"""Compressors against their claims: by enumeration of every outcome where there are few, on inputs chosen to hurt."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from laconic.compressors import permk
from laconic.compressors.identity import Identity
from laconic.compressors.natural import Natural
from laconic.compressors.permk import PermK
from laconic.compressors.randk import RandK, SharedRandK
from laconic.compressors.topk import TopK
from laconic.core.compressor import AB, Compressor, Contractive, Unbiased, as_contractive, as_joint, as_unbiased
from laconic.core.keys import SHARED, Keys
from laconic.core.message import CountIn
from laconic.core.registry import catalogue
from laconic.core.spec import example, parse
from laconic.wire.coding import Bits
from laconic.wire.levels import Levels

ROUNDING = 1e-13  # of sums of at most some thousand terms
COMPRESSORS: list[Any] = [parse(example(cls)) for cls in catalogue().of_kind("compressor")]


def keys_of(n: int, step: int = 0) -> Keys:
    return Keys(11, step, "/up0", np.arange(n), n)


def send(compressor: Compressor, v: Tensor, keys: Keys) -> Tensor:
    """What arrives of v (rows, *shape), dense."""
    shape = tuple(v.shape[1:])
    return compressor.decode(compressor.compress(v, keys), shape, v.dtype, keys).dense()


def nasty(d: int) -> Iterator[np.ndarray]:
    """Vectors on which claims tend to break: equal magnitudes, one spike, many scales, zeros, mantissas of 4/3."""
    rng = np.random.default_rng(d)
    signs = rng.choice([-1.0, 1.0], d)
    yield np.zeros(d)
    yield signs
    yield np.eye(d)[-1] * -7.0
    yield signs * 4 / 3
    yield 10.0 ** np.arange(d) * signs
    yield rng.standard_normal(d) * (rng.random(d) < 0.5)
    yield np.where(np.arange(d) % 2, 1e-200, 1.0) * rng.standard_normal(d)


def wholes(n: int, d: int, seed: int = 0) -> Tensor:
    """Small whole numbers: sums of them are exact, so that identities can be equalities."""
    return torch.from_numpy(np.random.default_rng(seed).integers(-9, 10, (n, d)).astype(float))


# ---- RandK: every support --------------------------------------------------------------------------------------------

SIZES = [(d, k) for d in range(1, 7) for k in range(1, d + 1)]


def outcomes_of_randk(monkeypatch: pytest.MonkeyPatch, compressor: Compressor, d: int, k: int, v: Tensor) -> Tensor:
    """Q(v) for every support, (C(d, k), d)."""
    supports = np.array(list(itertools.combinations(range(d), k)))
    monkeypatch.setattr(Keys, "subsets", lambda self, d, k: supports if self.rows > 1 else supports[:1])
    return send(compressor, v.expand(len(supports), d), keys_of(len(supports)))


@pytest.mark.parametrize(("d", "k"), SIZES)
def test_randk_is_unbiased_and_its_variance_is_exactly_omega(monkeypatch: pytest.MonkeyPatch, d: int, k: int) -> None:
    """Over all C(d, k) supports, each of which the seed makes equally likely (tests/test_keys.py)."""
    claim = RandK(k).claim(d, 3)
    assert claim == Unbiased(d / k - 1)
    for values in nasty(d):
        v = torch.from_numpy(values)
        out = outcomes_of_randk(monkeypatch, RandK(k), d, k, v) if d > 1 else send(RandK(k), v[None], keys_of(1))
        assert torch.allclose(out.mean(0), v, rtol=ROUNDING, atol=0)
        error = float(((out - v) ** 2).sum(1).mean())
        assert error == pytest.approx(claim.omega * float(v @ v), rel=ROUNDING, abs=0)
        assert k < d or torch.equal(out, v.expand_as(out))


@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6))
def test_randk_keeps_k_coordinates_of_its_own_support(n: int, d: int, k: int, step: int) -> None:
    keys, v = keys_of(n, step), torch.from_numpy(np.random.default_rng(step).standard_normal((n, d)))
    k = min(k, d)
    out, supports = send(RandK(k), v, keys), keys.subsets(d, k)
    for row in range(n):
        expected = torch.zeros(d, dtype=v.dtype)
        chosen = torch.from_numpy(supports[row])
        expected[chosen] = v[row, chosen] * (d / k)
        assert torch.equal(out[row], v[row] if k == d else expected)


# ---- shared support --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "k"), SIZES)
def test_shared_randk_compresses_the_mean_itself(monkeypatch: pytest.MonkeyPatch, d: int, k: int) -> None:
    """One support for all: A = 0 and B = -omega hold with equality, over all supports."""
    n = 3
    claim, a = SharedRandK(k).claim(d, n), wholes(n, d)
    assert claim == AB(0.0, -(d / k - 1), d / k - 1)
    supports, total, error = list(itertools.combinations(range(d), k)), torch.zeros(d, dtype=a.dtype), 0.0
    for support in supports:
        monkeypatch.setattr(Keys, "subsets", lambda self, d, k, one=support: np.array([one] * self.rows))
        mean = send(SharedRandK(k), a, keys_of(n)).mean(0)
        total += mean
        error += float(((mean - a.mean(0)) ** 2).sum())
    assert torch.allclose(total / len(supports), a.mean(0), rtol=ROUNDING, atol=1e-12)
    assert error / len(supports) == pytest.approx(-claim.B * float((a.mean(0) ** 2).sum()), rel=ROUNDING)


@pytest.mark.parametrize("d", [1, 2, 7, 100])
def test_a_shared_support_is_the_same_on_every_worker_and_process(d: int) -> None:
    v = torch.ones(5, d, dtype=torch.float64)
    out = send(SharedRandK(0.4), v, keys_of(5))
    assert torch.equal(out, out[:1].expand_as(out))
    assert torch.equal(send(SharedRandK(0.4), v[3:], keys_of(5).at([3, 4])), out[3:])
    expected = Keys(11, 0, "/up0", np.array([SHARED]), 5).subsets(d, int((out[0] != 0).sum()))[0]
    assert out[0].nonzero()[:, 0].tolist() == expected.tolist()
    if d == 100:
        assert not torch.equal(send(RandK(0.4), v, keys_of(5))[0], send(RandK(0.4), v, keys_of(5))[1])


# ---- PermK: every permutation ----------------------------------------------------------------------------------------

DEALS = [(1, 1), (3, 1), (2, 2), (4, 2), (5, 2), (3, 3), (4, 3), (5, 3), (1, 3), (2, 4), (2, 5), (3, 4), (3, 5), (3, 6)]


@pytest.fixture
def every_deal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], Iterator[None]]]:
    """Sets one pair of permutations after another (of coordinates, and of workers)."""

    def play(d: int, n: int) -> Iterator[None]:
        for order in itertools.permutations(range(d)):
            for workers in itertools.permutations(range(n)):
                drawn = {"/up0": order, "/up0/workers": workers}
                monkeypatch.setattr(Keys, "permutations", lambda self, d, drawn=drawn: np.array([drawn[self.stream]]))
                permk._deal.cache_clear()
                yield

    permk._deal.cache_clear()
    yield play
    permk._deal.cache_clear()


def claimed_by_hand(d: int, n: int) -> tuple[Fraction, Fraction]:
    """A and B from the law of owners: P(two workers have one coordinate) = s."""
    if d >= n:
        return Fraction(1), Fraction(1)
    q, r = divmod(n, d)
    s = Fraction(q * (d * q - d + 2 * r), n * (n - 1))
    return Fraction(d, n) * (1 - s), 1 - d * s


@pytest.mark.parametrize(("d", "n"), DEALS)
def test_permk_is_unbiased_and_its_ab_is_an_equality(
    every_deal: Callable[[int, int], Iterator[None]], d: int, n: int
) -> None:
    """For d >= n with any remainder and for d < n with any remainder, over all deals."""
    a, keys, mean = wholes(n, d), keys_of(n), wholes(n, d).mean(0)
    claim = PermK().claim(d, n)
    total, error, alone, count = torch.zeros_like(a), 0.0, torch.zeros(n, dtype=a.dtype), 0
    for _ in every_deal(d, n):
        out = send(PermK(), a, keys)
        total += out
        alone += ((out - a) ** 2).sum(1)
        error += float(((out.mean(0) - mean) ** 2).sum())
        count += 1
    assert count == math.factorial(d) * math.factorial(n)
    assert torch.equal(total, count * a)  # whole numbers: exact
    expected = claim.A * float((a**2).sum()) / n - claim.B * float(mean @ mean)
    assert error / count == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert torch.allclose(alone / count, claim.omega * (a**2).sum(1), rtol=1e-12)
    by_hand = claimed_by_hand(d, n)
    assert (claim.A, claim.B) == pytest.approx(tuple(map(float, by_hand)), rel=1e-15)
    assert claim.omega == max(1, min(d, n)) - 1


def test_permk_constants_from_the_sheet() -> None:
    """n = q d has A = B = (d - 1) / (n - 1); d = 3, n = 7 has A = 16/49 and B = 2/7."""
    for d, n in ((2, 4), (5, 20), (10, 1000)):
        claim = PermK().claim(d, n)
        assert claim.A == pytest.approx((d - 1) / (n - 1), rel=1e-14) and claim.B == pytest.approx(claim.A, rel=1e-14)
    assert dataclasses.astuple(PermK().claim(3, 7)) == pytest.approx((16 / 49, 2 / 7, 2.0), rel=1e-14)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 10**6))
def test_permk_deals_everything_and_evenly(d: int, n: int, step: int) -> None:
    keys, ones = keys_of(n, step), torch.ones(n, d, dtype=torch.float64)
    owned = (send(PermK(), ones, keys) != 0).numpy()
    sizes, owners = owned.sum(1), owned.sum(0)
    if d >= n:
        assert (owners == 1).all() and set(sizes) <= {d // n, -(-d // n)}
    else:
        assert (sizes == 1).all() and set(owners) <= {n // d, -(-n // d)}
    some = np.arange(n)[step % 3 :: 2]
    assert torch.equal(send(PermK(), ones[some], keys.at(some)), send(PermK(), ones, keys)[some])


@given(st.integers(1, 8), st.integers(0, 40), st.integers(0, 10**6))
def test_equal_vectors_come_back_exactly_from_permk(n: int, extra: int, step: int) -> None:
    v = wholes(1, n + extra, step).expand(n, -1)
    assert torch.equal(send(PermK(), v, keys_of(n, step)).sum(0) / n, v[0])


# ---- TopK ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", range(1, 9))
def test_topk_contracts_by_k_over_d_with_equality_at_equal_magnitudes(d: int) -> None:
    for k in range(1, d + 1):
        assert TopK(k).claim(d, 5) == Contractive(k / d)
        for values in nasty(d):
            v = torch.from_numpy(values)
            out = send(TopK(k), v[None], keys_of(1))[0]
            kept = Fraction(0) + sum(Fraction(x) ** 2 for x in sorted(np.abs(values).tolist())[: d - k])
            error = sum(Fraction(x) ** 2 for x in (v - out).tolist())
            assert error == kept  # nothing smaller is left out, and what is sent is sent exactly
            assert error <= (1 - Fraction(k, d)) * sum(Fraction(x) ** 2 for x in values.tolist())
        signs = torch.tensor([(-1.0) ** j for j in range(d)], dtype=torch.float64)
        assert float(((signs - send(TopK(k), signs[None], keys_of(1))) ** 2).sum()) == d - k
        assert send(TopK(k), signs[None], keys_of(1)).nonzero()[:, 1].tolist() == list(range(k))  # ties: lower index


def test_a_fraction_is_rounded_up_to_a_count() -> None:
    assert [TopK(k).claim(10, 1).alpha for k in (0.05, 0.1, 0.11, 1.0, 1, 99)] == [0.1, 0.1, 0.2, 1.0, 0.1, 1.0]
    assert TopK(0.3).claim(10, 1).alpha == 0.3  # 0.3 * 10 is 3 and not 4, whatever floats say


# ---- natural ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 5])
def test_natural_variance_is_at_most_an_eighth(d: int) -> None:
    """The variance of each coordinate from its two outcomes; the law itself is enumerated in tests/test_kernels.py."""
    assert Natural().claim(d, 4) == Unbiased(0.125)
    for values in nasty(d):
        variance, square = Fraction(0), Fraction(0)
        outcomes = send(Natural(), torch.from_numpy(values).expand(64, d), keys_of(64)).numpy()
        for j, x in enumerate(abs(Fraction(float(value))) for value in values):
            square += x * x
            if x:
                low = Fraction(2) ** (math.frexp(float(x))[1] - 1)
                variance += (x - low) * (2 * low - x)
                assert set(np.abs(outcomes[:, j])) <= ({float(low)} if x == low else {float(low), float(2 * low)})
                assert (np.sign(outcomes[:, j]) == np.sign(values[j])).all()
            else:
                assert not outcomes[:, j].any()
        assert variance <= square / 8
    nearly = Fraction(4 / 3)  # as near to 4/3 as float64 comes
    assert float((nearly - 1) * (2 - nearly) / nearly**2) == pytest.approx(0.125, abs=1e-16)


# ---- what holds for every compressor of the catalogue ----------------------------------------------------------------


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=str)
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 2), (2, 2, 2)])
@pytest.mark.parametrize("n", [1, 3, 11])
def test_shapes_and_company_change_nothing(compressor: Compressor, shape: tuple[int, ...], n: int) -> None:
    """A worker's message is the same alone and among others, flat and shaped; nothing is written to the input."""
    d, keys = math.prod(shape), keys_of(n)
    v = torch.from_numpy(np.random.default_rng(n).standard_normal((n, *shape)))
    before = v.clone()
    out = send(compressor, v, keys)
    assert torch.equal(v, before)
    assert out.shape == v.shape and torch.equal(out.view(n, d), send(compressor, v.view(n, d), keys))
    for row in range(n):
        assert torch.equal(send(compressor, v[row : row + 1], keys.at([row])), out[row : row + 1])
    odd = np.arange(n)[::2]
    assert torch.equal(send(compressor, v[odd], keys.at(odd)), out[odd])
    assert torch.equal(send(compressor, v, keys), out)  # a pure function of vectors and addresses
    assert send(compressor, v[:0], keys.at([])).shape == (0, *shape)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=str)
def test_views_and_float32(compressor: Compressor) -> None:
    v = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 5)))
    view = v.T.contiguous().T
    assert not view.is_contiguous() and torch.equal(send(compressor, view, keys_of(6)), send(compressor, v, keys_of(6)))
    assert send(compressor, v.float(), keys_of(6)).dtype == torch.float32


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=str)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 100), (3, 1), (7, 100), (100, 7)])
def test_the_share_is_the_size_of_a_message(compressor: Compressor, n: int, d: int) -> None:
    """Of the values alone: indices and counts are not counted. On average over workers; where sizes are drawn from the
    seed, over steps too; where they depend on the data, the share is an upper bound. Levels count in full."""
    v = torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sizes = []
    for step in range(200):
        message = compressor.compress(v, keys_of(n, step))
        counts = {slot.count.slot for slot in message.schema if isinstance(slot.count, CountIn)}
        fields = zip(message.schema, message.codes, strict=True)
        sizes.append(
            sum(
                len(codes) * slot.coding.width
                for place, (slot, codes) in enumerate(fields)
                if isinstance(slot.coding, Bits) and place not in counts
            )
            / (64 * n * d)
        )
        levels = [slot.coding for slot in message.schema if isinstance(slot.coding, Levels)]
        if levels:
            sizes[-1] = float(message.bits.mean()) / (64 * d)
        if counts or levels:
            assert sizes[0] <= compressor.share(d, n) * (1 + 1e-12)
            return
        if all(isinstance(slot.count, int) for slot in message.schema):
            break
    spread = np.std(sizes) / math.sqrt(len(sizes))
    assert np.mean(sizes) == pytest.approx(compressor.share(d, n), rel=1e-12, abs=5 * spread)


def test_identity_is_the_identity() -> None:
    v = torch.from_numpy(np.stack(list(nasty(6))))
    assert torch.equal(send(Identity(), v, keys_of(len(v))), v) and Identity().claim(6, 2) == Unbiased(0.0)


def test_claims_of_one_kind_as_another() -> None:
    assert as_unbiased(Contractive(0.5)) is None and as_unbiased(None) is None and as_joint(Contractive(0.5), 2) is None
    assert as_unbiased(AB(1.0, 1.0, 4.0)) == 4.0 and as_joint(AB(1.0, 1.0, 4.0), 2) == AB(1.0, 1.0, 4.0)
    assert as_joint(Unbiased(6.0), 3) == AB(2.0, 0.0, 6.0)
    assert as_contractive(Unbiased(0.125)) == 0.875 and as_contractive(Unbiased(1.0)) is None
    assert as_contractive(Contractive(0.3)) == 0.3 and as_contractive(None) is None


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=str)
def test_what_no_compressor_takes_is_refused_in_one_line(compressor: Compressor) -> None:
    keys, v = Keys(1, 0, "/up0", np.array([4, 7]), 9), torch.ones(2, 6, dtype=torch.float64)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for bad in (math.nan, math.inf, -math.inf):
            spoilt = v.to(dtype)
            spoilt[1, 3] = bad
            with pytest.raises(
                ValueError, match=rf"{bad} at \(3,\) of worker 7's vector : every number must be finite"
            ):
                compressor.compress(spoilt, keys)
    with pytest.raises(ValueError, match=r"torch.float16 : its dtype must be one of torch.float64, torch.float32"):
        compressor.compress(v.to(torch.float16), keys)
    with pytest.raises(ValueError, match=r"a vector on meta : it must be on the cpu; give v.cpu\(\)"):
        compressor.compress(v.to("meta"), keys)
    with pytest.raises(ValueError, match=r"shape \(3, 6\) for 2 addresses : the first axis is the workers"):
        compressor.compress(torch.ones(3, 6), keys)
