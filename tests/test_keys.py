"""Randomness as an address: Philox against its published answers and a plain Python twin, and what is drawn from it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from laconic.core.keys import SERVER, SHARED, Keys
from laconic.kernels import philox

WORD = 0xFFFFFFFF
UNLIKELY = 1e-6  # the seeds are fixed, so a test passes always or never; a right generator is this unlikely to fail
POSITION, SEED = st.integers(0, 40), st.integers(0, 2**63 - 1)
STEP = st.integers(0, 2**64 - 1)


def reference_philox(counter: tuple[int, ...], key: tuple[int, ...], rounds: int = 10) -> tuple[int, ...]:
    """Philox4x32 in integers of any size, written from the paper's figure."""
    x, (k0, k1) = list(counter), key
    for _ in range(rounds):
        left, right = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(right >> 32) ^ x[1] ^ k0, right & WORD, (left >> 32) ^ x[3] ^ k1, left & WORD]
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return tuple(x)


def reference_words(keys: Keys, worker: int) -> Iterator[int]:
    """A worker's stream of 64-bit words at the address of `keys`."""
    first, second, low, high = (int(part) for part in keys.address)
    for block in itertools.count():
        a, b, c, d = reference_philox((block, worker, low, high), (first, second))
        yield a | b << 32
        yield c | d << 32


def keys_of(workers: object, seed: int = 0, step: int = 0, stream: str = "test") -> Keys:
    return Keys(seed, step, stream, np.asarray(workers, dtype=np.int64), 1 << 20)


# ---- Philox ----------------------------------------------------------------------------------------------------------

KNOWN_ANSWERS = [  # Random123's kat_vectors: counter, key, answer
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter: str, key: str, answer: str) -> None:
    counters, keys, answers = (tuple(int(part, 16) for part in text.split()) for text in (counter, key, answer))
    assert reference_philox(counters, keys) == answers
    words = philox.philox4x32(*(np.uint32(part) for part in (*counters, *keys)))
    assert tuple(int(part) for part in words) == answers


def test_the_published_answer_comes_out_of_the_kernel() -> None:
    out = np.empty((1, 2), dtype=np.uint64)
    philox.fill(0, 1, np.zeros(4, dtype=np.uint32), np.zeros(1, dtype=np.int64), out)
    assert [int(word) for word in out[0]] == [0xE169C58D6627E8D5, 0x9B00DBD8BC57AC4C]


@given(seed=SEED, step=STEP, worker=st.sampled_from([0, 1, 7, 10**6, SERVER, SHARED]), count=POSITION)
def test_words_are_philox_at_the_address(seed: int, step: int, worker: int, count: int) -> None:
    keys = keys_of([worker, 3], seed, step)
    words = keys.words(count)
    assert words.shape == (2, count) and words.dtype == np.uint64
    for row, who in enumerate((worker, 3)):
        assert [int(word) for word in words[row]] == list(itertools.islice(reference_words(keys, who), count))


@given(a=st.integers(0, 2**64 - 1), b=st.integers(0, 2**64 - 1))
def test_the_upper_half_of_a_product_is_exact(a: int, b: int) -> None:
    assert int(philox.high_product(np.uint64(a), np.uint64(b))) == a * b >> 64


# ---- addresses -------------------------------------------------------------------------------------------------------


@given(order=st.permutations(range(9)), taken=st.integers(1, 9))
def test_a_row_does_not_depend_on_what_shares_its_batch(order: list[int], taken: int) -> None:
    whole, some = keys_of(range(9)), keys_of(order[:taken])
    draws = [
        lambda keys: keys.words(5),
        lambda keys: keys.normal(5).numpy(),
        lambda keys: keys.coins(0.5).numpy(),
        lambda keys: keys.permutations(6),
        lambda keys: keys.subsets(11, 4),
    ]
    for draw in draws:
        np.testing.assert_array_equal(draw(some), draw(whole)[order[:taken]])
        np.testing.assert_array_equal(draw(whole.at(order[:taken])), draw(some))


def test_the_number_of_threads_changes_nothing(two_threads: None) -> None:
    keys = keys_of(range(101))
    draws = keys.words(501), keys.permutations(257), keys.subsets(4001, 33)
    torch.set_num_threads(1)
    for one, two in zip((keys.words(501), keys.permutations(257), keys.subsets(4001, 33)), draws, strict=True):
        np.testing.assert_array_equal(one, two)


def test_every_part_of_the_address_matters_and_drawing_twice_does_not() -> None:
    base = keys_of([5], seed=1, step=2)
    others = [
        keys_of([5], seed=2, step=2),
        keys_of([5], seed=1, step=3),
        keys_of([5], seed=1, step=2 + 2**32),
        keys_of([6], seed=1, step=2),
        keys_of([5], seed=1, step=2, stream="other"),
        base.scope("inner"),
        base.scope("other"),
        base.shared,
    ]
    drawn = {keys.words(4).tobytes() for keys in (base, *others)}
    assert len(drawn) == 1 + len(others)
    np.testing.assert_array_equal(base.words(4), base.words(4))
    np.testing.assert_array_equal(base.words(9)[:, :4], base.words(4))


