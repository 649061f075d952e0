"""Codings: how the codes of one field become bits, how many, and back, checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from laconic.kernels.threads import over_rows
from laconic.wire import bits, subsets


class Malformed(ValueError):
    """Bytes from another machine that cannot be what they should be."""


class Coding(ABC):
    """Codes of a ragged batch, flat with `offsets` (rows + 1,), to bits and back.

    Each row has its own bit cursor into one buffer; writing and reading move it on.
    """

    @abstractmethod
    def measure(self, codes: np.ndarray, offsets: np.ndarray, out: np.ndarray) -> None:
        """Adds the exact number of bits of each row to out, int64 of shape (rows,)."""

    @abstractmethod
    def fixed(self, counts: np.ndarray) -> np.ndarray | None:
        """The bits of each row where they follow from its number of codes, else None."""

    @abstractmethod
    def write(self, codes: np.ndarray, offsets: np.ndarray, buffer: np.ndarray, cursor: np.ndarray) -> None:
        """Appends the codes of each row at its cursor in a stream (`bits.zeros`) that holds zeros there."""

    @abstractmethod
    def read(self, offsets: np.ndarray, buffer: np.ndarray, cursor: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """The codes, as unsigned integers or int64. Raises Malformed; never reads past `ends` (bits, per row)."""


@dataclass(frozen=True)
class Bits(Coding):
    """Every code in the same number of bits, 1 to 64. Floats are their own bit patterns."""

    width: int

    def measure(self, codes: np.ndarray, offsets: np.ndarray, out: np.ndarray) -> None:
        out += self.fixed(offsets[1:] - offsets[:-1])

    def fixed(self, counts: np.ndarray) -> np.ndarray:
        return counts * self.width

    def write(self, codes: np.ndarray, offsets: np.ndarray, buffer: np.ndarray, cursor: np.ndarray) -> None:
        bits.put_fixed(codes.view(f"u{codes.dtype.itemsize}"), offsets, self.width, buffer, cursor)

    def read(self, offsets: np.ndarray, buffer: np.ndarray, cursor: np.ndarray, ends: np.ndarray) -> np.ndarray:
        short = offsets[1:] - offsets[:-1] > (ends - cursor) // self.width
        if short.any():
            raise Malformed(f"row {np.argmax(short)} is cut short")
        size = next(size for size in (1, 2, 4, 8) if self.width <= 8 * size)
        out = np.empty(int(offsets[-1]), dtype=f"u{size}")
        bits.get_fixed(offsets, self.width, buffer, cursor, out)
        return out


@dataclass(frozen=True)
class Subset(Coding):
    """Sorted distinct indices in 0..size-1, as Rice-coded gaps or a bitmap, whichever is shorter."""

    size: int

    def measure(self, codes: np.ndarray, offsets: np.ndarray, out: np.ndarray) -> None:
        over_rows(subsets.measure, len(out), len(codes), codes, offsets, self.size, out)

    def fixed(self, counts: np.ndarray) -> np.ndarray | None:
        return np.zeros_like(counts) if ((counts == 0) | (counts == self.size)).all() else None

    def write(self, codes: np.ndarray, offsets: np.ndarray, buffer: np.ndarray, cursor: np.ndarray) -> None:
        subsets.write(codes, offsets, self.size, buffer, cursor)

    def read(self, offsets: np.ndarray, buffer: np.ndarray, cursor: np.ndarray, ends: np.ndarray) -> np.ndarray:
        counts = offsets[1:] - offsets[:-1]
        short = (counts != self.size) & (counts > ends - cursor)  # in either form an index is at least a bit
        if short.any():
            row = int(np.argmax(short))
        else:
            out = np.empty(int(offsets[-1]), dtype=np.int64)
            row = subsets.read(offsets, self.size, buffer, cursor, ends, out)
            if row == subsets.MALFORMED:
                return out
        raise Malformed(f"row {row} holds no valid {counts[row]}-subset of {self.size}")
