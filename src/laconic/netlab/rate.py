"""Rates of links, as tc writes them, and the token bucket that belongs to each of them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

UNITS = {  # bits per second; "bps" is bytes per second, as tc has it
    "bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9, "tbit": 10**12,
    "bps": 8, "kbps": 8 * 10**3, "mbps": 8 * 10**6, "gbps": 8 * 10**9,
}  # fmt: skip
ETHERNET = 14  # bytes before the IP header of each frame; checksum, preamble and gap are counted by nobody here
BUSY = 25_000  # frames per second that take a quarter of a core or more, at 10 to 20 microseconds from socket to socket
FREE = 0.5e-3  # seconds: what a link that has rested may send at once. The kernel's timers are late by less.
QUEUE = 50e-3  # seconds that a frame waits in a full queue
SHORTEST_QUEUE = 256 * 1024  # bytes: a few collectives' chunks fit, so that nothing is dropped where several ranks send


@dataclass(frozen=True)
class Rate:
    """A link's limit in each direction.

    Parameters
    ----------
    text
        As tc writes it: `10mbit`, `1gbit`, `500kbit`, `12.5mbps` (bytes per second), or `none`.

    Raises
    ------
    ValueError
        `text` is no rate, or one that is too small for a link (less than 8 kbit/s).

    Examples
    --------
    >>> Rate("100mbit").bits_per_second, Rate("none").limited
    (100000000.0, False)
    """

    text: str

    def __post_init__(self) -> None:
        if self.limited and self.bits_per_second < 8000:
            raise ValueError(f"--rate {self.text} : a link needs 8kbit or more; give such as 100mbit, 1gbit or none")

    @property
    def limited(self) -> bool:
        """Whether there is a limit at all."""
        return self.text.strip().lower() != "none"

    @property
    def bits_per_second(self) -> float:
        """The limit; infinite without one."""
        if not self.limited:
            return math.inf
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", self.text.strip().lower())
        if found is None or found[2] not in UNITS:
            raise ValueError(f"--rate {self.text} : is no rate; give such as 100mbit, 1gbit, 500kbit or none")
        return float(found[1]) * UNITS[found[2]]

    def burst(self, mtu: int) -> int:
        """Bytes of the token bucket: half a millisecond, and never less than two frames."""
        return max(2 * (mtu + ETHERNET), round(FREE * self.bits_per_second / 8))

    def queue(self, mtu: int) -> int:
        """Bytes that may wait for tokens before frames are dropped."""
        return max(SHORTEST_QUEUE, 4 * self.burst(mtu), round(QUEUE * self.bits_per_second / 8))

    def frames_per_core(self, ranks: int, cores: int, mtu: int) -> float:
        """Frames that each core has to move per second while all ranks send as fast as they may."""
        return ranks * self.bits_per_second / 8 / (mtu + ETHERNET) / cores

    def qdisc(self, mtu: int) -> list[str]:
        """The queueing discipline for tc: a token bucket, or a plain queue without a limit.

        >>> " ".join(Rate("100mbit").qdisc(1500))
        'tbf rate 100000000bit burst 6250 limit 625000'
        """
        if not self.limited:
            return ["pfifo", "limit", "10000"]
        return [
            "tbf", "rate", f"{round(self.bits_per_second)}bit", "burst", str(self.burst(mtu)),
            "limit", str(self.queue(mtu)),
        ]  # fmt: skip
