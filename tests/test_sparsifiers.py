"""The sparsifiers beside RandK, TopK and PermK: exact laws over every outcome, equality cases, and their wire."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from laconic.compressors import permk, permk_variants
from laconic.compressors.adaptive_random import AdaptiveRandom
from laconic.compressors.block_topk import BlockTopK
from laconic.compressors.permk import PermK
from laconic.compressors.permk_variants import PermKBlocks, PermKSampling
from laconic.compressors.topk import TopK
from laconic.compressors.topk_permk import TopKPermK
from laconic.compressors.unscaled_randk import UnscaledRandK
from laconic.core.compressor import AB, Compressor, Contractive
from laconic.core.keys import SERVER, Keys
from laconic.core.message import Message
from laconic.core.spec import parse
from sending import keys_of, send, wholes

DTYPES = [torch.float64, torch.float32]
Deals = Callable[[pytest.MonkeyPatch, int, int], Iterator[Compressor]]


def nasty(d: int) -> Iterator[Tensor]:
    """Equal magnitudes, a spike, many scales, some zeros, nothing."""
    signs = torch.tensor([(-1.0) ** j for j in range(d)], dtype=torch.float64)
    yield signs
    yield torch.eye(d, dtype=torch.float64)[d // 2] * -7.0
    yield signs * 10.0 ** torch.arange(d, dtype=torch.float64)
    yield wholes(1, d, d)[0]
    yield torch.zeros(d, dtype=torch.float64)


# ---- unscaled RandK: every support -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d", "k"), [(d, k) for d in range(1, 7) for k in range(1, d + 1)])
def test_unscaled_randk_contracts_by_exactly_k_over_d(
    monkeypatch: pytest.MonkeyPatch, d: int, k: int, dtype: torch.dtype
) -> None:
    """Over all supports, each equally likely: the error is (1 - k/d) ||x||^2 and the mean (k/d) x, for every x."""
    supports = np.array(list(itertools.combinations(range(d), k)))
    count, v = len(supports), wholes(1, d, d)[0].to(dtype)
    monkeypatch.setattr(Keys, "subsets", lambda self, d, k: supports)
    out = send(UnscaledRandK(k), v.expand(count, d), keys_of(count))
    assert UnscaledRandK(k).claim(d, 3) == Contractive(k / d)
    assert float(((out - v) ** 2).sum()) * d == (d - k) * count * float(v @ v)
    assert torch.equal(out.sum(0) * d, v * k * count)


def test_unscaled_randk_takes_its_support_from_the_seed_and_sends_values_alone() -> None:
    v, keys = wholes(4, 10).float(), keys_of(4)
    out = send(UnscaledRandK(3), v, keys)
    for row, support in enumerate(keys.subsets(10, 3)):
        expected = torch.zeros(10)
        expected[support] = v[row, support]
        assert torch.equal(out[row], expected)
    assert UnscaledRandK(3).compress(v, keys).nbytes.tolist() == [12] * 4
    assert torch.equal(send(UnscaledRandK(99), v, keys), v)


# ---- adaptive random sparsification: the law of the index ------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", [[3], [-2, 5], [0, 1, 0], [4, -4, 4, 4], [0, -7, 1, 0, 3, 0], [1, 2, 3, 4, -5, 6]])
def test_adaptive_random_draws_in_proportion_to_magnitudes(
    monkeypatch: pytest.MonkeyPatch, values: list[int], dtype: torch.dtype
) -> None:
    """With u in the middle of each of ||x||_1 equal pieces of [0, 1), coordinate j must come |x_j| times."""
    v, d = torch.tensor(values, dtype=dtype), len(values)
    total = int(v.abs().sum())
    pieces = (torch.arange(total, dtype=torch.float64)[:, None] + 0.5) / total
    monkeypatch.setattr(Keys, "uniform", lambda self, count: pieces)
    out = send(AdaptiveRandom(), v.expand(total, d), keys_of(total))
    assert (out != 0).sum(0).tolist() == [abs(x) for x in values]
    assert torch.equal(out.sum(0), v * v.abs())
    square, cube = sum(x * x for x in values), sum(abs(x) ** 3 for x in values)
    error = float(((out - v) ** 2).sum())
    assert error == total * square - cube  # E = ||x||^2 - ||x||_3^3 / ||x||_1, times ||x||_1
    bound = (1 - AdaptiveRandom().claim(d, 2).alpha) * square * total
    equal = len({abs(x) for x in values}) == 1
    assert error == pytest.approx(bound) if equal else error < bound


def test_adaptive_random_never_sends_a_zero_that_it_need_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """At both ends of u, and at boundaries between coordinates."""
    v = torch.tensor([[0.0, 1.0, 0.0, 0.0, 3.0, 0.0]], dtype=torch.float64)
    for u, expected in ((0.0, 1), (0.25 - 2**-53, 1), (0.25, 4), (1 - 2**-53, 4)):
        monkeypatch.setattr(Keys, "uniform", lambda self, count, u=u: torch.tensor([[u]], dtype=torch.float64))
        assert send(AdaptiveRandom(), v, keys_of(1)).nonzero()[:, 1].tolist() == [expected]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 2, 100])
def test_adaptive_random_on_nothing_and_on_extremes(d: int, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    for value in (0.0, -0.0, limits.max, limits.tiny, limits.tiny * limits.eps):
        v = torch.full((5, d), value, dtype=dtype)
        out = send(AdaptiveRandom(), v, keys_of(5))
        assert (out != 0).sum(1).tolist() == [int(value != 0)] * 5 and set(out.view(-1).tolist()) <= {
            0.0,
            v[0, 0].item(),
        }
    message = AdaptiveRandom().compress(torch.ones(3, 1, dtype=dtype), keys_of(3))
    assert message.nbytes.tolist() == [dtype.itemsize] * 3  # of one coordinate no index travels


# ---- PermK's variants: every deal ------------------------------------------------------------------------------------

DEALS = [(1, 1), (3, 1), (1, 2), (2, 2), (3, 2), (5, 2), (2, 3), (3, 3), (4, 3), (5, 3), (3, 4), (5, 4)]


def fixed_blocks(monkeypatch: pytest.MonkeyPatch, d: int, n: int) -> Iterator[Compressor]:
    for workers in itertools.permutations(range(n)):
        monkeypatch.setattr(Keys, "permutations", lambda self, d, drawn=workers: np.array([drawn]))
        yield PermKBlocks()


def sampled(monkeypatch: pytest.MonkeyPatch, d: int, n: int) -> Iterator[Compressor]:
    for owners in itertools.product(range(n), repeat=d):
        drawn = (torch.tensor([owners], dtype=torch.float64) + 0.5) / n
        monkeypatch.setattr(Keys, "uniform", lambda self, count, drawn=drawn: drawn)
        permk_variants._sampled.cache_clear()
        yield PermKSampling()
    permk_variants._sampled.cache_clear()


@pytest.mark.parametrize(("d", "n"), DEALS)
@pytest.mark.parametrize("deals", [fixed_blocks, sampled])
def test_partitions_are_unbiased_and_their_ab_is_an_equality(
    monkeypatch: pytest.MonkeyPatch, deals: Deals, d: int, n: int
) -> None:
    """A = B = 1 and omega = n - 1 over all outcomes, for d < n too; whole numbers, so the sums are exact."""
    a, keys, total, joint, count = wholes(n, d), keys_of(n), torch.zeros(n, d, dtype=torch.float64), 0.0, 0
    alone = torch.zeros(n, dtype=torch.float64)
    for compressor in deals(monkeypatch, d, n):
        out = send(compressor, a, keys)
        assert compressor.claim(d, n) == AB(1.0, 1.0, n - 1.0)
        total += out
        alone += ((out - a) ** 2).sum(1)
        joint += float(((out.sum(0) - a.sum(0)) ** 2).sum())  # n^2 times the error of the mean
        count += 1
    assert count == (math.factorial(n) if deals is fixed_blocks else n**d)
    assert torch.equal(total, count * a) and torch.equal(alone, count * (n - 1) * (a**2).sum(1))
    assert joint == count * (n * float((a**2).sum()) - float((a.sum(0) ** 2).sum()))


@given(st.integers(1, 20), st.integers(1, 40), st.integers(0, 10**6))
def test_partitions_deal_everything_once_and_blocks_evenly(n: int, d: int, step: int) -> None:
    keys, ones = keys_of(n, step), torch.ones(n, d, dtype=torch.float64)
    for compressor in (PermKBlocks(), PermKSampling()):
        out = send(compressor, ones, keys)
        assert ((out != 0).sum(0) == 1).all() and set(out.unique().tolist()) <= {0.0, float(n)}
        some = np.arange(n)[step % 3 :: 2]
        assert torch.equal(send(compressor, ones[some], keys.at(some)), out[some])
        assert compressor.compress(ones, keys).nbytes.tolist() == [8 * int(row.count_nonzero()) for row in out]
    for row in send(PermKBlocks(), ones, keys):
        places = row.nonzero()[:, 0].tolist()
        assert len(places) in (d // n, -(-d // n)) and places == list(
            range(*(places[0], places[-1] + 1) if places else (0,))
        )


def test_owners_are_uniform_over_workers_and_fresh_every_step() -> None:
    """Chi-square over 4000 coordinates and four steps: 99.99% of the law is below 27.9 for 6 degrees of freedom."""
    n, d = 7, 4000
    deals = [(send(PermKSampling(), torch.ones(n, d), keys_of(n, step)) != 0).long() for step in range(4)]
    for owned in deals:
        assert float(((owned.sum(1) - d / n) ** 2).sum() / (d / n)) < 27.9
    assert not torch.equal(deals[0], deals[1])


# ---- TopK after PermK ------------------------------------------------------------------------------------------------


def every_deal(monkeypatch: pytest.MonkeyPatch, d: int, n: int) -> Iterator[None]:
    """Sets one pair of permutations after another (of coordinates, and of workers)."""
    for order in itertools.permutations(range(d)):
        for workers in itertools.permutations(range(n)):
            drawn = {"/up0": order, "/up0/workers": workers}
            monkeypatch.setattr(Keys, "permutations", lambda self, d, drawn=drawn: np.array([drawn[self.stream]]))
            permk._deal.cache_clear()
            yield
    permk._deal.cache_clear()


@pytest.mark.parametrize(("d", "n"), [(1, 1), (3, 1), (4, 2), (5, 2), (4, 3), (1, 3), (2, 3), (3, 4)])
def test_topk_permk_contracts_with_equality_at_equal_magnitudes(
    monkeypatch: pytest.MonkeyPatch, d: int, n: int
) -> None:
    """Per worker over all deals, for remainders, clamped k and d < n, and every scale that claims something."""
    cases = [TopKPermK(k, scale) for k in range(1, d + 1) for scale in (0.5, 1.0, 1.5)]
    vectors = torch.stack(list(nasty(d)))
    rows = len(vectors)
    keys = Keys(0, 0, "/up0", np.zeros(rows, dtype=np.int64), n)  # one worker: the others are like it
    error, count = torch.zeros(len(cases), rows, dtype=torch.float64), 0
    for _ in every_deal(monkeypatch, d, n):
        for place, case in enumerate(cases):
            codes = case.codes(vectors, keys)
            message = Message(case.schema((d,), vectors.dtype, keys), codes, rows)
            error[place] += ((case.decode(message, (d,), vectors.dtype, keys).dense() - vectors) ** 2).sum(1)
        count += 1
    for case, errors in zip(cases, error / count, strict=True):
        claim = case.claim(d, n)
        assert claim is not None and isinstance(case.k, int)
        assert claim.alpha == pytest.approx(case.scale * (2 - case.scale) * min(case.k, max(d / n, 1)) / d)
        squares = torch.stack([v @ v for v in vectors])
        assert float(errors[0]) == pytest.approx((1 - claim.alpha) * d, rel=1e-12, abs=1e-12)
        assert (errors <= (1 - claim.alpha) * squares * (1 + 1e-12) + 1e-12).all()


def test_topk_permk_claims_nothing_from_scale_two_on() -> None:
    assert TopKPermK(1, scale=1.99).claim(6, 3) is not None
    assert [TopKPermK(1, scale=scale).claim(6, 3) for scale in (2.0, 3.0)] == [None, None]


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.integers(1, 9), st.integers(1, 30), st.integers(1, 12), st.integers(0, 10**6))
def test_topk_permk_is_topk_of_the_block_that_permk_deals(
    dtype: torch.dtype, n: int, d: int, k: int, step: int
) -> None:
    keys, v = keys_of(n, step), torch.from_numpy(np.random.default_rng(step).standard_normal((n, d))).to(dtype)
    owned = send(PermK(), torch.ones_like(v), keys) != 0
    out = send(TopKPermK(k, scale=2.5), v, keys)
    for row in range(n):
        block = owned[row].nonzero()[:, 0]
        kept = block[v[row, block].abs().argsort(descending=True)[:k]]
        expected = torch.zeros(d, dtype=dtype)
        expected[kept] = v[row, kept] * 2.5
        assert torch.equal(out[row], expected)
    some = np.arange(n)[step % 2 :: 2]
    assert torch.equal(send(TopKPermK(k, scale=2.5), v[some], keys.at(some)), out[some])


def test_with_whole_blocks_and_scale_n_topk_permk_is_permk_and_sends_no_index() -> None:
    v, keys = wholes(3, 10), keys_of(3)
    assert torch.equal(send(TopKPermK(4, scale=3.0), v, keys), send(PermK(), v, keys))
    assert TopKPermK(4).compress(v, keys).nbytes.tolist() == PermK().compress(v, keys).nbytes.tolist()


def test_indices_of_topk_permk_are_those_inside_the_block() -> None:
    """Two of 1024 have Rice parameter 8: a flag, 2 (8 + 1) bits, quotients that add up to at most 3; of 65536: 14."""
    v, keys = torch.randn(64, 65536, generator=torch.Generator().manual_seed(0)), keys_of(64)
    local, plain = (compressor.compress(v, keys).bits - 64 for compressor in (TopKPermK(2), TopK(2)))
    assert 19 <= local.min() and local.max() <= 19 + 3 and plain.min() >= 31


# ---- block TopK ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.integers(0, 4), st.integers(1, 40), st.integers(1, 12), st.integers(1, 45), st.integers(0, 10**6))
def test_block_topk_is_topk_of_every_block(
    dtype: torch.dtype, rows: int, d: int, k: int, block: int, seed: int
) -> None:
    """Many ties: small whole numbers."""
    v, keys, compressor = wholes(rows, d, seed).to(dtype), keys_of(rows), BlockTopK(k, block)
    before = v.clone()
    out = send(compressor, v, keys)
    expected = torch.cat([send(TopK(k), part, keys) for part in v.split(block, dim=1)], dim=1)
    assert torch.equal(out, expected) and torch.equal(v, before)
    sent = sum(min(k, len(part)) for part in torch.ones(d).split(block))
    assert compressor.share(d, 1) == sent / d
    assert [slot.count for slot in compressor.schema((d,), dtype, keys)] == [sent, sent]
    for row in range(rows):
        assert torch.equal(send(compressor, v[row : row + 1], keys.at([row])), out[row : row + 1])


@pytest.mark.parametrize(("d", "block"), [(1, 4), (8, 4), (9, 3), (10, 4), (7, 7), (5, 9), (6, 1)])
def test_block_topk_contracts_with_equality_on_full_blocks(d: int, block: int) -> None:
    for k in range(1, block + 1):
        compressor = BlockTopK(k, block)
        alpha = compressor.claim(d, 3).alpha
        for place, v in enumerate(nasty(d)):
            error = float(((send(compressor, v[None], keys_of(1))[0] - v) ** 2).sum())
            assert error <= (1 - alpha) * float(v @ v) * (1 + 1e-15)
            if place == 0 and (d % block == 0 or d < block):
                assert error == pytest.approx((1 - alpha) * d, abs=1e-12)
    assert BlockTopK(0.5, 4).claim(100, 1) == Contractive(0.5) and BlockTopK(0.3, 10).claim(5, 1) == Contractive(0.4)


@pytest.mark.parametrize("spec", ["permk", "permk_blocks", "permk_sampling", "topk_permk(k=2)"])
@pytest.mark.parametrize(("worker", "n"), [(5, 3), (2, 2), (-1, 3), (SERVER, 4)])
def test_coordinates_are_dealt_to_workers_alone(spec: str, worker: int, n: int) -> None:
    compressor: Any = parse(spec)
    keys, who = Keys(0, 0, "/up0", np.array([0, worker]), n), "the server" if worker == SERVER else f"worker {worker}"
    for d in (10, 5000):
        with pytest.raises(ValueError, match=rf"for {who} of n = {n} : .* numbers must be below n"):
            compressor.compress(torch.ones(2, d), keys)
