"""Real networks on one machine: a process per rank, each in a network namespace behind a rate-limited link.

Needs Linux, root and iproute2; `docs/netlab.md` says what it builds and how well its rates hold. Nothing here imports
another part of laconic.
"""

from laconic.netlab.counters import Counters, Traffic
from laconic.netlab.headers import wire_bytes
from laconic.netlab.rate import Rate

__all__ = ["Counters", "Rate", "Traffic", "wire_bytes"]
