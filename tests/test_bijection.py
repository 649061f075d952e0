"""The keyed bijection of 0..d-1: against plain integers, exact and statistical laws, and PermK's blocks."""

from __future__ import annotations

import itertools
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from laconic.compressors import permk
from laconic.compressors.permk import EXACT, PermK
from laconic.compressors.topk import TopK
from laconic.compressors.topk_permk import TopKPermK
from laconic.core.keys import Keys
from laconic.kernels import bijection
from sending import keys_of, send, wholes

UNLIKELY = 1e-6  # the seeds are fixed, so a test passes always or never; a right bijection is this unlikely to fail
RESNET50 = 25_557_032


def by_hand(d: int, words: list[int], position: int, rounds: int = 8) -> int:
    """docs/wire.md, read literally."""
    a = next(a for a in itertools.count(1) if a * a >= d) if d < 10**6 else bijection.sides(d)[0]
    b = -(-d // a)
    while True:
        left, right = divmod(position, b)
        for t in range(rounds):
            if t % 2 == 0:
                left = (left + (words[t * a + right] * a >> 64)) % a
            else:
                right = (right + (words[t * a + left] * b >> 64)) % b
        position = left * b + right
        if position < d:
            return (position + (words[8 * a] * d >> 64)) % d


def row(seed: int, step: int) -> Keys:
    return Keys(seed, step, "/x", np.array([5]), 9)


# ---- what it is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [*range(1, 301), 4097, 5000, 65_536, 65_537, 1_000_003])
def test_every_image_occurs_once_and_leads_back(d: int) -> None:
    keys = keys_of(3 if d <= 5000 else 1, d)
    out = keys.images(d, np.arange(d))
    assert out.dtype == np.int64 and (np.sort(out, axis=1) == np.arange(d)).all()
    back = bijection.preimages(keys.words(bijection.count(d)), d, out)
    assert (back == np.arange(d)).all()
    a, b = bijection.sides(d)
    assert b <= a and a * b >= d > (a - 1) * (a - 1) and a * (b - 1) < d


@given(st.integers(1, 300) | st.integers(4000, 20_000), st.integers(0, 2**63 - 1), st.integers(0, 2**64 - 1), st.data())
def test_images_are_those_of_plain_integers(d: int, seed: int, step: int, data: st.DataObject) -> None:
    keys = row(seed, step)
    positions = data.draw(st.lists(st.integers(0, d - 1), max_size=20))
    words = keys.words(bijection.count(d))[0].tolist()
    expected = [by_hand(d, words, position) for position in positions]
    assert keys.images(d, np.array(positions, dtype=np.int64))[0].tolist() == expected


@pytest.mark.parametrize("d", [RESNET50, 2**33 + 5])
def test_large_dimensions_agree_with_plain_integers(d: int) -> None:
    keys, positions = row(1, 2), np.array([0, 1, 2, d // 3, d - 2, d - 1])
    words = keys.words(bijection.count(d))
    out = keys.images(d, positions)
    assert out[0].tolist() == [by_hand(d, words[0].tolist(), int(position)) for position in positions]
    assert bijection.preimages(words, d, out)[0].tolist() == positions.tolist()


def test_a_row_depends_on_its_address_alone(two_threads: None) -> None:
    keys, positions = keys_of(40), np.arange(0, 50_000, 7)
    both = keys.images(50_000, positions)
    assert len({part.tobytes() for part in both}) == 40
    assert not np.array_equal(keys_of(1, 1).images(50_000, positions), both[:1])
    torch.set_num_threads(1)
    assert np.array_equal(keys.images(50_000, positions), both)
    assert np.array_equal(keys.at([7, 3]).images(50_000, positions), both[[7, 3]])
    assert np.array_equal(keys.images(50_000, positions[::-5]), both[:, ::-5])
    assert keys_of(0).images(9, np.arange(9)).shape == (0, 9) and keys.images(9, np.arange(0)).shape == (40, 0)


def test_positions_outside_are_an_error() -> None:
    for position in (-1, 10):
        with pytest.raises(ValueError, match=r"positions must lie in 0\.\.9"):
            keys_of(2).images(10, np.array([0, position]))


# ---- its law ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 5, 7, 30, 143])
def test_each_image_is_exactly_uniform(d: int) -> None:
    """Whatever the network, the d equally likely numbers that are added last give every image once."""
    words = np.repeat(keys_of(1, d).words(bijection.count(d)), d, axis=0)
    words[:, -1] = [-(-(s << 64) // d) for s in range(d)]  # the least words that make these numbers
    assert (np.sort(bijection.images(words, d, np.arange(d)), axis=0) == np.arange(d)[:, None]).all()


def unlikely(cells: np.ndarray, expected: np.ndarray) -> bool:
    counts = np.bincount(cells, minlength=len(expected))
    return float(stats.chisquare(counts, expected * len(cells)).pvalue) < UNLIKELY


def shares(d: int, cells: int) -> np.ndarray:
    """How much of 0..d-1 falls into each of equal cells, by i -> floor(i cells / d)."""
    return np.bincount(np.arange(d) * cells // d) / d


@pytest.mark.parametrize("d", [4097, 5003, 5041])
def test_images_and_pairs_of_them_are_uniform(d: int) -> None:
    """Over 6000 keys: 50 cells for an image, 8 x 8 for two, 60 for how far apart two are, some alike in a half."""
    b = bijection.sides(d)[1]
    positions = np.array([0, 1, b, b + 1, d // 2, d - 1])
    drawn = np.concatenate([keys_of(2000, step).images(d, positions) for step in range(3)])
    for place in range(len(positions)):
        assert not unlikely(drawn[:, place] * 50 // d, shares(d, 50))
    for one, other in itertools.combinations(range(len(positions)), 2):
        cells = drawn[:, one] * 8 // d * 8 + drawn[:, other] * 8 // d
        assert not unlikely(cells, np.outer(shares(d, 8), shares(d, 8)).reshape(-1))
        apart = (drawn[:, one] - drawn[:, other]) % d - 1
        assert not unlikely(apart * 60 // (d - 1), shares(d - 1, 60))


def test_the_check_of_pairs_finds_a_network_of_two_rounds() -> None:
    d, words = 5003, keys_of(2000).words(bijection.count(5003)).tolist()
    b = bijection.sides(d)[1]
    for rounds, bad in ((2, True), (8, False)):
        apart = np.array([(by_hand(d, w, b, rounds) - by_hand(d, w, 0, rounds)) % d - 1 for w in words])
        assert unlikely(apart * 60 // (d - 1), shares(d - 1, 60)) is bad


def test_a_block_of_positions_is_spread_like_a_random_one() -> None:
    """How many of a block of 500 fall into 25 stretches of 200 is hypergeometric: Pearson's sums over 400 keys."""
    d, block, cells = 5000, 500, 25
    drawn = keys_of(400).images(d, np.arange(1000, 1000 + block))
    counts = np.stack([np.bincount(part * cells // d, minlength=cells) for part in drawn])
    expected = block / cells
    sums = ((counts - expected) ** 2).sum(1) / expected * (d - 1) / (d - block)  # each about chi-square, cells - 1
    assert float(sums.mean()) == pytest.approx(cells - 1, abs=6 * np.sqrt(2 * (cells - 1) / 400))
    assert float(sums.var()) == pytest.approx(2 * (cells - 1), rel=0.5)


# ---- PermK beyond uniform permutations -------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "n"), [(EXACT + 1, 1), (EXACT + 1, 4097), (5000, 7), (5003, 1200), (40_000, 64)])
def test_permk_deals_all_coordinates_once_and_evenly_to_whoever_asks(d: int, n: int) -> None:
    keys = keys_of(n, 3)
    indices, offsets = PermK().owned(d, keys)
    assert np.array_equal(np.sort(indices), np.arange(d)) and set(np.diff(offsets)) <= {d // n, -(-d // n)}
    everyone = np.split(indices, offsets[1:-1])
    assert all((np.diff(own) > 0).all() for own in everyone)
    for who in ([0], [n - 1], [n // 2, 0], []):
        some, ends = PermK().owned(d, keys.at(np.array(who, dtype=np.int64)))
        assert np.array_equal(ends, np.cumsum([0, *(len(everyone[i]) for i in who)]))
        assert np.array_equal(some, np.concatenate([np.arange(0), *(everyone[i] for i in who)]))


def test_permk_takes_uniform_permutations_where_d_or_n_asks_for_them() -> None:
    """Up to EXACT coordinates, and where some are dealt more often than others."""
    for d, n, whole in ((EXACT, 2, True), (EXACT + 1, 2, False), (5000, 5001, True)):
        keys = keys_of(n, 1)
        order = keys.shared.permutations(d)[0] if whole else keys.shared.images(d, np.arange(d))[0]
        shuffled = keys.shared.scope("workers").permutations(n)[0]
        q, r = divmod(d, n)
        for worker in (0, 1):
            block = int(shuffled[worker])
            if d < n:
                own = [*range(d), *order[: n - d]][block : block + 1]
            else:
                begin = block * q + min(block, r)
                own = np.sort(order[begin : begin + q + (block < r)]).tolist()
            assert PermK().owned(d, keys.at([worker]))[0].tolist() == own


def test_permk_is_exactly_unbiased_over_the_shuffles_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the bijection: over all shuffles each coordinate has each owner equally often, and A = B = 1."""
    d, n, keys = 5003, 4, keys_of(4)
    a, total, alone, joint = wholes(n, d), torch.zeros(n, d, dtype=torch.float64), torch.zeros(n), 0.0
    orders = list(itertools.permutations(range(n)))
    for order in orders:
        monkeypatch.setattr(Keys, "permutations", lambda self, d, order=order: np.array([order]))
        permk._blocks.cache_clear()
        out = send(PermK(), a, keys)
        total += out
        alone += ((out - a) ** 2).sum(1)
        joint += float(((out.sum(0) - a.sum(0)) ** 2).sum())  # n^2 times the error of the mean
    permk._blocks.cache_clear()
    assert torch.equal(total, len(orders) * a)
    assert torch.equal(alone, (len(orders) * (n - 1) * (a**2).sum(1)).float())
    assert joint == len(orders) * (n * float((a**2).sum()) - float((a.sum(0) ** 2).sum()))


def test_the_size_of_a_coordinates_block_has_its_law() -> None:
    """TopK of the block needs it: exactly r (q + 1) / d of the numbers added last put a coordinate in a longer one."""
    d, n = 143, 10
    q, r = divmod(d, n)
    words = np.repeat(keys_of(1).words(bijection.count(d)), d, axis=0)
    words[:, -1] = [-(-(s << 64) // d) for s in range(d)]
    longer = bijection.preimages(words, d, np.full((d, 1), 77)) < r * (q + 1)
    assert Fraction(int(longer.sum()), d) == Fraction(r * (q + 1), d)


@pytest.mark.parametrize("k", [3, 1000])
def test_topk_permk_is_topk_of_such_a_block(k: int) -> None:
    d, n, keys = 5003, 9, keys_of(9, 2)
    v = torch.from_numpy(np.random.default_rng(0).standard_normal((n, d)))
    indices, offsets = PermK().owned(d, keys)
    out = send(TopKPermK(k), v, keys)
    for worker in range(n):
        own = torch.from_numpy(indices[offsets[worker] : offsets[worker + 1]])
        expected = torch.zeros_like(v[worker])
        expected[own] = send(TopK(k), v[worker, own][None], keys.at([0]))[0]
        assert torch.equal(out[worker], expected)
        assert torch.equal(send(TopKPermK(k), v[[worker]], keys.at([worker])), out[[worker]])


def test_one_worker_of_many_makes_no_permutation_of_d() -> None:
    """A permutation of d = 25,557,032 alone takes 204 MB; a block of it 2 MB, and the sides' tables 0.5 MB."""
    keys = keys_of(100, 4).at([17])
    PermK().owned(5000, keys)
    tracemalloc.start()
    try:
        indices, offsets = PermK().owned(RESNET50, keys)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        permk._blocks.cache_clear()
    assert len(indices) == offsets[1] in (255_570, 255_571) and peak < 16 << 20
