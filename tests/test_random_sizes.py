"""Sparsifiers whose number of values is random or depends on the data: exact laws over every outcome, the wire."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.compressors import bernoulli
from laconic.compressors.bernoulli import Bernoulli, SharedBernoulli
from laconic.compressors.randk_replacement import RandKReplacement
from laconic.compressors.threshold import RelativeThreshold, Threshold
from laconic.core.compressor import AB, Unbiased
from laconic.core.keys import Keys
from laconic.core.message import Message
from laconic.wire.coding import Malformed
from sending import keys_of, send, wholes

DTYPES = [torch.float64, torch.float32]
QUARTERS = [(d, quarter) for d in range(1, 5) for quarter in (1, 2, 3, 4)]


# ---- Bernoulli: every mask, as often as its probability says ---------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d", "quarter"), QUARTERS)
def test_bernoulli_is_unbiased_and_its_variance_is_exactly_omega(
    monkeypatch: pytest.MonkeyPatch, d: int, quarter: int, dtype: torch.dtype
) -> None:
    """u runs over 0, 1/4, 1/2, 3/4 in every coordinate: u = p itself is not kept, and p = 1 keeps everything."""
    p, v = quarter / 4, wholes(1, d, d)[0].to(dtype)
    u = torch.tensor(list(itertools.product((0.0, 0.25, 0.5, 0.75), repeat=d)), dtype=torch.float64)
    monkeypatch.setattr(bernoulli, "coins", lambda keys, d, p: u < p)
    out = send(Bernoulli(p), v.expand(len(u), d), keys_of(len(u))).double()
    claim = Bernoulli(p).claim(d, 2)
    assert claim == Unbiased(1 / p - 1)
    assert torch.allclose(out.mean(0), v.double(), rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=0)
    assert float(((out - v) ** 2).sum(1).mean()) == pytest.approx(claim.omega * float(v @ v), rel=1e-6, abs=0)
    assert torch.equal(out != 0, (u < p) & (v != 0))


@pytest.mark.parametrize(("d", "quarter"), QUARTERS)
def test_shared_bernoulli_compresses_the_mean_itself(monkeypatch: pytest.MonkeyPatch, d: int, quarter: int) -> None:
    """One mask for all: A = 0 and B = -omega with equality."""
    n, p = 3, quarter / 4
    a, total, error, claim = wholes(n, d), torch.zeros(d, dtype=torch.float64), 0.0, SharedBernoulli(p).claim(d, n)
    assert claim == AB(0.0, -(1 / p - 1), 1 / p - 1)
    draws = list(itertools.product((0.0, 0.25, 0.5, 0.75), repeat=d))
    for u in draws:
        monkeypatch.setattr(bernoulli, "coins", lambda keys, d, p, u=u: torch.tensor([u] * keys.rows) < p)
        mean = send(SharedBernoulli(p), a, keys_of(n)).mean(0)
        total += mean
        error += float(((mean - a.mean(0)) ** 2).sum())
    assert torch.allclose(total / len(draws), a.mean(0), rtol=1e-13, atol=1e-13)
    assert error / len(draws) == pytest.approx(-claim.B * float((a.mean(0) ** 2).sum()), rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_follow_from_the_seed_and_values_alone_travel(dtype: torch.dtype) -> None:
    v, keys = torch.ones(6, 50, dtype=dtype), keys_of(6)
    private, shared = send(Bernoulli(0.3), v, keys), send(SharedBernoulli(0.3), v, keys)
    assert torch.equal(private != 0, keys.uniform(50) < 0.3) and not torch.equal(private[0], private[1])
    assert torch.equal(shared, shared[:1].expand_as(shared))
    for compressor, out in ((Bernoulli(0.3), private), (SharedBernoulli(0.3), shared)):
        kept = (out != 0).sum(1) * dtype.itemsize
        assert compressor.compress(v, keys).nbytes.tolist() == kept.tolist()
        assert torch.equal(send(compressor, v[1::2], keys.at([1, 3, 5])), out[1::2])
    assert torch.equal(send(Bernoulli(1.0), v, keys), v)
    assert Bernoulli(1e-9).compress(v, keys).nbytes.tolist() == [0] * 6 and not send(Bernoulli(1e-9), v, keys).any()


# ---- RandK with replacement: every sequence of draws -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d", "k"), [(1, 1), (1, 3), (2, 1), (2, 5), (3, 2), (3, 3), (3, 4), (4, 3), (6, 2)])
def test_replacement_is_unbiased_and_its_variance_is_exactly_omega(
    monkeypatch: pytest.MonkeyPatch, d: int, k: int, dtype: torch.dtype
) -> None:
    draws = torch.tensor(list(itertools.product(range(d), repeat=k)), dtype=torch.float64)
    monkeypatch.setattr(Keys, "uniform", lambda self, count: (draws + 0.5) / d)
    v, count, claim = wholes(1, d, d + 1)[0].to(dtype), len(draws), RandKReplacement(k).claim(d, 3)
    out = send(RandKReplacement(k), v.expand(count, d), keys_of(count)).double()
    assert claim == Unbiased((d - 1) / k)
    times = torch.nn.functional.one_hot(draws.long(), d).sum(1)
    assert torch.allclose(out, times * v.double() * d / k, rtol=1e-6, atol=0)  # duplicates add up
    assert torch.allclose(out.mean(0), v.double(), rtol=1e-6, atol=0)
    error = float(((out - v) ** 2).sum(1).mean())
    assert error == pytest.approx(claim.omega * float(v @ v), rel=1e-5, abs=1e-12)
    message = RandKReplacement(k).compress(v.expand(count, d), keys_of(count))
    assert message.nbytes.tolist() == ((times > 0).sum(1) * dtype.itemsize).tolist()
    share = float((times > 0).sum()) / (d * count)
    assert RandKReplacement(k).share(d, 3) == pytest.approx(share, rel=1e-12)


@given(st.integers(0, 9), st.integers(1, 30), st.integers(1, 60), st.integers(0, 10**6))
def test_replacement_is_the_same_alone_and_among_others(n: int, d: int, k: int, step: int) -> None:
    keys, v = keys_of(n, step), wholes(n, d, step)
    out = send(RandKReplacement(k), v, keys)
    assert ((out != 0).sum(1) <= min(k, d)).all()
    for row in range(n):
        assert torch.equal(send(RandKReplacement(k), v[row : row + 1], keys.at([row])), out[row : row + 1])


# ---- thresholds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.integers(0, 5), st.integers(1, 40), st.integers(1, 10), st.integers(0, 10**6))
def test_threshold_keeps_what_reaches_it(dtype: torch.dtype, rows: int, d: int, t: int, seed: int) -> None:
    v, keys = wholes(rows, d, seed).to(dtype), keys_of(rows)
    out = send(Threshold(float(t)), v, keys)
    assert torch.equal(out, torch.where(v.abs() >= t, v, 0.0))
    assert (((out - v) ** 2).sum(1) < d * t**2).all() and Threshold(float(t)).claim(d, 2) is None
    for row in range(rows):
        assert torch.equal(send(Threshold(float(t)), v[row : row + 1], keys.at([row])), out[row : row + 1])


def test_threshold_compares_without_rounding_t() -> None:
    """float32(0.1) is above 0.1: it is kept, and the number just below it is not."""
    above = torch.tensor([0.1], dtype=torch.float32)
    below = torch.nextafter(above, torch.zeros(1))
    assert float(above) > 0.1 > float(below)
    assert send(Threshold(0.1), torch.stack([above, below]), keys_of(2))[:, 0].tolist() == [float(above), 0.0]


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("d", [1, 2, 7, 1000])
def test_relative_threshold_contracts_and_its_worst_case_comes_close(d: int, t: float) -> None:
    """A spike of 1 and d - 1 magnitudes just below t times the root mean square lose the share t^2 (d - 1) / d."""
    alpha = RelativeThreshold(t).claim(d, 2).alpha
    assert alpha == 1 - t**2
    u = t / (d - t**2 * (d - 1)) ** 0.5 * (1 - 1e-9)
    worst = torch.full((d,), u, dtype=torch.float64)
    worst[0] = 1.0
    rng = np.random.default_rng(d)
    rows = torch.stack([worst, torch.ones(d, dtype=torch.float64), torch.from_numpy(rng.standard_normal(d)),
                        torch.from_numpy(rng.standard_cauchy(d))])  # fmt: skip
    out, square = send(RelativeThreshold(t), rows, keys_of(4)), (rows**2).sum(1)
    error = ((out - rows) ** 2).sum(1)
    assert (error <= (1 - alpha) * square).all()
    assert float(error[0] / square[0]) == pytest.approx(t**2 * (d - 1) / d, rel=1e-6, abs=0)
    assert torch.equal(out[1], rows[1]) and (out != 0).any(1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_relative_threshold_is_homogeneous_up_to_the_ends_of_the_numbers(dtype: torch.dtype) -> None:
    """No norm overflows or vanishes; powers of two change no decision."""
    v, keys = torch.randn(3, 50, generator=torch.Generator().manual_seed(1), dtype=dtype), keys_of(3)
    limit = {torch.float64: 1020, torch.float32: 124}[dtype]
    kept = send(RelativeThreshold(0.7), v, keys) != 0
    assert kept.any() and not kept.all()
    for power in (-limit, -limit // 2, limit // 2, limit):
        scaled = torch.ldexp(v, torch.tensor(power))
        assert torch.equal(send(RelativeThreshold(0.7), scaled, keys) != 0, kept)


def test_thresholds_of_nothing_are_empty_messages_of_a_count() -> None:
    for compressor in (Threshold(0.1), RelativeThreshold(0.5)):
        v = torch.tensor([[0.0, -0.0, 0.0], [0.0, 5.0, 0.0]])
        message = compressor.compress(v, keys_of(2))
        assert message.bits[0] == 2 and message.nbytes[0] == 1  # counts 0..3 are two bits
        assert message.codes[0].tolist() == [0, 1] and torch.equal(send(compressor, v, keys_of(2)), v)
        assert compressor.share(3, 2) == 1.0


def test_a_count_above_d_is_refused() -> None:
    compressor = Threshold(0.1)
    message = compressor.compress(torch.ones(1, 4, dtype=torch.float64), keys_of(1))
    buffer = message.pack()
    buffer[0] |= np.uint8(7)
    with pytest.raises(Malformed, match=r"0\.\.4"):
        Message.unpack(buffer, message.nbytes, compressor.schema((4,), torch.float64, keys_of(1)))
