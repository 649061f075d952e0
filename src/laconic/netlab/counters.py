"""The kernel's own counters of a network interface, for a script that wants to know what it really sent.

They count whole frames: payload, TCP, IP and Ethernet headers, acknowledgements, and frames sent again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

DEVICES = Path("/proc/self/net/dev")  # of this process's namespace, all counters at one moment


@dataclass(frozen=True)
class Traffic:
    """Bytes and packets that crossed an interface."""

    bytes_sent: int
    bytes_received: int
    packets_sent: int
    packets_received: int

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.bytes_sent - other.bytes_sent, self.bytes_received - other.bytes_received,
            self.packets_sent - other.packets_sent, self.packets_received - other.packets_received,
        )  # fmt: skip


def traffic_of(text: str) -> dict[str, Traffic]:
    """The interfaces of a `/proc/net/dev` by name.

    >>> traffic_of("eth0: 300 2 0 0 0 0 0 0 1500 3 0 0 0 0 0 0")["eth0"].bytes_sent
    1500
    """
    found = {}
    for line in text.splitlines():
        name, colon, rest = line.rpartition(":")
        numbers = rest.split()
        if colon and len(numbers) >= 10 and all(number.isdigit() for number in numbers):
            received, sent = numbers[:2], numbers[8:10]
            found[name.strip()] = Traffic(int(sent[0]), int(received[0]), int(sent[1]), int(received[1]))
    return found


class Counters:
    """Reads one interface, at any moment and from any process of the namespace (about 20 microseconds a look).

    Parameters
    ----------
    interface
        Its name; without it that of GLOO_SOCKET_IFNAME, which `laconic netlab` sets.

    Examples
    --------
    >>> Counters("no such interface").look() is None
    True
    """

    def __init__(self, interface: str | None = None) -> None:
        self.interface = os.environ.get("GLOO_SOCKET_IFNAME", "") if interface is None else interface
        self._last = self.total()

    def total(self) -> Traffic | None:
        """Since the interface was made; None where there is none of this name, or no Linux."""
        try:
            return traffic_of(DEVICES.read_text(encoding="utf-8")).get(self.interface)
        except OSError:
            return None

    def look(self) -> Traffic | None:
        """Since the last look, first since this object was made; None where there is no such interface."""
        now, before = self.total(), self._last
        self._last = now
        return None if now is None else now if before is None else now - before
