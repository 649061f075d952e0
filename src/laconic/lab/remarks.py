"""What texts remarked on their way, of all parties: how often, and the worst number."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.core.link import Link

Remarks = Mapping[str, Mapping[int, float]]  # text -> iteration -> the worst number of that iteration


@dataclass(frozen=True)
class Remark:
    """One text: in how many iterations it was remarked, and its worst number."""

    text: str
    count: int
    worst: float

    def __str__(self) -> str:
        return line(self.text, self.count, self.worst)


def line(text: str, count: int, worst: float | None) -> str:
    """A remark as people read it; run.json has no infinity, and says None."""
    number = "without end" if worst is None else f"{worst:.3g}"
    return f"{text}: in {count} iteration{'s' * (count > 1)}, at worst {number}"


def merged(*several: Remarks) -> dict[str, dict[int, float]]:
    """All of them. What two parties remark in the same iteration counts once, with the worse number."""
    found: dict[str, dict[int, float]] = {}
    for one in several:
        for text, numbers in one.items():
            mine = found.setdefault(text, {})
            for step, number in numbers.items():
                mine[step] = max(mine.get(step, number), number)
    return found


def counted(remarks: Remarks) -> list[Remark]:
    """The remarks as people read them."""
    return [Remark(text, len(numbers), max(numbers.values())) for text, numbers in sorted(remarks.items())]


async def gather(link: Link) -> dict[str, dict[int, float]]:
    """The remarks of all parties, on every party; off the books."""
    own = _packed(link.remarks)
    lengths = torch.zeros(link.block.size, 1, dtype=torch.float64)
    lengths[:1] = float(len(own))
    lengths = (await link.look(lengths))[:, 0]
    rows = torch.zeros(link.block.size, int(lengths.max()), dtype=torch.float64)
    if link.block.size:
        rows[0, : len(own)] = own
    parts = [row[: int(length)] for row, length in zip(await link.look(rows), lengths, strict=True) if length > 0]
    # a server without workers looks at nothing above
    length = int(await link.show(torch.tensor(float(len(own)), dtype=torch.float64)))
    parts.append(await link.show(own if len(own) == length else torch.zeros(length, dtype=torch.float64)))
    return merged(*(_unpacked(part) for part in parts))


def plain(remarks: Remarks) -> dict[str, list[list[float]]]:
    """For JSON, whose keys are texts."""
    return {text: [[step, number] for step, number in numbers.items()] for text, numbers in remarks.items()}


def of_plain(document: Mapping[str, list[list[float]]]) -> dict[str, dict[int, float]]:
    """Back from `plain`."""
    return {text: {int(step): number for step, number in pairs} for text, pairs in document.items()}


def _packed(remarks: Remarks) -> Tensor:
    return torch.tensor(list(json.dumps(plain(remarks)).encode()), dtype=torch.float64)


def _unpacked(row: Tensor) -> dict[str, dict[int, float]]:
    return of_plain(json.loads(bytes(int(code) for code in row.tolist()).decode()))