def test_shared_draws_are_the_same_for_all_parties() -> None:
    np.testing.assert_array_equal(keys_of([0, 1, 2]).shared.words(6), keys_of([], seed=0).shared.words(6))
    assert keys_of([0, 1, 2]).shared.rows == 1


def test_a_block_without_workers_draws_nothing() -> None:
    empty = keys_of([])
    assert empty.words(3).shape == (0, 3) and empty.normal(3).shape == (0, 3)
    assert empty.permutations(3).shape == (0, 3) and empty.subsets(5, 3).shape == (0, 3)


@pytest.mark.usefixtures("untouched_generators")
def test_the_global_generators_stay_untouched() -> None:
    keys = keys_of(range(4))
    drawn = keys.words(3), keys.uniform(3), keys.normal(3), keys.coins(0.3), keys.permutations(5), keys.subsets(9, 3)
    assert all(len(values) == 4 for values in drawn)


# ---- distributions ---------------------------------------------------------------------------------------------------


def equally_likely(outcomes: list[tuple[int, ...]], possible: int) -> bool:
    """Pearson's test that each of `possible` outcomes is as likely as any other."""
    counts = [len(list(group)) for _, group in itertools.groupby(sorted(outcomes))]
    assert len(counts) <= possible
    if possible == 1:
        return True
    return stats.chisquare(counts + [0] * (possible - len(counts))).pvalue > UNLIKELY


def test_the_uniformity_check_finds_a_small_bias() -> None:
    fair = [(outcome,) for outcome in range(10)] * 2000
    assert equally_likely(fair, 10)
    assert not equally_likely(fair + [(3,)] * 400, 10)  # 12% instead of 10%
    assert not equally_likely(fair, 11)


@pytest.mark.parametrize(("d", "k"), [(1, 1), (5, 2), (6, 3), (6, 5), (4, 4)])
def test_subsets_are_sorted_and_uniform(d: int, k: int) -> None:
    drawn = keys_of(range(20_000), seed=3).subsets(d, k)
    assert drawn.min() >= 0 and drawn.max() < d and (np.diff(drawn, axis=1) > 0).all()
    assert equally_likely([tuple(row) for row in drawn.tolist()], math.comb(d, k))


@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_permutations_are_uniform(d: int) -> None:
    drawn = keys_of(range(24_000), seed=4).permutations(d)
    assert (np.sort(drawn, axis=1) == np.arange(d)).all()
    assert equally_likely([tuple(row) for row in drawn.tolist()], math.factorial(d))


def test_steps_are_as_independent_as_workers() -> None:
    drawn = [tuple(keys_of([8], step=step).permutations(3)[0].tolist()) for step in range(3000)]
    assert equally_likely(drawn, 6)


@given(d=st.integers(1, 60), part=st.floats(0, 1), seed=SEED, step=STEP)
def test_subsets_are_floyds_and_permutations_fisher_and_yates(d: int, part: float, seed: int, step: int) -> None:
    keys, k = keys_of([17], seed, step), round(part * d)
    words = reference_words(keys, 17)
    chosen: set[int] = set()
    for j in range(d - k, d):
        candidate = next(words) * (j + 1) >> 64
        chosen.add(j if candidate in chosen else candidate)
    assert keys.subsets(d, k)[0].tolist() == sorted(chosen)

    words, order = reference_words(keys, 17), list(range(d))
    for j in range(d - 1, 0, -1):
        other = next(words) * (j + 1) >> 64
        order[j], order[other] = order[other], order[j]
    assert keys.permutations(d)[0].tolist() == order


def test_uniform_numbers() -> None:
    u = keys_of(range(200), seed=5).uniform(101)
    assert u.dtype == torch.float64 and float(u.min()) >= 0.0 and float(u.max()) < 1.0
    assert torch.equal(u * 2.0**53, torch.floor(u * 2.0**53))
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > UNLIKELY


def test_the_largest_word_still_gives_less_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keys, "words", lambda self, count: np.full((1, count), 2**64 - 1, dtype=np.uint64))
    keys = keys_of([0])
    assert float(keys.uniform(1)) == 1.0 - 2.0**-53
    assert torch.isfinite(keys.normal(2)).all() and not keys.coins(1.0 - 2.0**-53).any()


def test_normal_numbers_are_box_and_mullers() -> None:
    keys = keys_of(range(200), seed=6)
    z = keys.normal(101)
    assert z.shape == (200, 101)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > UNLIKELY
    assert abs(float((z[:, :50] * z[:, 51:]).mean())) < 5 / math.sqrt(200 * 50)  # the two halves are independent
    u = keys.uniform(102).numpy()
    first = np.sqrt(-2 * np.log1p(-u[:, :51])) * np.cos(2 * np.pi * u[:, 51:])
    np.testing.assert_allclose(z[:, :51].numpy(), first, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("probability", [0.0, 0.01, 0.5, 1.0])
def test_coins(probability: float) -> None:
    heads = int(keys_of(range(20_000), seed=7).coins(probability).sum())
    assert stats.binomtest(heads, 20_000, probability).pvalue > UNLIKELY
