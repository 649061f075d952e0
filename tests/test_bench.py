"""The bench in small: its lines, and that its sizes are those of the bytes."""

from __future__ import annotations

import functools
import json
import math

import pytest
from typer.testing import CliRunner

from laconic.cli import app
from laconic.lab import bench


def test_speeds_are_beside_a_copy_and_plain_torch() -> None:
    lines = list(bench.speeds(d=3000, repeats=2))
    assert len({line.what for line in lines}) == len(lines) >= 15
    assert all(line.seconds > 0 and line.copies > 0 and line.first > 0 for line in lines)
    assert all((line.gain > 0) == (line.torch != "") for line in lines)


def test_sizes_are_those_of_the_bytes() -> None:
    d = 1 << 10
    size = bench.size_of("natural", d)
    assert (size.bits, size.saving, size.needed) == (9.0, 32 / 9, 1.125)
    size = bench.size_of("topk(k=64)", d)
    assert size.needed == 16.0 and size.claim == "alpha = 0.0625"
    assert math.log2(math.comb(d, 64)) + 64 * 32 <= size.bits * d <= 1.05 * math.log2(math.comb(d, 64)) + 64 * 32 + 9
    size = bench.size_of("permk", d, n=8)
    assert size.needed == 8.0 and 7.9 <= size.saving <= 8.0
    assert math.isnan(bench.size_of("sign", d).needed) and bench.size_of("sign", d).saving == 32.0
    for spec in ("shared_all_or_nothing(p=0.3)", "all_or_nothing(p=0.3)"):  # on average over the coin
        assert 2.8 < bench.size_of(spec, d).saving < 4.0 and bench.size_of(spec, d).needed == pytest.approx(1 / 0.3)
    with pytest.raises(ValueError, match="'gd' is a method; sizes are those of compressors"):
        bench.size_of("gd")


def test_memory_of_selection_is_a_fraction_of_the_vector() -> None:
    used = bench.peak_memory(d=1 << 21)
    assert math.isnan(used) or 0 <= used < 1.5


def test_the_command_prints_json_or_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "peak_memory", functools.cache(bench.peak_memory))  # a process of its own each time
    arguments = ["bench", "compressors", "--d", "2000", "--repeats", "1", "--size-of", "natural"]
    found = CliRunner().invoke(app, [*arguments, "--json"])
    assert found.exit_code == 0
    document = json.loads(found.output)
    assert document["d"] == 2000 and document["sizes"][0]["spec"] == "natural"
    assert {line["what"] for line in document["speed"]} >= {"natural pack", "chain of EF14 + topk 1%"}
    page = CliRunner().invoke(app, arguments).output
    assert "copies" in page and "omega = 0.125" in page
