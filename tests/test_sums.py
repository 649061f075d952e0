"""Messages of sums and differences that are never formed: the bits of those that are, and what they leave alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from laconic.core.compressor import Compressor
from laconic.core.keys import Keys
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism
from laconic.core.problem import Block
from laconic.core.registry import catalogue
from laconic.core.spec import example, parse
from laconic.runtime.local import Local

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
FUSED = [
    "topk(k=5)",
    "topk(k=1.0)",
    "block_topk(k=2, block=8)",
    "block_topk(k=3, block=64)",
    "topk(k=5) | natural",
    "block_topk(k=2, block=8) | topk(k=3)",
    "bernoulli(p=0.3) | natural",
]


def compressor_of(spec: str) -> Compressor:
    compressor = parse(spec)
    assert isinstance(compressor, Compressor)
    return compressor


def patterns_of(tensor: Tensor) -> list[object]:
    if not tensor.dtype.is_floating_point:
        return tensor.tolist()
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]).tolist()


def pair(dtype: torch.dtype, *shape: int) -> tuple[Tensor, Tensor]:
    """Vectors with many ties, zeros of both signs, and sums that cancel."""
    rng = np.random.default_rng(4)
    a, b = torch.from_numpy(np.round(rng.standard_normal((2, *shape)), 1)).to(dtype)
    a[0], b[-1] = -0.0, -0.0
    return a, b


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", FUSED)
def test_codes_of_a_sum_are_those_of_the_formed_one(spec: str, dtype: torch.dtype) -> None:
    compressor, keys = compressor_of(spec), Keys(3, 1, "sums", np.arange(4), 4)
    for shape in ((29,), (3, 7), (1,)):
        a, b = pair(dtype, 4, *shape)
        for formed, sign in ((a + b, 1), (a - b, -1)):
            found, expected = compressor.codes_of_sum(a, b, sign, keys), compressor.codes(formed, keys)
            assert [patterns_of(code) for code in found] == [patterns_of(code) for code in expected]


@pytest.mark.parametrize("spec", [example(cls) for cls in catalogue().of_kind("compressor")])
def test_a_link_makes_the_messages_of_a_sum_with_any_compressor(spec: str) -> None:
    """Also with those that have a state, which moves on as it would."""
    compressor = compressor_of(spec)
    a, b = pair(torch.float64, 4, 6, 6)
    packets = []
    ways: list[dict[str, Any]] = [{"minus": b}, {"plus": -b}, {}]
    for give in ways:
        link = Link(Block.whole(4))
        link.begin(0)
        packets.append(link.compress(compressor, a - b if not give else a, **give))
    for packet in packets:
        assert [patterns_of(x) for x in packet.message.codes] == [patterns_of(x) for x in packets[-1].message.codes]
        assert (packet.state is None) == (packets[-1].state is None)
    after = pair(torch.float64, 4, 6, 6)
    assert patterns_of(a) == patterns_of(after[0]) and patterns_of(b) == patterns_of(after[1])


def test_a_message_of_both_is_refused() -> None:
    link = Link(Block.whole(2))
    v = torch.ones(2, 3)
    with pytest.raises(ValueError, match="not of both"):
        link.compress(None, v, plus=v, minus=v)


def _plain(compressor: Compressor, kind: str, vectors: list[Tensor], links: Link) -> list[Tensor]:
    """What EF14 or EF21 leaves in its memory, each sum and difference formed."""
    memory, seen = torch.zeros_like(vectors[0]), []
    for step, v in enumerate(vectors):
        links.begin(step)
        owed = memory + v if kind == "ef14" else v - memory
        packet = links.compress(compressor, owed)
        sent = packet.decoded.dense()
        memory = owed - sent if kind == "ef14" else memory + sent
        seen.append(memory.clone())
    return seen


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "spec", ["topk(k=3)", "block_topk(k=2, block=8)", "topk(k=3) | natural", "scaled_sign", "identity"]
)
@pytest.mark.parametrize("kind", ["ef14", "ef21"])
def test_memories_are_those_of_formed_sums(kind: str, spec: str, dtype: torch.dtype) -> None:
    mechanism, runtime = parse(f"{kind}({spec})"), Local(4)
    assert isinstance(mechanism, Mechanism)
    vectors = [pair(dtype, 4, 29)[step % 2] * (step + 1) for step in range(5)]
    expected = _plain(compressor_of(spec), kind, vectors, Link(Block.whole(4)))
    memory = None
    for step, v in enumerate(vectors):
        link = runtime.links[0]
        link.begin(step)
        text = mechanism.init(v.clone(), link) if memory is None else mechanism.exchange(v.clone(), memory, link)
        ((_, memory),) = runtime.drive(text)
        kept = memory.error if kind == "ef14" else memory.shift
        assert torch.equal(kept, expected[step])
