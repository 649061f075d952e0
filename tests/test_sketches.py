"""Count sketches, DCT-TopK and IntSGD: their laws over every outcome, their wire, and the ends of the range."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from torch import Tensor

from laconic.compressors.count_sketch import CountSketch
from laconic.compressors.dct_topk import DCTTopK
from laconic.compressors.intsgd import IntSGD
from laconic.compressors.topk import TopK
from laconic.core.compressor import AB, Contractive
from laconic.core.keys import SHARED, Keys
from laconic.core.message import Message
from laconic.core.spec import parse
from laconic.kernels import dct
from sending import keys_of, send, wholes

F64 = torch.float64
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
COMPRESSORS: list[Any] = [
    CountSketch(columns=0.3),
    CountSketch(rows=2, columns=2),
    CountSketch(rows=3, columns=3),
    CountSketch(columns=1.0),
    DCTTopK(2),
    DCTTopK(0.3, chunk=5),
    DCTTopK(99),
    IntSGD(100.0),
    IntSGD(0.5, bits=4),
    IntSGD(1e6, bits=32),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (12,), (6, 10), (4, 3, 2), (13,)])
def test_bytes_meaning_and_company(compressor: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    n = 4
    v, keys = normal(n, *shape, seed=3).to(dtype), keys_of(n, 4)
    v[2] = 0.0
    before, message = v.clone(), compressor.compress(v, keys)
    out, buffer, ends = send(compressor, v, keys), message.pack(), np.cumsum(message.nbytes)
    assert torch.equal(v, before) and out.shape == v.shape and out.dtype == dtype and not out[2].any()
    assert (message.nbytes <= 4 * dtype.itemsize * math.prod(shape) + 128).all()
    for row in range(n):
        own = keys.at([row])
        alone = compressor.compress(v[row : row + 1], own)
        assert alone.pack().tobytes() == buffer[ends[row] - message.nbytes[row] : ends[row]].tobytes()
        assert torch.equal(compressor.decode(message.at(row, row + 1), shape, dtype, own).dense()[0], out[row])
    assert send(compressor, v[:0], keys.at([])).shape == (0, *shape)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_and_denormal_values_stay_finite(compressor: Any, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    for value in (limits.max, limits.tiny, limits.tiny * limits.eps):
        for signs in ([1.0] * 12, [1.0, -1.0] * 6, [1.0] + [0.0] * 11):
            v = torch.tensor([signs], dtype=dtype) * value
            out = send(compressor, v, keys_of(1))
            assert torch.isfinite(out).all()
            if value < 1:  # an integer of the scale at most, and for a sketch a sum of all
                most = 1 / compressor.scale if isinstance(compressor, IntSGD) else 12 * limits.tiny
                assert float((out.double() - v.double()).abs().max()) <= most


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=str)
def test_any_bytes_mean_something(compressor: Any) -> None:
    v, keys, rng = normal(3, 12), keys_of(3), np.random.default_rng(0)
    message = compressor.compress(v, keys)
    for _ in range(40):
        buffer = rng.integers(0, 256, int(message.nbytes.sum()), dtype=np.uint8)
        try:
            heard = Message.unpack(buffer, message.nbytes, compressor.schema((12,), F64, keys))
        except ValueError as error:
            assert type(error).__name__ == "Malformed"
            continue
        assert compressor.decode(heard, (12,), F64, keys).dense().shape == v.shape


# ---- count sketch ----------------------------------------------------------------------------------------------------


def every_hash(monkeypatch: pytest.MonkeyPatch, compressor: CountSketch, a: Tensor) -> list[Tensor]:
    """Q(a) for every choice of buckets and signs, each equally likely."""
    d, choices = a.shape[1], 2 * int(compressor.columns)
    found = []
    for drawn in itertools.product(range(choices), repeat=compressor.rows * d):
        u = (torch.tensor([drawn], dtype=F64) + 0.5) / choices
        monkeypatch.setattr(Keys, "uniform", lambda self, count, u=u: u)
        found.append(send(compressor, a, keys_of(len(a))))
    return found


@pytest.mark.parametrize(("d", "columns"), [(2, 1), (3, 1), (3, 2), (4, 1), (4, 2)])
def test_one_row_is_unbiased_with_exactly_omega_and_compresses_the_mean(
    monkeypatch: pytest.MonkeyPatch, d: int, columns: int
) -> None:
    a, n = wholes(3, d, d), 3
    outcomes = every_hash(monkeypatch, CountSketch(1, columns), a)
    claim = CountSketch(1, columns).claim(d, n)
    assert claim is not None and claim == AB(0.0, -(d - 1) / columns, (d - 1) / columns)
    assert torch.equal(torch.stack(outcomes).sum(0), len(outcomes) * a)
    alone = sum(((out - a) ** 2).sum(1) for out in outcomes) / len(outcomes)
    joint = sum(float(((out.mean(0) - a.mean(0)) ** 2).sum()) for out in outcomes) / len(outcomes)
    assert torch.allclose(torch.as_tensor(alone), claim.omega * (a**2).sum(1), rtol=1e-13)
    assert joint == pytest.approx(-claim.B * float((a.mean(0) ** 2).sum()), rel=1e-12)


@pytest.mark.parametrize(("rows", "d"), [(2, 3), (3, 4)])
def test_several_rows_are_medians_whose_mean_is_x(monkeypatch: pytest.MonkeyPatch, rows: int, d: int) -> None:
    a, compressor = wholes(1, d, 5), CountSketch(rows, 1)
    assert compressor.claim(d, 2) is None
    half = [[0, *rest] for rest in itertools.product(range(2), repeat=d - 1)]  # all signs of a row changed: the same
    drawn, found = np.array(list(itertools.product(half, repeat=rows))), []
    for both in drawn:
        u = torch.from_numpy((both.reshape(1, -1) + 0.5) / 2)
        monkeypatch.setattr(Keys, "uniform", lambda self, count, u=u: u)
        found.append(send(compressor, a, keys_of(1))[0])
    outcomes = torch.stack(found)
    assert torch.allclose(outcomes.mean(0), a[0], rtol=1e-12, atol=1e-12)
    signs = 1.0 - 2.0 * drawn  # one column: every coordinate is in bucket 0
    reads = signs * (signs * a.numpy()).sum(-1, keepdims=True)
    np.testing.assert_array_equal(outcomes.numpy(), np.median(reads, axis=1))


def test_a_sketch_that_is_no_shorter_is_not_made() -> None:
    a = wholes(2, 6)
    for compressor in (CountSketch(2, 3), CountSketch(1, 1.0), CountSketch(7, 1)):
        assert compressor.claim(6, 2) == AB(0.0, 0.0, 0.0) and compressor.share(6, 2) == 1.0
        assert torch.equal(send(compressor, a, keys_of(2)), a)


def test_hashes_are_the_shared_numbers_of_the_page_and_the_same_on_all_workers() -> None:
    n, d, columns = 4, 50, 7
    v, keys = wholes(n, d), keys_of(n, 3)
    u = Keys(11, 3, "/up0", np.array([SHARED]), n).uniform(2 * d)[0].numpy().reshape(2, d)
    both = np.floor(u * 2 * columns).astype(int)
    expected = np.zeros((n, 2, columns))
    for row, r, j in itertools.product(range(n), range(2), range(d)):
        expected[row, r, both[r, j] // 2] += (-1) ** (both[r, j] % 2) * float(v[row, j])
    message = CountSketch(2, columns).compress(v, keys)
    np.testing.assert_array_equal(message.codes[0].numpy(), expected.reshape(-1))
    ones = send(CountSketch(1, columns), torch.ones(n, d, dtype=F64), keys)
    assert torch.equal(ones, ones[:1].expand(n, d))
    sums = CountSketch(1, columns)
    total = send(sums, v.sum(0, keepdim=True), keys.at([0]))[0]
    assert torch.equal(send(sums, v, keys).sum(0), total)  # linear, of whole numbers: exactly


# ---- DCT-TopK --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 16, 64, 61])
def test_the_transform_is_scipys_and_orthonormal(n: int) -> None:
    v = normal(5, n, seed=n)
    np.testing.assert_allclose(
        dct.forward(v).numpy(), np.asarray(dctn(v.numpy(), axes=[1], norm="ortho")), rtol=0, atol=1e-14 * n
    )
    np.testing.assert_allclose(dct.inverse(dct.forward(v)).numpy(), v.numpy(), rtol=0, atol=1e-14 * n)
    np.testing.assert_allclose(dct.basis(n) @ dct.basis(n).T, np.eye(n), rtol=0, atol=1e-14 * n)
    assert torch.equal(dct.forward(v[2:3]), dct.forward(v)[2:3])


@pytest.mark.parametrize(
    ("shape", "chunk", "sides"),
    [((12,), 5, (1, 4)), ((6, 10), 5, (3, 5)), ((8, 8), 64, (8, 8)), ((7, 9), 4, (1, 3)), ((4, 3, 2), 3, (2, 3))],
)
def test_it_is_topk_of_the_coefficients_of_each_chunk(shape: Any, chunk: int, sides: tuple[int, int]) -> None:
    k, (h, w) = 2, sides
    v, keys, compressor = normal(2, *shape, seed=1), keys_of(2), DCTTopK(2, chunk)
    rows, columns = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, shape[0])
    out = send(compressor, v, keys).view(2, rows, columns)
    for b, top, left in itertools.product(range(2), range(0, rows, h), range(0, columns, w)):
        block = v.view(2, rows, columns)[b, top : top + h, left : left + w].numpy()
        coefficients = torch.from_numpy(dctn(block, norm="ortho")).reshape(1, -1)
        kept = send(TopK(k), coefficients, keys_of(1)).view(h, w).numpy()
        got = dctn(out[b, top : top + h, left : left + w].numpy(), norm="ortho")
        np.testing.assert_allclose(np.asarray(got), kept, rtol=0, atol=1e-13)
    area = h * w
    message = compressor.compress(v, keys)
    assert [slot.count for slot in message.schema] == [math.prod(shape) // area * k] * 2


@pytest.mark.parametrize(("shape", "chunk"), [((12,), 6), ((4, 6), 3), ((64,), 64)])
def test_the_claim_is_attained_by_coefficients_of_equal_magnitude(shape: tuple[int, ...], chunk: int) -> None:
    d = math.prod(shape)
    for k in (1, 2, 3):
        compressor = DCTTopK(k, chunk)
        (_, h), (_, w) = compressor._cuts(shape)
        coefficients = torch.tensor([(-1.0) ** j for j in range(h * w)], dtype=F64).view(h, w)
        one = dct.inverse(dct.inverse(coefficients).T.contiguous()).T
        (across, _), (along, _) = compressor._cuts(shape)
        v = one.repeat(across, along).reshape(1, *shape)
        error, square = float(((send(compressor, v, keys_of(1)) - v) ** 2).sum()), float((v**2).sum())
        assert square == pytest.approx(d, rel=1e-13)
        assert error == pytest.approx((1 - k / (h * w)) * square, rel=1e-10)
        claim = compressor.claim(d, 1)
        assert claim.alpha <= k / (h * w)
        assert claim.alpha == min(
            compressor_alpha(k, chunk, rows, d // rows) for rows in range(1, d + 1) if d % rows == 0
        )


def compressor_alpha(k: int, chunk: int, rows: int, columns: int) -> float:
    """k over the area of a chunk of a matrix."""
    area = math.prod(max(c for c in range(1, chunk + 1) if side % c == 0) for side in (rows, columns))
    return min(k, area) / area


@pytest.mark.parametrize("dtype", DTYPES)
def test_dct_topk_contracts_whatever_x_is(dtype: torch.dtype) -> None:
    u = torch.finfo(dtype).eps
    for shape in ((60,), (6, 10), (10, 6), (2, 30), (3, 4, 5)):
        for v in (normal(3, *shape), wholes(3, 60).view(3, *shape), torch.eye(60)[:3].double().view(3, *shape)):
            x = v.to(dtype)
            for compressor in (DCTTopK(3, 8), DCTTopK(0.2, 10)):
                out = send(compressor, x, keys_of(3)).double()
                error, square = ((out - x.double()) ** 2).flatten(1).sum(1), (x.double() ** 2).flatten(1).sum(1)
                bound = math.sqrt(1 - compressor.claim(60, 1).alpha) + 4 * u
                assert (error <= bound**2 * square).all()


def test_a_prime_length_travels_as_it_is() -> None:
    v = normal(2, 61)
    assert torch.equal(send(DCTTopK(1, 60), v, keys_of(2)), v) and DCTTopK(1, 60).claim(61, 1) == Contractive(1.0)
    assert torch.equal(send(DCTTopK(5, 61), v[:, :5], keys_of(2)), v[:, :5])


# ---- IntSGD ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 4.0, 0.5])
def test_rounding_is_unbiased_and_its_error_at_most_a_quarter(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """Over u in the middle of 64 equal parts, for multiples of 1/64 of a unit: every probability is exact."""
    parts = 64
    x = torch.arange(-3 * parts, 3 * parts + 1, dtype=F64)[None] / parts / scale
    u = (torch.arange(parts, dtype=F64)[:, None] + 0.5) / parts
    monkeypatch.setattr(Keys, "uniform", lambda self, count: u.expand(parts, count))
    out = send(IntSGD(scale), x.expand(parts, -1), keys_of(parts))
    assert torch.equal(out.mean(0), x[0]) and torch.equal(out * scale, (out * scale).round())
    fraction = (x[0] * scale) - (x[0] * scale).floor()
    assert torch.allclose(((out - x) ** 2).mean(0), fraction * (1 - fraction) / scale**2, rtol=1e-13, atol=0)
    assert float(((out - x) ** 2).mean(0).max()) == 0.25 / scale**2  # attained at halves
    assert IntSGD(scale).claim(5, 2) is None


@pytest.mark.parametrize(("bits", "n"), [(8, 1), (8, 5), (8, 127), (4, 3), (32, 1), (32, 1000), (2, 1)])
def test_sums_of_all_workers_fit_the_width(bits: int, n: int) -> None:
    v = torch.tensor([[1e30, -1e30, 0.2, -0.0]], dtype=F64).expand(n, -1)
    out, most = send(IntSGD(1.0, bits), v, keys_of(n)), (2 ** (bits - 1) - 1) // n
    assert (out[:, 0] == most).all() and (out[:, 1] == -most).all() and set(out[:, 2].tolist()) <= {0.0, 1.0}
    assert n * most <= 2 ** (bits - 1) - 1 < n * (most + 1)
    message = IntSGD(1.0, bits).compress(v, keys_of(n))
    assert (message.bits == 4 * bits).all()


def test_integers_on_the_wire_are_twos_complement() -> None:
    v = torch.tensor([[-1.0, 2.0, -3.0]])
    assert IntSGD(2.0, bits=4).compress(v, keys_of(1)).pack().tobytes() == bytes([0x4E, 0x0A])
    assert IntSGD(2.0, bits=32).compress(v, keys_of(1)).pack().tobytes() == np.array([-2, 4, -6], "<i4").tobytes()
    with pytest.raises(ValueError, match=r"IntSGD\(bits=8\) : the sum of 128 integers but 0 does not fit so many bits"):
        IntSGD(1.0, bits=8).compress(torch.ones(1, 3), keys_of(128).at([0]))


def test_texts() -> None:
    for text in ("intsgd(scale=100.0, bits=8)", "count_sketch(rows=3, columns=0.02)", "dct_topk(k=0.1, chunk=32)"):
        assert str(parse(text)) == text


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=str)
def test_views_are_what_they_show(compressor: Any) -> None:
    v = normal(4, 6, 10)
    view = v.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not view.is_contiguous()
    assert torch.equal(send(compressor, view, keys_of(4)), send(compressor, v, keys_of(4)))
