"""The test vectors of docs/wire.md, computed again, and its table of layouts against the compressors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from laconic.compressors.permk import PermK
from laconic.core.compressor import Compressor
from laconic.core.keys import Keys
from laconic.core.message import Message
from laconic.core.registry import catalogue
from laconic.core.spec import example, parse
from laconic.wire.bits import zeros
from laconic.wire.coding import Bits, Coding, Subset
from laconic.wire.levels import Levels

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "wire.md").read_text(encoding="utf-8")
Vector = dict[str, Any]


def coded(coding: Coding, codes: np.ndarray) -> Vector:
    """The bits of one row that starts at byte 0, and back."""
    offsets, bits = np.array([0, len(codes)]), np.zeros(1, dtype=np.int64)
    coding.measure(codes, offsets, bits)
    size = -(-int(bits[0]) // 8)
    buffer, cursor = zeros(size), np.zeros(1, dtype=np.int64)
    coding.write(codes, offsets, buffer, cursor)
    back = coding.read(offsets, buffer, np.zeros(1, dtype=np.int64), np.array([8 * size]))
    assert cursor[0] == bits[0] and back.tolist() == codes.tolist()
    return {"bits": int(bits[0]), "bytes": buffer[:size].tobytes().hex()}


def keys(vector: Vector) -> Keys:
    return Keys(vector["seed"], vector["step"], vector["stream"], np.array([vector["worker"]]), 1)


def key(vector: Vector) -> Vector:
    return {"key": Keys(vector["seed"], 0, vector["stream"], np.zeros(1, dtype=np.int64), 1).address[:2].tolist()}


def owned(vector: Vector) -> Vector:
    """Who owns which coordinates, read off what arrives of a vector of ones."""
    n, d = vector["n"], vector["d"]
    everyone = Keys(vector["seed"], vector["step"], vector["stream"], np.arange(n), n)
    message = PermK().compress(torch.ones(n, d, dtype=torch.float64), everyone)
    dense = PermK().decode(message, (d,), torch.float64, everyone).dense()
    return {"owned": [row.nonzero()[:, 0].tolist() for row in dense]}


def block(vector: Vector) -> Vector:
    """What one worker of many owns, read off what arrives of its vector of ones."""
    worker, d = (
        Keys(vector["seed"], vector["step"], vector["stream"], np.array([vector["worker"]]), vector["n"]),
        vector["d"],
    )
    message = PermK().compress(torch.ones(1, d, dtype=torch.float64), worker)
    return {"owned": PermK().decode(message, (d,), torch.float64, worker).dense()[0].nonzero()[:, 0].tolist()}


def message(vector: Vector) -> Vector:
    """A message of every row, and what its bytes mean to a receiver who has these bytes and the schema alone."""
    compressor, dtype = cast(Compressor, parse(vector["compressor"])), getattr(torch, vector["dtype"])
    x = torch.tensor(vector["x"], dtype=dtype)
    shape, addresses = tuple(x.shape[1:]), Keys(0, 1, "/mechanism/up0", np.array(vector["workers"]), vector["n"])
    sent = compressor.compress(x, addresses)
    ends, buffer = np.cumsum(sent.nbytes), sent.pack()
    heard = Message.unpack(buffer, sent.nbytes, compressor.schema(shape, dtype, addresses))
    decoded = compressor.decode(heard, shape, dtype, addresses).dense()
    rows = np.split(buffer, ends[:-1])
    return {"bytes": [row.tobytes().hex() for row in rows], "decoded": decoded.tolist()}


RECOMPUTE: dict[str, Callable[[Vector], Vector]] = {
    "bits": lambda v: coded(Bits(v["width"]), np.array(v["codes"])),
    "subset": lambda v: coded(Subset(v["size"]), np.array(v["indices"])),
    "levels": lambda v: coded(Levels(v["size"]), np.repeat(*np.array(v["runs"]).T)),
    "key": key,
    "words": lambda v: {"words": [f"{word:016x}" for word in keys(v).words(v["count"])[0].tolist()]},
    "uniform": lambda v: {"numbers": keys(v).uniform(v["count"])[0].tolist()},
    "floyd": lambda v: {"subset": keys(v).subsets(v["d"], v["k"])[0].tolist()},
    "permutation": lambda v: {"permutation": keys(v).permutations(v["d"])[0].tolist()},
    "images": lambda v: {"images": keys(v).images(v["d"], np.array(v["positions"]))[0].tolist()},
    "permk": owned,
    "block": block,
    "message": message,
}
VECTORS: list[Vector] = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["vector"])
def test_the_code_gives_the_vectors_of_the_page(vector: Vector) -> None:
    computed = RECOMPUTE[vector["vector"]](vector)
    assert {name: vector.get(name) for name in computed} == computed


def test_the_page_has_a_vector_of_every_kind_and_compressor() -> None:
    assert {vector["vector"] for vector in VECTORS} == set(RECOMPUTE)
    shown = {parse(vector["compressor"]).name for vector in VECTORS if vector["vector"] == "message"}
    assert shown == {"identity", "topk", "randk", "shared_randk", "permk", "natural"}


def test_the_table_gives_the_layouts_of_the_compressors() -> None:
    table = [
        (re.findall(r"`([^`]+)`", entries), layout)
        for entries, layout in re.findall(r"^\| (`.*?) \| (.*) \|$", PAGE, re.M)
    ]
    assert len(table) >= 5
    for entries, layout in table:
        for spec in entries:
            entry = cast(Compressor, parse(example(catalogue().find(spec.split("(")[0]))))
            assert entry.layout == layout, entry.name
