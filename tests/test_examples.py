"""The examples, each run by two processes: what they print, and that it is true."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import worlds
from example_jobs import EXAMPLES

DENSE = 4 * (64 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10)  # bytes of the network on digits
LINE = re.compile(r"([\d.]+)% right, ([\d,]+) bytes up per step and process, 1/(\d+) of dense float32")


def printed(name: str) -> list[str]:
    """The lines of an example, which the first process prints."""
    first, other = worlds.pool().results("example", 2, timeout=100.0, name=name)
    assert other == ""
    return first.splitlines()


@pytest.mark.parametrize(
    ("name", "needs", "least", "most"),
    [
        ("ddp_hook", "torch", 5_000, 6_500),
        ("diloco", "torch", 4_600, 5_100),
        ("lightning_hook", "lightning", 5_000, 6_500),
        ("accelerate_hook", "accelerate", 5_000, 6_500),
    ],
)
def test_a_network_learns_digits_with_few_bytes(name: str, needs: str, least: int, most: int) -> None:
    """Dense it is 92 to 93% right, and 340,008 bytes a step."""
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"the package {needs} is not installed, which the example is about")
    *before, line = printed(name)
    found = LINE.fullmatch(line)
    assert found is not None
    right, up, share = float(found[1]), int(found[2].replace(",", "")), int(found[3])
    assert right > 85.0
    assert least < up < most
    assert share == round(DENSE / up)
    if name == "ddp_hook":
        assert re.match(r"laconic: 200 steps, 5\.\d+ kB up per step \(1\.\d% of dense float32\), compress", before[0])


def test_the_optimizer_compresses_and_probes() -> None:
    lines = printed("compressed_optimizer")
    found = [re.match(r"([\d.]+)% right, ([\d,]+) bytes a step and worker, (\d+) gradients", line) for line in lines]
    right, up, gradients = zip(*(one.groups() for one in found if one), strict=True)
    assert min(map(float, right)) > 95.0
    dense, compressed, probing = (int(size.replace(",", "")) for size in up)
    assert dense > 15 * compressed and dense > 8 * probing
    assert gradients[:2] == ("200", "200") and int(gradients[2]) == 240  # a trial step in every fifth


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_begins_with_its_command(path: Path) -> None:
    assert f"examples/{path.name}" in path.read_text(encoding="utf-8").split('"""')[1]
