"""What a lab says at its end: the kernel's counters per rank, as a table and as a document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.table import Table

from laconic.netlab.counters import Traffic


@dataclass(frozen=True)
class Line:
    """One rank: its counters, frames dropped on the way to it, and bits per second in its busiest second."""

    rank: int
    traffic: Traffic
    dropped: int
    busiest_sent: float
    busiest_received: float

    def document(self, seconds: float) -> dict[str, Any]:
        """For JSON; rates in Mbit/s."""
        one = self.traffic
        return {
            "rank": self.rank,
            "bytes_sent": one.bytes_sent, "bytes_received": one.bytes_received,
            "packets_sent": one.packets_sent, "packets_received": one.packets_received,
            "dropped": self.dropped,
            "mbit_sent": _mbit(8 * one.bytes_sent / seconds), "mbit_received": _mbit(8 * one.bytes_received / seconds),
            "busiest_mbit_sent": _mbit(self.busiest_sent), "busiest_mbit_received": _mbit(self.busiest_received),
        }  # fmt: skip


def _mbit(bits_per_second: float) -> float:
    return round(bits_per_second / 1e6, 3)


def table(lines: list[Line], seconds: float) -> Table:
    """The counters as a table, with the mean rates and those of the busiest second."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    titles = ("rank", "MB sent", "packets", "MB received", "packets", "Mbit/s sent", "busiest", "received", "busiest")
    for title in (*titles, "dropped"):
        drawn.add_column(title, justify="right")
    for line in lines:
        one, rates = line.traffic, line.document(seconds)
        names = ("mbit_sent", "busiest_mbit_sent", "mbit_received", "busiest_mbit_received")
        drawn.add_row(
            str(line.rank), f"{one.bytes_sent / 1e6:,.3f}", f"{one.packets_sent:,}",
            f"{one.bytes_received / 1e6:,.3f}", f"{one.packets_received:,}",
            *(f"{rates[name]:.2f}" for name in names), str(line.dropped),
        )  # fmt: skip
    return drawn
