"""The coding of quantisation levels: entropy-coded where that is shorter than the fixed width."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from laconic.kernels.threads import over_rows
from laconic.wire import forms, reading
from laconic.wire.coding import Coding, Malformed
from laconic.wire.rans import SEGMENT


class _Segments:
    """The segments of the rows that have several: any thread may take the next one."""

    def __init__(self, offsets: np.ndarray, size: int) -> None:
        many = -(-(offsets[1:] - offsets[:-1]) // SEGMENT)
        many[many <= 1] = 0
        self.rows = np.repeat(np.arange(len(many)), many)
        before = np.cumsum(many) - many
        self.first = np.where(many > 0, before, -1)  # of each row, -1 for rows that are no longer than a segment
        self.starts = offsets[self.rows] + SEGMENT * (np.arange(len(self.rows)) - before[self.rows])
        self.ends = np.minimum(self.starts + SEGMENT, offsets[self.rows + 1])
        self.table = np.zeros((len(self.rows), size), dtype=np.int64)
        self.places = np.full(len(self.rows), -1, dtype=np.int64)

    def over(self, kernel: object, *arguments: object) -> None:
        over_rows(kernel, len(self.rows), len(self.rows) * SEGMENT, *arguments)  # type: ignore[arg-type]

    def counted(self, codes: np.ndarray) -> np.ndarray:
        """The histogram of each segment."""
        out = np.zeros_like(self.table)
        self.over(forms.count, codes, self.starts, self.ends, out)
        return out


@dataclass(frozen=True)
class Levels(Coding):
    """Codes in 0..size-1, 2 <= size <= 65536: by their frequencies, or where they are not 0, or at fixed width.

    The fixed width is bit_length(size - 1) bits, for size = 3 five codes in eight bits. A row is never longer, but one
    bit where size is a power of two. How near to the entropy rows come, and for which codes, is in docs/wire.md.
    """

    size: int

    def __post_init__(self) -> None:
        if not 2 <= self.size <= 1 << 16:
            raise ValueError(f"an alphabet of 2..65536 codes, not of {self.size}")

    def measure(self, codes: np.ndarray, offsets: np.ndarray, out: np.ndarray) -> None:
        codes, segments = self._narrow(codes), _Segments(offsets, self.size)
        counted = segments.counted(codes)
        over_rows(forms.measure, len(out), len(codes), codes, offsets, self.size, segments.first, counted, out)

    def fixed(self, counts: np.ndarray) -> np.ndarray | None:
        return np.zeros_like(counts) if not counts.any() else None

    def write(self, codes: np.ndarray, offsets: np.ndarray, buffer: np.ndarray, cursor: np.ndarray) -> None:
        codes, s = self._narrow(codes), _Segments(offsets, self.size)
        counted, rows = s.counted(codes), len(offsets) - 1
        places = s.table, s.places
        over_rows(forms.write, rows, len(codes), codes, offsets, self.size, s.first, counted, buffer, cursor, *places)
        s.over(forms.write_segments, codes, s.starts, s.ends, counted, *places, buffer)

    def read(self, offsets: np.ndarray, buffer: np.ndarray, cursor: np.ndarray, ends: np.ndarray) -> np.ndarray:
        out = np.empty(int(offsets[-1]), dtype=self._dtype)
        s, rows = _Segments(offsets, self.size), len(offsets) - 1
        lengths, well = np.zeros(len(s.rows), dtype=np.int64), np.ones(rows, dtype=np.bool_)
        found = s.table, s.places, lengths
        over_rows(reading.read, rows, len(out), offsets, self.size, s.first, buffer, cursor, ends, out, *found, well)
        s.over(reading.read_segments, s.starts, s.ends, s.rows, *found, buffer, out, well)
        if not well.all():
            row = int(np.argmin(well))
            raise Malformed(f"row {row} holds no valid {offsets[row + 1] - offsets[row]} levels of {self.size}")
        return out

    @property
    def _dtype(self) -> type[np.unsignedinteger]:
        return np.uint8 if self.size <= 1 << 8 else np.uint16

    def _narrow(self, codes: np.ndarray) -> np.ndarray:
        """The codes as unsigned integers of the least width. Raises ValueError where one is not below size."""
        unsigned = codes.view(f"u{codes.itemsize}")
        if len(codes) and int(unsigned.max()) >= self.size:
            raise ValueError(f"a level of code {int(unsigned.max())} in an alphabet of {self.size}")
        return unsigned.astype(self._dtype, copy=False)
