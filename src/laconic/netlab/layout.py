"""What a lab consists of, as the commands of iproute2 that build it: nothing is run here.

A namespace for the bridge and one for each rank. The host's own namespace gets nothing, so that its firewall, its
addresses and its list of interfaces have no part in it, and everything goes when the namespaces go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from laconic.netlab.rate import Rate

INTERFACE = "eth0"  # of a rank, in its namespace
PORT = 29500  # of rank 0, in a namespace where nobody else listens
LARGEST = 250  # ranks
PREPARE = (  # in each namespace
    "for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do [ ! -e $f ] || echo 1 > $f; done; "  # it sends on its own
    "echo reno > /proc/sys/net/ipv4/tcp_congestion_control"  # everywhere there; bbr paces by timers, which are too slow
)


@dataclass(frozen=True)
class Command:
    """One command, and what it means if it fails."""

    words: tuple[str, ...]
    lacking: str


@dataclass(frozen=True)
class Layout:
    """A lab: `name` is the beginning of its namespaces' names."""

    name: str
    ranks: int
    rate: Rate
    mtu: int = 1500

    def __post_init__(self) -> None:
        if not 1 <= self.ranks <= LARGEST:
            raise ValueError(f"--ranks {self.ranks} : give 1 to {LARGEST}")
        if not 576 <= self.mtu <= 65521:
            raise ValueError(f"--mtu {self.mtu} : give 576 to 65521 bytes, such as 1500 or 9000")

    @property
    def hub(self) -> str:
        """The bridge's namespace."""
        return f"{self.name}-hub"

    def namespace(self, rank: int) -> str:
        """Of a rank."""
        return f"{self.name}-{rank}"

    def address(self, rank: int) -> str:
        """Of a rank."""
        return f"10.77.0.{rank + 1}"

    def port(self, rank: int) -> str:
        """The bridge's end of a rank's cable."""
        return f"rank{rank}"

    def commands(self) -> Iterator[Command]:
        """All of them, in order."""
        rights = "network namespaces need root (CAP_SYS_ADMIN and CAP_NET_ADMIN) and a kernel with CONFIG_NET_NS"
        for one in (self.hub, *map(self.namespace, range(self.ranks))):
            yield Command(("ip", "netns", "add", one), rights)
            yield Command(("ip", "netns", "exec", one, "sh", "-c", PREPARE), rights)
        bridge = "the kernel lacks bridges (CONFIG_BRIDGE)"
        inside = ("ip", "-n", self.hub, "link")
        yield Command((*inside, "add", "br0", "mtu", str(self.mtu), "type", "bridge", "mcast_snooping", "0"), bridge)
        yield Command((*inside, "set", "br0", "up"), bridge)
        for rank in range(self.ranks):
            yield from self._cable(rank)

    def _cable(self, rank: int) -> Iterator[Command]:
        own, port = self.namespace(rank), self.port(rank)
        veth = "the kernel lacks pairs of virtual interfaces (CONFIG_VETH)"
        whole = "ip or the kernel is too old for gso_max_segs (iproute2 4.15), without which bytes are miscounted"
        bucket = "the kernel lacks token buckets (CONFIG_NET_SCH_TBF)" if self.rate.limited else "tc does not work"
        mtu, inside = str(self.mtu), ("ip", "-n", self.hub, "link")
        peer = ("peer", "name", INTERFACE, "mtu", mtu, "netns", own)
        yield Command((*inside, "add", port, "mtu", mtu, "type", "veth", *peer), veth)
        # one frame at a time: else "packets" of 64 kB cross the link, whose counters then miss most headers
        yield Command(("ip", "-n", own, "link", "set", INTERFACE, "gso_max_segs", "1"), whole)
        yield Command((*inside, "set", port, "master", "br0"), "the kernel's bridge takes no veth")
        yield Command((*inside, "set", port, "up"), veth)
        yield Command(("ip", "-n", own, "addr", "add", f"{self.address(rank)}/24", "dev", INTERFACE), veth)
        for name in ("lo", INTERFACE):
            yield Command(("ip", "-n", own, "link", "set", name, "up"), veth)
        qdisc = self.rate.qdisc(self.mtu)
        for where, name in ((own, INTERFACE), (self.hub, port)):  # upload, download
            yield Command(("tc", "-n", where, "qdisc", "add", "dev", name, "root", *qdisc), bucket)

    def environment(self, rank: int, cores: int) -> dict[str, str]:
        """What a rank's process finds in its environment; `OMP_NUM_THREADS` yields to one that is set."""
        return {
            "RANK": str(rank), "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.ranks), "LOCAL_WORLD_SIZE": str(self.ranks),
            "MASTER_ADDR": self.address(0), "MASTER_PORT": str(PORT), "GLOO_SOCKET_IFNAME": INTERFACE,
            "OMP_NUM_THREADS": str(max(1, cores // self.ranks)),
            "LACONIC_NETLAB_RATE": self.rate.text, "LACONIC_NETLAB_MTU": str(self.mtu),
        }  # fmt: skip
