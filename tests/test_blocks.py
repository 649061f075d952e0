"""`blocks` and `per_tensor`: each part is what the compressor makes of it alone, with draws of its own."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from laconic.compressors import _pieces, permk
from laconic.compressors._pieces import cells, independent
from laconic.compressors.blocks import Blocks, PerTensor
from laconic.compressors.natural import Natural
from laconic.compressors.permk import PermK
from laconic.compressors.randk import RandK, SharedRandK
from laconic.compressors.topk import TopK
from laconic.core.compressor import AB, Contractive, Sparse, Unbiased
from laconic.core.keys import SERVER, SHARED, Keys
from laconic.core.message import Message
from laconic.core.spec import parse
from laconic.wire.coding import Malformed, Subset
from planted import RoundRobin
from sending import keys_of, send, wholes

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


INNER = [
    "topk(k=2)",
    "natural",
    "randk(k=0.4)",
    "bernoulli(p=0.5)",
    "qsgd(levels=3)",
    "topk(k=2) | natural",
    "scaled(natural)",
    "shared_randk(k=2)",
    "permk",
    "permk | natural",
    "topk_permk(k=1)",
    "relative_threshold(t=0.7)",
    "mean_of(randk(k=2), copies=2)",
    "blocks(topk(k=1), size=2)",
    "per_tensor(randk(k=1))",
]


@pytest.mark.parametrize("text", INNER)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("shape", "sizes"), [((1,), (1,)), ((13,), (6, 1, 6)), ((4, 3), (12,))])
def test_bytes_meaning_and_company(text: str, dtype: torch.dtype, shape: tuple[int, ...], sizes: Any) -> None:
    inner, n = parse(text), 4
    assert parse(str(PerTensor(inner, sizes))) == PerTensor(inner, sizes)  # type: ignore[arg-type]
    for compressor in (Blocks(inner, 5), Blocks(inner, 1), PerTensor(inner, sizes)):  # type: ignore[arg-type]
        v, keys = normal(n, *shape, seed=3).to(dtype), keys_of(n, 4)
        v[2] = 0.0
        before, message = v.clone(), compressor.compress(v, keys)
        out, buffer, ends = send(compressor, v, keys), message.pack(), np.cumsum(message.nbytes)
        assert torch.equal(v, before) and out.shape == v.shape and out.dtype == dtype and not out[2].any()
        for row in range(n):
            own = keys.at([row])
            alone = compressor.compress(v[row : row + 1], own)
            assert alone.pack().tobytes() == buffer[ends[row] - message.nbytes[row] : ends[row]].tobytes()
            assert torch.equal(compressor.decode(message.at(row, row + 1), shape, dtype, own).dense()[0], out[row])
        assert send(compressor, v[:0], keys.at([])).shape == (0, *shape)


# ---- what each part is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["topk(k=2)", "natural", "randk(k=2)", "qsgd(levels=3)", "topk(k=2) | natural"])
def test_a_full_block_is_the_compressor_at_an_address_of_worker_and_block(text: str) -> None:
    """n + 2 numbers per block: workers, the server, what is shared; the last block is in a stream of its own."""
    inner: Any = parse(text)
    v, n, keys = normal(3, 17), 7, dataclasses.replace(keys_of(7), workers=np.array([0, 5, SERVER]))
    assert independent(inner, 5)
    out = send(Blocks(inner, 5), v, keys)
    for row, number in enumerate((0, 5, 7)):
        for block in range(3):
            own = dataclasses.replace(keys, stream="/up0/blocks0", workers=np.array([number + block * (n + 2)]))
            part = slice(5 * block, 5 * block + 5)
            assert torch.equal(out[row, part], send(inner, v[row : row + 1, part], own)[0])
        assert torch.equal(out[row, 15:], send(inner, v[row : row + 1, 15:], keys.at([row]).scope("rest"))[0])


@pytest.mark.parametrize("text", ["shared_randk(k=2)", "permk", "topk_permk(k=1)", "relative_threshold(t=0.7)"])
def test_joint_and_counting_compressors_go_block_by_block(text: str) -> None:
    inner: Any = parse(text)
    v, keys = normal(3, 17), keys_of(3)
    assert not independent(inner, 5)
    streams = [keys.scope(name) for name in ("block0", "block1", "block2", "rest")]
    parts = [send(inner, part, own) for part, own in zip(v.split(5, 1), streams, strict=True)]
    assert torch.equal(send(Blocks(inner, 5), v, keys), torch.cat(parts, 1))


@pytest.mark.parametrize("text", ["topk(k=2)", "natural", "shared_randk(k=2)", "relative_threshold(t=0.7)"])
def test_a_tensor_is_the_compressor_in_a_stream_of_its_own(text: str) -> None:
    inner: Any = parse(text)
    v, keys, sizes = normal(3, 17), keys_of(3), (8, 1, 8)
    streams = [keys.scope(f"tensor{t}") for t in range(3)]
    parts = [send(inner, part, own) for part, own in zip(v.split(sizes, 1), streams, strict=True)]
    assert torch.equal(send(PerTensor(inner, sizes), v, keys), torch.cat(parts, 1))
    bits = np.sum(
        [inner.compress(part, own).bits for part, own in zip(v.split(sizes, 1), streams, strict=True)], axis=0
    )
    assert PerTensor(inner, sizes).compress(v, keys).bits.tolist() == bits.tolist()


def test_sparse_parts_stay_sparse() -> None:
    v, keys = normal(3, 17), keys_of(3)
    for text in ("blocks(topk(k=2), size=5)", "blocks(permk, size=5)", "per_tensor(bernoulli(p=0.4), sizes=(8, 1, 8))"):
        compressor: Any = parse(text)
        decoded = compressor.decode(compressor.compress(v, keys), (17,), F64, keys)
        assert isinstance(decoded, Sparse) and len(decoded.indices) < 3 * 17
        for low, high in itertools.pairwise(decoded.offsets):
            assert decoded.indices[low:high].tolist() == sorted(set(decoded.indices[low:high].tolist()))


def test_draws_differ_between_blocks_and_shared_ones_are_the_same_on_all_workers() -> None:
    ones = torch.ones(3, 4000, dtype=F64)
    for compressor in (Blocks(SharedRandK(20), 40), PerTensor(SharedRandK(20), (40,) * 100)):
        out = send(compressor, ones, keys_of(3))
        assert torch.equal(out, out[:1].expand(3, -1)) and len(out[0].view(100, 40).unique(dim=0)) == 100
    for compressor in (Blocks(RandK(20), 40), PerTensor(RandK(20), (40,) * 100)):
        assert len(send(compressor, ones, keys_of(3)).view(300, 40).unique(dim=0)) == 300


def test_addresses_of_cells_are_all_different_however_many(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = dataclasses.replace(keys_of(3), workers=np.array([0, 1, 2, SERVER, SHARED]))
    monkeypatch.setattr(_pieces, "ADDRESSES", 23)  # four blocks of five parties
    pieces = list(cells(keys, "blocks", 0, 7, 10))
    assert [(p.begin, p.count, p.keys.stream) for p in pieces] == [
        (0, 4, "/up0/blocks0"), (28, 4, "/up0/blocks1"), (56, 2, "/up0/blocks2"),
    ]  # fmt: skip
    addresses = [(p.keys.stream, worker) for p in pieces for worker in p.keys.workers]
    assert len(set(addresses)) == 50 and max(worker for _, worker in addresses) < 23
    v = normal(3, 70)
    whole = send(Blocks(RandK(2), 7), v, keys_of(3))
    for row in range(3):
        assert torch.equal(send(Blocks(RandK(2), 7), v[row : row + 1], keys_of(3).at([row]))[0], whole[row])


def test_a_hundred_thousand_blocks_are_one_batch() -> None:
    """One call of the compressor, whatever the number of blocks."""
    calls = []

    @dataclasses.dataclass(frozen=True)
    class Counted(Natural):
        def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
            calls.append(v.shape)
            return super().codes(v, keys)

    compressor, v = Blocks(Counted(), 4), torch.ones(1, 400_002)
    independent(Counted(), 4)
    calls.clear()
    assert torch.equal(send(compressor, v, keys_of(1)), v)
    assert calls == [(100_000, 4), (1, 2)]


# ---- bytes of others -------------------------------------------------------------------------------------------------


def test_indices_of_blocks_are_one_subset_and_each_block_must_have_its_own_number() -> None:
    v, keys, compressor = torch.arange(1.0, 17.0)[None], keys_of(1), Blocks(TopK(1), 4)
    schema = compressor.schema((16,), torch.float32, keys)
    assert (schema[0].coding, schema[0].count) == (Subset(16), 4)
    message = compressor.compress(v, keys)
    assert message.codes[0].tolist() == [3, 7, 11, 15]
    for wrong in ([3, 7, 8, 11], [0, 1, 2, 3], [12, 13, 14, 15], [0, 4, 5, 12]):
        heard = Message(schema, (torch.tensor(wrong), message.codes[1]), 1)
        with pytest.raises(Malformed, match="a block of 4 coordinates has another number of indices"):
            compressor.decode(heard, (16,), torch.float32, keys)


# ---- claims ----------------------------------------------------------------------------------------------------------


def test_claims_are_the_worst_of_the_parts() -> None:
    assert Blocks(TopK(2), 8).claim(100, 3) == Contractive(0.25) and Blocks(TopK(2), 8).claim(5, 3) == Contractive(0.4)
    assert Blocks(RandK(2), 8).claim(100, 3) == Unbiased(3.0)
    assert PerTensor(RandK(2), (3, 10, 2)).claim(15, 3) == Unbiased(4.0)
    assert PerTensor(SharedRandK(2), (3, 10)).claim(13, 3) == AB(0.0, -4.0, 4.0)
    worse, better = PermK().claim(2, 5), PermK().claim(9, 5)
    assert PerTensor(PermK(), (2, 9)).claim(11, 5) == AB(max(worse.A, better.A), min(worse.B, better.B), 4.0)
    assert parse("blocks(threshold(t=1.0), size=4)").claim(9, 2) is None  # type: ignore[attr-defined]
    assert Blocks(TopK(2), 8).share(100, 3) == 26 / 100 and PerTensor(TopK(2), (3, 10, 1)).share(14, 1) == 5 / 14


def test_topk_of_blocks_attains_its_claim_at_equal_magnitudes() -> None:
    v = torch.tensor([[1.0, -1.0] * 12], dtype=F64)
    for compressor in (Blocks(TopK(2), 8), PerTensor(TopK(2), (8, 8, 8))):
        error = float(((send(compressor, v, keys_of(1)) - v) ** 2).sum())
        assert error == (1 - compressor.claim(24, 1).alpha) * 24  # type: ignore[union-attr]


def test_unbiased_errors_add_up_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """RandK in two blocks of three and a rest of two, over all triples of supports."""
    triples = list(itertools.product(range(3), range(3), range(2)))

    def drawn(self: Keys, d: int, k: int) -> np.ndarray:
        if self.stream.endswith("rest"):
            return np.array([[rest] for _, _, rest in triples])
        return np.array([[one] for a, b, _ in triples for one in (a, b)])[: self.rows]

    monkeypatch.setattr(Keys, "subsets", drawn)
    v, compressor = wholes(1, 8, 1)[0], Blocks(RandK(1), 3)
    out = send(compressor, v.expand(len(triples), 8), keys_of(len(triples)))
    assert torch.allclose(out.mean(0), v, rtol=1e-14, atol=1e-14)
    expected = 2 * float((v[:6] ** 2).sum()) + float((v[6:] ** 2).sum())
    error = float(((out - v) ** 2).sum(1).mean())
    assert error == pytest.approx(expected, rel=1e-13) and error <= 2 * float(v @ v)
    assert compressor.claim(8, 1) == Unbiased(2.0)


def test_permk_of_tensors_is_jointly_what_it_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, tensors of two and three coordinates, over all deals of both: A = B = 1 is an equality."""
    a, keys, error, count = wholes(2, 5, 2), keys_of(2), 0.0, 0
    total = torch.zeros_like(a)
    orders = [list(itertools.permutations(range(d))) for d in (2, 2, 3, 2)]
    names = ["/up0/tensor0", "/up0/tensor0/workers", "/up0/tensor1", "/up0/tensor1/workers"]
    for deal in itertools.product(*orders):
        drawn = dict(zip(names, deal, strict=True))
        monkeypatch.setattr(Keys, "permutations", lambda self, d, drawn=drawn: np.array([drawn[self.stream]]))
        permk._deal.cache_clear()
        out = send(PerTensor(PermK(), (2, 3)), a, keys)
        total += out
        error += float(((out.mean(0) - a.mean(0)) ** 2).sum())
        count += 1
    permk._deal.cache_clear()
    assert torch.equal(total, count * a)
    assert error / count == pytest.approx(float((a**2).sum()) / 2 - float((a.mean(0) ** 2).sum()), rel=1e-12)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_sizes_must_sum_to_d_and_states_have_no_place() -> None:
    compressor = PerTensor(TopK(1), (784, 10))
    for call in (
        lambda: compressor.compress(torch.ones(1, 800), keys_of(1)),
        lambda: compressor.schema((800,), F64, keys_of(1)),
        lambda: compressor.claim(800, 1),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value) == "PerTensor(sizes=(784, 10)) : sizes sum to 794, and the vector has 800"
    for make in (Blocks, PerTensor):
        with pytest.raises(ValueError, match="compressor must be a compressor without a state"):
            make(RoundRobin())
    with pytest.raises(ValueError, match=r"PerTensor\(sizes=\[3, 4\]\) : sizes must be a tuple of integers >= 1"):
        parse("per_tensor(topk(k=1), sizes=[3, 4])")
