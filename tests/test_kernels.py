"""Kernels: exact selection, natural rounding, and sums of a fixed order, each against its plain form."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from laconic.core import rows
from laconic.core.keys import Keys
from laconic.kernels import fold, natural, select_long
from laconic.kernels.select import FEW, SAMPLE, largest, largest_of_sum, largest_reference
from laconic.kernels.threads import SPAN, over_rows

DTYPES = [torch.float64, torch.float32]


def bits_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def keys_of(workers: object) -> Keys:
    return Keys(5, 2, "kernels", np.asarray(workers, dtype=np.int64), 1 << 20)


# ---- the k largest ---------------------------------------------------------------------------------------------------


def selects(v: Tensor, k: int, expected: list[list[int]]) -> bool:
    """Whether kernel and reference both give these positions, and the values there bit for bit."""
    there = v.gather(1, torch.tensor(expected, dtype=torch.int64).view(len(v), k))
    answers = [largest(v, k), largest_reference(v, k)]
    return all(p.tolist() == expected and bits_of(values) == bits_of(there) for p, values in answers)


def sorted_by_hand(row: list[float], k: int) -> list[int]:
    """By magnitude, NaN first of all, ties to the lower index."""
    order = sorted(range(len(row)), key=lambda j: (not math.isnan(row[j]), -abs(row[j]), j))
    return sorted(order[:k])


TINY = [5e-324, -5e-324, 1e-310, 2.2250738585072014e-308]
AWKWARD = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-45, -1e-40, 1.1754943508222875e-38, 3e38, *TINY]


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    row=st.lists(
        st.one_of(st.sampled_from(AWKWARD), st.integers(-3, 3).map(float), st.floats()), min_size=1, max_size=70
    ),
    data=st.data(),
)
def test_selection_is_that_of_a_plain_sort(dtype: torch.dtype, row: list[float], data: st.DataObject) -> None:
    """With ties, NaN, infinities, zeros of both signs and denormals, on both sides of FEW."""
    v = torch.tensor([row], dtype=torch.float64).to(dtype)
    values = v[0].tolist()
    for k in {0, len(row), data.draw(st.integers(0, len(row))), min(FEW, len(row)), min(FEW + 1, len(row))}:
        assert selects(v, k, [sorted_by_hand(values, k)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 2, 65, 4099])
@pytest.mark.parametrize("arrangement", ["random", "equal", "rising", "falling", "two values", "one binade", "zeros"])
def test_selection_of_long_rows(dtype: torch.dtype, d: int, arrangement: str) -> None:
    """Radix passes end early, late, and in the middle of a tie."""
    rng = np.random.default_rng(0)
    values = {
        "random": rng.standard_normal(d) * 10.0 ** rng.integers(-30, 30, d), "equal": np.full(d, -0.3),
        "rising": np.arange(d, dtype=float), "falling": -np.arange(d, dtype=float)[::-1],
        "two values": rng.choice([1.0, -1.0 - 2.0**-23], d), "one binade": 1.0 + rng.random(d), "zeros": np.zeros(d),
    }[arrangement]  # fmt: skip
    v = torch.from_numpy(np.stack([values, values[::-1]])).to(dtype)
    for k in sorted({k for k in (0, 1, 2, FEW - 1, FEW, FEW + 1, d // 2, d - 1, d) if 0 <= k <= d}):
        assert selects(v, k, [sorted_by_hand(row, k) for row in v.tolist()])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [25, 300, 4000])
def test_a_sample_that_misleads_costs_time_and_nothing_else(dtype: torch.dtype, k: int) -> None:
    """Rows whose evenly spaced entries are all large, or all small, or NaN."""
    d = 4 * SAMPLE + 7
    where = np.arange(SAMPLE) * d // SAMPLE
    noise = np.random.default_rng(0).standard_normal((3, d))
    noise[0, where] *= 1e6
    noise[1, where] *= 1e-6
    noise[2, where[::2]] = np.nan
    v = torch.from_numpy(noise).to(dtype)
    assert selects(v, k, [sorted_by_hand(row, k) for row in v.tolist()])


def test_nan_comes_before_infinity_and_the_lower_index_before_the_higher() -> None:
    v = torch.tensor([[math.inf, math.nan, -math.inf, -math.nan, 1.0]], dtype=torch.float64)
    assert selects(v, 1, [[1]]) and selects(v, 3, [[0, 1, 3]])


def test_other_dtypes_take_the_reference() -> None:
    v = torch.tensor([[1.0, -3.0, 3.0, 0.5]])
    for dtype in (torch.bfloat16, torch.float16):
        positions, values = largest(v.to(dtype), 2)
        assert positions.tolist() == [[1, 2]] and values.tolist() == [[-3.0, 3.0]] and values.dtype is dtype


@pytest.mark.parametrize("k", [5, 100])
def test_rows_are_selected_alike_in_any_company_and_on_any_number_of_threads(k: int, two_threads: None) -> None:
    v = torch.from_numpy(np.random.default_rng(1).standard_normal((31, 997)))
    two, values = largest(v, k)
    torch.set_num_threads(1)
    assert torch.equal(largest(v, k)[0], two) and torch.equal(largest(v, k)[1], values)
    assert torch.equal(largest(v[7:19], k)[0], two[7:19])
    assert torch.equal(largest(v.T.contiguous().T[3:4], k)[0], two[3:4])  # a view that is not contiguous
    assert largest(v[:0], k)[0].shape == (0, k) and largest(v[:, :0], 0)[0].shape == (31, 0)


# ---- natural rounding ------------------------------------------------------------------------------------------------

FLOATS = {torch.float64: st.floats(), torch.float32: st.floats(width=32)}


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_rounding_is_the_references(dtype: torch.dtype, data: st.DataObject) -> None:
    d = data.draw(st.integers(1, 9))
    workers = data.draw(st.lists(st.integers(0, 99), min_size=1, max_size=3))
    size = len(workers) * d
    values = data.draw(st.lists(FLOATS[dtype], min_size=size, max_size=size))
    v, keys = torch.tensor(values, dtype=dtype).view(-1, d), keys_of(workers)
    codes = natural.encode(v, keys.address, keys.workers)
    words = keys.words(d) if dtype == torch.float64 else keys.words((d + 1) // 2).view(np.uint32)[:, :d]
    assert torch.equal(codes, natural.encode_reference(v, words))
    assert int(codes.numpy().view(np.uint16).max()) < 1 << natural.WIDTH[dtype]


def all_words() -> np.ndarray:
    """Every value of the 23 leading bits, which are all that rounding a float32 looks at; the others are ones."""
    return (np.arange(1 << 23, dtype=np.uint32) << np.uint32(9)) | np.uint32((1 << 9) - 1)


@pytest.mark.parametrize("value", [4 / 3, -1.0, 1.75, -3e-39, 1e-45, 0.1, 0.0, 3.0e38 / 2])
def test_the_law_is_exact_in_float32(value: float) -> None:
    """Over all 2^23 words: two neighbouring powers of two, the right frequencies, and the value itself as the mean."""
    words = all_words()[:, None]
    v = torch.tensor([[value]], dtype=torch.float32)
    out = natural.decode(natural.encode_reference(v.expand(len(words), 1), words), torch.float32)[:, 0].double()
    x = float(v)
    assert float(out.mean()) == x  # sums of two powers of two: exact
    low, high = float(out.abs().min()), float(out.abs().max())
    assert low <= abs(x) <= high and (math.frexp(high)[0] == 0.5 or x == 0.0)
    assert (low, high) == ((abs(x),) * 2 if low == high else (low, 2 * low if low else 2.0**-126))
    if low < high:
        carries = int((out.abs() == high).sum())
        assert Fraction(carries, 1 << 23) == (Fraction(abs(x)) - Fraction(low)) / (Fraction(high) - Fraction(low))
    if abs(x) >= 2.0**-126 or x == 0.0:
        assert float(((out - x) ** 2).mean()) <= x * x / 8 * (1 + 1e-12)  # rounding of the mean of squares


def test_four_thirds_is_the_worst_mantissa() -> None:
    """E(Q - x)^2 = (x - 1)(2 - x) for x in [1, 2): its ratio to x^2 has its maximum 1/8 at 4/3."""
    x = Fraction(4, 3)
    assert (x - 1) * (2 - x) / x**2 == Fraction(1, 8)
    grid = [Fraction(j, 997) for j in range(997, 2 * 997)]
    assert max((y - 1) * (2 - y) / y**2 for y in grid) <= Fraction(1, 8)
    words = all_words()[:, None]
    v = torch.tensor(4 / 3, dtype=torch.float32)
    out = natural.decode(natural.encode_reference(v.expand(len(words), 1), words), torch.float32).double()
    assert float(((out - float(v)) ** 2).mean()) / float(v) ** 2 == pytest.approx(0.125, rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mantissas_carry_at_the_right_word(dtype: torch.dtype) -> None:
    """The mantissa m carries exactly for the words w >= 2^mantissa - m in their leading bits."""
    mantissa = natural.MANTISSA[dtype]
    eps = torch.finfo(dtype).eps
    for m in (0, 1, 1 << (mantissa - 1), (1 << mantissa) - 1):
        v = torch.tensor([[-(1.0 + m * eps)]], dtype=dtype)
        for leading in {0, 1, (1 << mantissa) - m - 1, (1 << mantissa) - m, (1 << mantissa) - 1}:
            if not 0 <= leading < 1 << mantissa:
                continue
            size = dtype.itemsize
            words = np.array([[leading << (8 * size - mantissa)]], dtype=f"u{size}")
            out = float(natural.decode(natural.encode_reference(v, words), dtype))
            assert out == (-2.0 if leading >= (1 << mantissa) - m else -1.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_of_the_range(dtype: torch.dtype) -> None:
    info, keys = torch.finfo(dtype), keys_of(range(200))
    v = torch.tensor([info.max, -info.max, math.inf, -math.inf, math.nan, 0.0, -0.0], dtype=dtype).expand(200, 7)
    out = natural.decode(natural.encode(v, keys.address, keys.workers), dtype)
    largest_power = 2.0 ** math.floor(math.log2(info.max) - 0.5)
    assert set(out[:, 0].tolist()) == {largest_power} and set(out[:, 1].tolist()) == {-largest_power}
    assert not torch.isfinite(out[:, 2:5]).any()
    assert bits_of(out[:, 5:7]) == bits_of(v[:, 5:7])


def test_rounding_is_the_same_in_any_company_and_on_any_number_of_threads(two_threads: None) -> None:
    v = torch.from_numpy(np.random.default_rng(2).standard_normal((30, 801)))
    keys = keys_of(range(30))
    two = natural.encode(v, keys.address, keys.workers)
    torch.set_num_threads(1)
    assert torch.equal(natural.encode(v, keys.address, keys.workers), two)
    assert torch.equal(natural.encode(v[4:9], keys.address, keys.workers[4:9]), two[4:9])
    assert torch.equal(natural.encode(v[4:9, :300], keys.address, keys.workers[4:9]), two[4:9, :300])


# ---- sums of a fixed order -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.integers(0, 6), st.integers(1, 40), st.integers(0, 2**32))
def test_dots_are_the_references_bit_for_bit(dtype: torch.dtype, n: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (
        torch.from_numpy(rng.standard_normal((n, d)) * 10.0 ** rng.integers(-9, 9, (n, d))).to(dtype) for _ in range(2)
    )
    out = fold.dots(a, b)
    assert bits_of(out) == bits_of(fold.dots_reference(a, b))
    for row in range(n):  # and the order is the one in words: lanes of every eighth product, then the lanes in order
        lanes = [np.array(0.0, dtype=a.numpy().dtype)] * fold.LANES
        for j, (x, y) in enumerate(zip(a[row].numpy(), b[row].numpy(), strict=True)):
            lanes[j % fold.LANES] = lanes[j % fold.LANES] + x * y
        total = np.array(0.0, dtype=a.numpy().dtype)
        for lane in lanes:
            total = total + lane
        assert total == out[row].numpy()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_order_matters_so_equality_says_something(dtype: torch.dtype) -> None:
    a = torch.from_numpy(np.random.default_rng(3).standard_normal((50, 999))).to(dtype)
    naive = [float(sum((x * x for x in row), np.array(0, dtype=row.dtype))) for row in a.numpy()]
    assert naive != fold.dots(a, a).tolist()
    assert torch.allclose(
        fold.dots(a, a), (a.double() ** 2).sum(1).to(dtype), rtol=1e-5 if dtype is torch.float32 else 1e-13
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fold_adds_row_after_row(dtype: torch.dtype, two_threads: None) -> None:
    rng = np.random.default_rng(4)
    values = torch.from_numpy(rng.standard_normal((33, 1021))).to(dtype)
    start = torch.from_numpy(rng.standard_normal(1021)).to(dtype)
    expected = start.numpy().copy()
    factor = expected.dtype.type(0.3)
    for row in values.numpy():
        expected = expected + factor * row
    for threads in (2, 1):
        torch.set_num_threads(threads)
        target = start.clone()
        fold.fold_dense(values, 0.3, target)
        assert bits_of(target) == expected.tobytes()
    in_two = start.clone()
    fold.fold_dense(values[:20], 0.3, in_two)
    fold.fold_dense(values[20:], 0.3, in_two)
    assert bits_of(in_two) == expected.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.lists(st.sets(st.integers(0, 14)).map(sorted), min_size=0, max_size=6), st.integers(0, 2**32))
def test_sparse_rows_are_added_in_order(dtype: torch.dtype, supports: list[list[int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    flat = list(itertools.chain(*supports))
    indices, values = torch.tensor(flat, dtype=torch.int64), torch.from_numpy(rng.standard_normal(len(flat))).to(dtype)
    offsets = np.cumsum([0, *map(len, supports)])
    where = rng.permutation(9)[: len(supports)]
    target = torch.from_numpy(rng.standard_normal((9, 15))).to(dtype)
    expected, folded = target.numpy().copy(), target[0].numpy().copy()
    factor = expected.dtype.type(-0.7)
    for r in range(len(supports)):
        for j in range(offsets[r], offsets[r + 1]):
            expected[where[r], flat[j]] += factor * values[j].numpy()
            folded[flat[j]] += factor * values[j].numpy()
    one = target[0].clone()
    fold.scatter_rows(indices, values, offsets, where, -0.7, target)
    fold.fold_sparse(indices, values, -0.7, one)
    assert bits_of(target) == expected.tobytes() and bits_of(one) == folded.tobytes()


def test_sums_of_rows_do_not_depend_on_company_or_threads(two_threads: None) -> None:
    a = torch.from_numpy(np.random.default_rng(5).standard_normal((40, 701)))
    two = fold.dots(a, a.flip(1))
    torch.set_num_threads(1)
    assert torch.equal(fold.dots(a, a.flip(1)), two)
    for row in (0, 13, 39):
        assert torch.equal(fold.dots(a[row : row + 1], a[row : row + 1].flip(1)), two[row : row + 1])


def test_every_row_is_visited_once(two_threads: None) -> None:
    for count in (0, 1, 2, 3, 17):
        visits = np.zeros(count, dtype=np.int64)

        def visit(low: int, high: int, out: np.ndarray) -> None:
            out[low:high] += 1

        over_rows(visit, count, 1 << 20, visits)
        assert (visits == 1).all()


def test_a_failing_kernel_is_heard_of_on_any_thread(two_threads: None) -> None:
    def fail(low: int, high: int) -> None:
        if high == 4:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        over_rows(fail, 4, 1 << 20)


# ---- algebra of rows -------------------------------------------------------------------------------------------------


def test_rows_algebra() -> None:
    a = torch.from_numpy(np.random.default_rng(6).standard_normal((4, 2, 3)))
    assert torch.allclose(rows.norm2(a), (a**2).sum((1, 2)), rtol=1e-14)
    assert torch.allclose(rows.mean(a), a.mean(0), rtol=1e-14) and rows.mean(a[:0]).tolist() == [[0.0] * 3] * 2
    assert rows.square(a[0]) == float(rows.norm2(a)[0]) and rows.dot(a[:0], a[:0]).shape == (0,)


@given(st.integers(1, 7), st.integers(0, 2**32))
def test_svec_keeps_norms_and_inner_products(d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = torch.from_numpy(rng.standard_normal((d, d)))
    matrix = matrix + matrix.T
    i, j = torch.triu_indices(d, d)
    svec = torch.where(i == j, matrix[i, j], matrix[i, j] * math.sqrt(2.0))
    assert torch.allclose(rows.svec_to_matrix(svec, d), matrix, rtol=1e-14)
    assert rows.square(svec) == pytest.approx(float((matrix**2).sum()), rel=1e-13)


def test_solve_is_exact_on_a_diagonal_and_refuses_the_indefinite() -> None:
    diagonal = torch.diag(torch.tensor([4.0, 16.0], dtype=torch.float64))
    assert rows.solve(diagonal, torch.tensor([2.0, 4.0], dtype=torch.float64)).tolist() == [0.5, 0.25]
    with pytest.raises(torch.linalg.LinAlgError):
        rows.solve(-diagonal, torch.ones(2, dtype=torch.float64))


# ---- selection from one long vector ----------------------------------------------------------------------------------

LONG_VECTORS = {
    "gaussian": lambda rng, d: rng.standard_normal(d),
    "all equal": lambda rng, d: np.full(d, -0.5),
    "three values": lambda rng, d: rng.integers(-1, 2, d).astype(float),
    "heavy tails": lambda rng, d: rng.standard_cauchy(d),
    "ascending": lambda rng, d: np.arange(d, dtype=float),
    "descending": lambda rng, d: -np.arange(d, 0, -1, dtype=float),
    "one spike": lambda rng, d: np.eye(1, d, d // 3)[0],
    "zeros": lambda rng, d: np.zeros(d),
    "periodic": lambda rng, d: (np.arange(d) % 64 == 0) * rng.standard_normal(d),
    "not finite": lambda rng, d: np.where(rng.random(d) < 1e-3, rng.choice([np.nan, np.inf, -np.inf], d), 1.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LONG_VECTORS)
def test_selection_from_a_long_vector_is_the_reference(name: str, dtype: torch.dtype) -> None:
    """Several spans, each of which may run out of room for its candidates; ties on both sides of every border."""
    d = 2 * select_long.SPAN + 12345
    v = torch.from_numpy(LONG_VECTORS[name](np.random.default_rng(3), d))[None].to(dtype)
    order = largest_reference(v, d)
    with mock.patch("laconic.kernels.select_long.LONG", 1):
        for k in (1, 2, 131, d // 1000, d // 10, d // 2, d - 1, d):
            positions, values = largest(v, k)
            expected = largest_reference(v, k) if k < d else order
            assert torch.equal(positions, expected[0])
            assert bits_of(values) == bits_of(expected[1])


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-310, math.inf]), min_size=1, max_size=40), st.data())
def test_selection_by_a_sample_that_misleads_is_exact(values: list[float], data: st.DataObject) -> None:
    """Whatever bracket the sample gives, right or wrong."""
    k = data.draw(st.integers(1, len(values)))
    v = torch.tensor([values], dtype=torch.float64)
    patterns = v[0].abs().numpy().view(np.uint64)
    low, high = sorted(int(patterns[data.draw(st.integers(0, len(values) - 1))]) for _ in range(2))
    with (
        mock.patch("laconic.kernels.select_long.LONG", 1),
        mock.patch("laconic.kernels.select_long._bracket", lambda *_: (low, high)),
    ):
        positions, kept = largest(v, k)
    expected = largest_reference(v, k)
    assert torch.equal(positions, expected[0]) and torch.equal(kept, expected[1])


def patterns_of(tensor: Tensor) -> list[object]:
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]).tolist()


@pytest.mark.parametrize("long", [1, select_long.LONG])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
@pytest.mark.parametrize("d", [1, 2, 65, 5000])
def test_selection_from_a_sum_or_a_difference_is_that_from_what_torch_forms(
    dtype: torch.dtype, d: int, long: int
) -> None:
    """With ties, cancellation, zeros of both signs, NaN and infinities in either; and nothing is written to."""
    rng = np.random.default_rng(8)
    awkward, normal = rng.choice(AWKWARD, (2, 3, d)), rng.standard_normal((2, 3, d))
    pairs = [tuple(awkward), tuple(normal), (awkward[0], normal[0]), (normal[0], awkward[0]), (normal[0], normal[0])]
    for a, b in ((torch.from_numpy(a).to(dtype), torch.from_numpy(b).to(dtype)) for a, b in pairs):
        before = patterns_of(a), patterns_of(b)
        for formed, sign in ((a + b, 1), (a - b, -1)):
            for k in sorted({k for k in (0, 1, 2, FEW, FEW + 1, d // 2, d) if k <= d}):
                with mock.patch("laconic.kernels.select_long.LONG", long):
                    positions, values = largest_of_sum(a, b, sign, k)
                expected = largest_reference(formed, k)
                assert torch.equal(positions, expected[0]) and patterns_of(values) == patterns_of(expected[1])
        assert before == (patterns_of(a), patterns_of(b))


@pytest.mark.parametrize("dtype", DTYPES)
def test_selection_from_a_difference_of_long_vectors(dtype: torch.dtype, two_threads: None) -> None:
    """Several spans, some without room for their candidates, and ties that are found by reading again."""
    d = 2 * select_long.SPAN + 12345
    rng = np.random.default_rng(9)
    b = torch.from_numpy(rng.integers(-8, 9, (2, d)) / 8.0).to(dtype)
    noise = torch.from_numpy(rng.standard_normal((2, d))).to(dtype)
    grouped = noise * torch.where(torch.arange(d) < 9000, 1e6, 1e-6)  # one span holds all that is large
    for a in (noise, b.flip(1), b + 0.5, b, grouped):
        with mock.patch("laconic.kernels.select_long.LONG", 1):
            for k in (1, d // 1000, d // 10, d - 1):
                positions, values = largest_of_sum(a, b, -1, k)
                expected = largest_reference(a - b, k)
                assert torch.equal(positions, expected[0]) and bits_of(values) == bits_of(expected[1])


def test_rows_of_sums_are_selected_alike_on_any_number_of_threads(two_threads: None) -> None:
    a, b = torch.from_numpy(np.random.default_rng(10).standard_normal((2, 131, 997)))
    two, values = largest_of_sum(a, b, 1, 7)
    torch.set_num_threads(1)
    assert torch.equal(largest_of_sum(a, b, 1, 7)[0], two) and torch.equal(largest_of_sum(a, b, 1, 7)[1], values)
    apart = largest_of_sum(a.T.contiguous().T[7:19], b[7:19], 1, 7)  # a view that is not contiguous
    assert torch.equal(apart[0], two[7:19]) and torch.equal(apart[1], values[7:19])
    assert largest_of_sum(a[:0], b[:0], 1, 7)[0].shape == (0, 7)


@pytest.mark.parametrize("place", [-1, 5, -(2**62), 2**62])
def test_positions_from_elsewhere_are_checked(place: int) -> None:
    indices, values = torch.tensor([1, place]), torch.tensor([2.0, 3.0], dtype=torch.float64)
    target = torch.zeros(2, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"not in 0..4"):
        fold.scatter_rows(indices, values, np.array([0, 2]), np.array([1]), 1.0, target)
    with pytest.raises(ValueError, match=r"not in 0..4"):
        fold.fold_sparse(indices, values, 1.0, target[0])
    assert target.sum() == 4.0


AT_EXIT = """
import atexit, threading
atexit.register(lambda: print([thread.name for thread in threading.enumerate() if thread.name == "laconic-kernel"]))
import torch
from laconic.kernels import fold
torch.set_num_threads(2)
fold.dots(torch.ones(2, 400_000), torch.ones(2, 400_000))
assert any(thread.name == "laconic-kernel" for thread in threading.enumerate())
"""


def test_helping_threads_are_gone_before_the_interpreter_is_taken_down() -> None:
    """One that woke up later could abort the process after all its work was done."""
    done = subprocess.run([sys.executable, "-c", AT_EXIT], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


# ---- error feedback in one pass --------------------------------------------------------------------------------------


def sparse_of(rng: np.random.Generator, d: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    where = torch.from_numpy(np.sort(rng.choice(d, k, replace=False)))
    return where, torch.from_numpy(rng.standard_normal(k)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 7, SPAN - 1, SPAN, 3 * SPAN + 5])
def test_settling_gives_the_bits_of_pass_after_pass(dtype: torch.dtype, d: int, two_threads: None) -> None:
    """Also where many positions fall into one span, all of them or none, and with any number of workers."""
    rng = np.random.default_rng(d)
    for counts in ([d, 0, d // 2], [min(d, 3), min(d, 1), d], [0, 0], [d // 3], [1, *[d // 5] * 7]):
        own, *heard = (sparse_of(rng, d, k, dtype) for k in counts)
        v, error = (torch.from_numpy(rng.standard_normal((1, d))).to(dtype) for _ in range(2))
        mean, owed = torch.zeros(d, dtype=dtype), error + v
        fold.fold_sparse(*own, -1.0, owed[0])
        for where, values in heard:
            fold.fold_sparse(where, values, 0.3, mean)
        assert fold.settle(own, fold.Heard(heard, 0.3), v, error)
        assert bits_of(v[0]) == bits_of(mean) and bits_of(error) == bits_of(owed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 7, SPAN - 1, SPAN, 3 * SPAN + 5])
def test_renewing_gives_the_bits_of_pass_after_pass(dtype: torch.dtype, d: int, two_threads: None) -> None:
    rng = np.random.default_rng(d)
    for counts in ([d], [min(d, 3), min(d, 1), d], [0], [1, *[d // 5] * 7]):
        heard = [sparse_of(rng, d, k, dtype) for k in counts]
        v, estimate = (torch.from_numpy(rng.standard_normal((1, d))).to(dtype) for _ in range(2))
        expected = estimate.clone()
        for where, values in heard:
            fold.fold_sparse(where, values, 0.3, expected[0])
        assert fold.renew(fold.Heard(heard, 0.3), estimate, v)
        assert bits_of(estimate) == bits_of(v) == bits_of(expected)


@pytest.mark.parametrize("where", [[3, 2], [2, 2], [-1, 2], [2, 9]])
def test_settling_leaves_what_does_not_ascend_inside_to_others(where: list[int]) -> None:
    bad, good = torch.tensor(where), torch.tensor([0, 8])
    values, v, error = torch.ones(2), torch.arange(9.0)[None], torch.ones(1, 9)
    for own, heard in ((bad, good), (good, bad)):
        assert not fold.settle((own, values), fold.Heard([(heard, values)], 1.0), v, error)
        assert torch.equal(v, torch.arange(9.0)[None]) and torch.equal(error, torch.ones(1, 9))
