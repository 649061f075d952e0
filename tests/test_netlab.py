"""The network lab: its parts without root, and where root and the kernel allow one, real labs of two ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from laconic.netlab import Counters, Rate, Traffic, counters, guardian, wire_bytes
from laconic.netlab.lab import Lab, Unavailable, build, program
from laconic.netlab.layout import Layout
from laconic.netlab.ranks import Ranks
from laconic.netlab.report import Line, table

PACKAGE = Path(guardian.__file__).resolve().parent.parent
LAYOUT = Layout("laconic-1-2", 2, Rate("100mbit"))


# ---- rates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "bits"),
    [("100mbit", 1e8), ("1gbit", 1e9), ("500kbit", 5e5), ("12.5mbps", 1e8), ("8000bit", 8e3), (" 10Mbit ", 1e7)],
)
def test_rates_are_read_as_tc_writes_them(text: str, bits: float) -> None:
    assert Rate(text).bits_per_second == bits and Rate(text).limited


@pytest.mark.parametrize("text", ["", "100", "mbit", "-1mbit", "10 miles", "1e3mbit", "0mbit", "7999bit", "100mbit;ls"])
def test_what_is_no_rate_is_said_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^--rate .*; give such as 100mbit.*none$"):
        Rate(text)


def test_the_bucket_is_half_a_millisecond_and_never_less_than_two_frames() -> None:
    assert [Rate(text).burst(1500) for text in ("10mbit", "100mbit", "1gbit")] == [3028, 6250, 62_500]
    assert Rate("10mbit").burst(9000) == 18_028
    assert [Rate(text).queue(1500) for text in ("10mbit", "100mbit", "1gbit")] == [262_144, 625_000, 6_250_000]
    assert Rate("none").qdisc(1500)[0] == "pfifo"  # it counts, and limits nothing
    assert Rate("1gbit").frames_per_core(2, 2, 1500) == pytest.approx(1e9 / 8 / 1514)


# ---- layouts ---------------------------------------------------------------------------------------------------------


def test_every_command_stays_in_the_labs_own_namespaces() -> None:
    commands = [" ".join(command.words) for command in LAYOUT.commands()]
    inside = ("ip netns add laconic-1-2-", "ip netns exec laconic-1-2-", "ip -n laconic-1-2-", "tc -n laconic-1-2-")
    assert [line for line in commands if not line.startswith(inside)] == []
    for rank in range(2):
        own, hub = f"laconic-1-2-{rank}", "laconic-1-2-hub"
        pair = f"rank{rank} mtu 1500 type veth peer name eth0 mtu 1500 netns {own}"
        bucket = "root tbf rate 100000000bit burst 6250 limit 625000"
        cable = f"ip -n {hub} link add {pair}"
        whole = f"ip -n {own} link set eth0 gso_max_segs 1"
        ends = [f"tc -n {own} qdisc add dev eth0 {bucket}", f"tc -n {hub} qdisc add dev rank{rank} {bucket}"]
        assert [commands.count(line) for line in (cable, whole, *ends)] == [1, 1, 1, 1]


def test_a_rank_is_told_what_torch_wants_to_know() -> None:
    told = LAYOUT.environment(1, cores=5)
    assert told == {
        "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "10.77.0.1",
        "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "2", "LACONIC_NETLAB_RATE": "100mbit",
        "LACONIC_NETLAB_MTU": "1500",
    }  # fmt: skip
    assert Layout("x", 4, Rate("none")).environment(0, cores=2)["OMP_NUM_THREADS"] == "1"


def test_impossible_layouts_are_refused() -> None:
    for ranks, mtu, option in (
        (0, 1500, "--ranks 0"),
        (251, 1500, "--ranks 251"),
        (2, 500, "--mtu 500"),
        (2, 65522, "--mtu"),
    ):
        with pytest.raises(ValueError, match=f"^{option}"):
            Layout("x", ranks, Rate("none"), mtu)


# ---- what a machine may lack -----------------------------------------------------------------------------------------


def planted(failing: str, said: str) -> Callable[[Sequence[str]], subprocess.CompletedProcess[str]]:
    """Runs nothing; commands that contain `failing` fail."""

    def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        code = int(failing in " ".join(words))
        return subprocess.CompletedProcess(words, code, "", said if code else "")

    return run


@pytest.mark.parametrize(
    ("failing", "said", "lacks"),
    [
        ("netns add", "mkdir /run/netns failed: Permission denied", "root"),
        ("type bridge", "Error: Unknown device type.", "CONFIG_BRIDGE"),
        ("type veth", "Error: Unknown device type.", "CONFIG_VETH"),
        ("gso_max_segs", "RTNETLINK answers: Operation not supported", "gso_max_segs"),
        ("tbf", "Error: Specified qdisc kind is unknown.\nmore", "CONFIG_NET_SCH_TBF"),
    ],
)  # fmt: skip
def test_what_is_lacking_is_said_in_one_line(failing: str, said: str, lacks: str) -> None:
    with pytest.raises(Unavailable) as raised:
        build(LAYOUT, planted(failing, said), "linux")
    line = str(raised.value)
    assert lacks in line and " ".join(said.split()) in line and "\n" not in line


def test_other_systems_and_a_missing_iproute2_are_named() -> None:
    def missing(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        raise FileNotFoundError(words[0])

    with pytest.raises(Unavailable, match="needs ip: install iproute2"):
        build(LAYOUT, missing, "linux")
    with pytest.raises(Unavailable, match="needs Linux.*darwin"):
        build(LAYOUT, missing, "darwin")
    build(LAYOUT, planted("nothing fails", ""), "linux")


def test_a_command_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no command no-such-thing"):
        program("no-such-thing")
    monkeypatch.setenv("PATH", "")
    assert program(Path(sys.executable).name) == sys.executable  # beside this Python


# ---- counters --------------------------------------------------------------------------------------------------------

DEVICES = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier ...
    lo:       7       1    0    0    0     0          0         0        7       1    0    0    0     0       0   0
  eth0:{}      20    3    4    5     6          7         8     5000      40    0    0    0     0       0   0
"""


def test_counters_give_what_passed_since_the_last_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "DEVICES", tmp_path / "dev")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    assert Counters().total() is None  # no such file: no Linux
    (tmp_path / "dev").write_text(DEVICES.format(1000))
    own, absent = Counters(), Counters("eth7")
    assert own.total() == Traffic(bytes_sent=5000, bytes_received=1000, packets_sent=40, packets_received=20)
    (tmp_path / "dev").write_text(DEVICES.format(12345678901))
    assert own.look() == Traffic(0, 12345677901, 0, 0)
    assert own.look() == Traffic(0, 0, 0, 0)
    assert absent.look() is None and absent.total() is None


def test_the_cost_of_headers_is_by_hand() -> None:
    assert wire_bytes(0, 0) == 0
    assert wire_bytes(1448, 0) == 1514 and wire_bytes(1449, 0) == 1449 + 2 * 66
    assert wire_bytes(0, 4 * 1448) == 2 * 66  # one acknowledgement for two frames
    assert wire_bytes(4 * 1448, 4 * 1448) == 4 * 1514 + 66  # of which half ride
    assert wire_bytes(8948, 0, mtu=9000) == 9014
    assert wire_bytes(0, 0, messages=3) == 3 * (48 + 2 * 114 + 66)
    for bad in ({"payload_sent": -1}, {"messages": -1}, {"mtu": 52}):
        with pytest.raises(ValueError, match="^wire_bytes"):
            wire_bytes(**{"payload_sent": 0, "payload_received": 0, **bad})


@pytest.mark.parametrize(
    ("ranks", "mtu", "payload", "messages", "measured"),
    [  # bytes that rank 0's interface sent per call of torch.distributed with gloo, mean over calls
        (2, 1500, 240_000, 2, 255_982),  # all_gather of 240 kB
        (4, 1500, 720_000, 6, 761_599),
        (2, 9000, 240_000, 2, 243_322),
        (4, 9000, 720_000, 6, 730_603),
        (2, 1500, 45_000_000, 0, 47_278_134),  # all_reduce of 45 MB
        (4, 1500, 67_500_000, 0, 70_730_458),
        (2, 9000, 45_000_000, 0, 45_386_508),
        (4, 9000, 67_500_000, 0, 68_250_526),
    ],
)
def test_the_cost_of_headers_is_that_of_measured_transfers(
    ranks: int, mtu: int, payload: int, messages: int, measured: int
) -> None:
    assert wire_bytes(payload, payload, messages, mtu) == pytest.approx(measured, rel=0.011)


def test_the_report_names_both_directions() -> None:
    line = Line(1, Traffic(25_000_000, 12_500_000, 3, 2), dropped=4, busiest_sent=1e8, busiest_received=5e7)
    document = line.document(4.0)
    assert (document["mbit_sent"], document["mbit_received"], document["busiest_mbit_sent"]) == (50.0, 25.0, 100.0)
    assert document["bytes_received"] == 12_500_000 and document["dropped"] == 4
    assert table([line], 4.0).row_count == 1


# ---- processes, without a lab ----------------------------------------------------------------------------------------


def started(*scripts: str) -> Ranks:
    ranks = Ranks()
    for script in scripts:
        ranks.start(["sh", "-c", script], dict(os.environ), None)
    return ranks


def test_the_first_rank_that_fails_gives_the_exit_code_and_the_others_are_ended() -> None:
    begun = time.monotonic()
    ranks = started("sleep 60", "sleep 0.1; exit 7", "sleep 0.3; exit 9")
    ended = ranks.wait(grace=0.4, every=10.0, tick=lambda: None)
    assert (ended.failed, ended.code) == (1, 7)
    assert [process.returncode for process in ranks.processes] == [-signal.SIGTERM, 7, 9]
    assert 0.4 < time.monotonic() - begun < 5.0


def test_ranks_that_end_well_are_waited_for_and_the_clock_ticks() -> None:
    ticks: list[float] = []
    ended = started("sleep 0.25", "true").wait(grace=0.0, every=0.1, tick=lambda: ticks.append(time.monotonic()))
    assert (ended.failed, ended.code) == (None, 0) and 1 <= len(ticks) <= 3
    assert started("kill -9 $$").wait(grace=0.0, every=1.0, tick=lambda: None).code == 128 + signal.SIGKILL


def test_one_that_will_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laconic.netlab.ranks.LAST", 0.2)
    ranks = started("trap '' TERM; while :; do sleep 0.05; done", "sleep 0.1; exit 1")
    assert ranks.wait(grace=0.1, every=9.0, tick=lambda: None).failed == 1
    assert ranks.processes[0].returncode == -signal.SIGKILL


def test_namespaces_of_dead_labs_are_known_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guardian, "NAMESPACES", str(tmp_path))
    mine = guardian.lab_name(os.getpid())
    assert mine == guardian.lab_name(os.getpid()) and mine.startswith(f"laconic-{os.getpid()}-")
    dead = subprocess.Popen(["true"])
    dead.wait()
    again = f"laconic-{os.getpid()}-1-hub"  # this process's number, given to another one before
    for name in (
        f"{mine}-hub",
        f"{mine}-0",
        f"laconic-{dead.pid}-5-11",
        again,
        "laconic-work",
        "other",
        "laconic-1-2-x",
    ):
        (tmp_path / name).touch()
    assert guardian.stale() == sorted([f"laconic-{dead.pid}-5-11", again])
    assert guardian.namespaces(mine) == [f"{mine}-0", f"{mine}-hub"]


# ---- real labs -------------------------------------------------------------------------------------------------------

EXCHANGE = """
import os, socket, sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from counters import Counters
rank, size = int(os.environ["RANK"]), 1_200_000
address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
if rank == 0:
    peer = socket.create_server(address).accept()[0]
else:
    for _ in range(200):
        try:
            peer = socket.create_connection(address)
            break
        except OSError:
            time.sleep(0.02)
def take(count):
    while count:
        got = len(peer.recv(min(count, 1 << 16)))
        assert got
        count -= got
links = Counters()
peer.sendall(b"a"); take(1)
begun = time.perf_counter()
sender = threading.Thread(target=peer.sendall, args=(bytes(size),))
sender.start(); take(size); sender.join()
seconds = time.perf_counter() - begun
peer.sendall(b"z"); take(1)
now = links.look()
Path(sys.argv[2], f"seen{rank}").write_text(f"{seconds} {now.bytes_sent} {now.bytes_received}")
print("said by rank", rank)
"""


@pytest.fixture(scope="module")
def labs() -> None:
    """Skips where this machine cannot make a lab."""
    try:
        with Lab(Layout(guardian.lab_name(os.getpid()), 1, Rate("100mbit"))):
            pass
    except Unavailable as lacking:
        pytest.skip(str(lacking))


@pytest.mark.usefixtures("labs")
def test_a_real_link_has_its_rate_in_both_directions_and_the_counters_agree(tmp_path: Path) -> None:
    layout = Layout(guardian.lab_name(os.getpid()), 2, Rate("100mbit"))
    words = [sys.executable, "-I", "-S", "-c", EXCHANGE, str(PACKAGE / "netlab"), str(tmp_path)]
    with Lab(layout, tmp_path) as lab:
        assert lab.execute(words, grace=5.0).code == 0
        kernel, dropped = lab.traffic(), lab.dropped()
    assert (tmp_path / "rank1.log").read_text() == "said by rank 1\n" and dropped == [0, 0]
    for rank in range(2):
        seconds, sent, received = map(float, (tmp_path / f"seen{rank}").read_text().split())
        assert sent == pytest.approx(wire_bytes(1_200_000, 1_200_000), rel=0.02)
        assert received == pytest.approx(sent, rel=0.02)
        rate = 8 * (received - 2 * 6250) / seconds  # less what the two buckets gave away at the start
        assert 0.2e8 < rate < 1.03e8  # less only where the machine is busy
        assert kernel[rank].bytes_sent == pytest.approx(sent, rel=0.01) and kernel[rank].bytes_sent >= sent
        assert lab.busiest[rank][0] > 0.0
    assert guardian.namespaces(layout.name) == []


COMMAND = """
import sys, types, typer
package = types.ModuleType("laconic")  # the lab alone: torch would take seconds
package.__path__ = [sys.argv.pop(1)]
sys.modules["laconic"] = package
from laconic.netlab.command import netlab
app = typer.Typer(pretty_exceptions_enable=False)
app.command(context_settings={"allow_interspersed_args": False})(netlab)
app()
"""


def laconic_netlab(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(PACKAGE), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.usefixtures("labs")
def test_the_command_reports_and_has_the_exit_code_of_the_rank_that_failed(tmp_path: Path) -> None:
    script = "echo out $RANK; test $RANK = 0 && sleep 60; echo why >&2; exit 5"
    lab = laconic_netlab("--rate", "none", "--grace", "0.1", "--logs", str(tmp_path / "logs"), "--json",
                         str(tmp_path / "found.json"), "sh", "-c", script)  # fmt: skip
    out, said = lab.communicate(timeout=30)
    assert lab.returncode == 5 and out == "out 0\n"
    assert "rank 1 failed with exit code 5" in said and "out 1\nwhy\n" in said
    document = json.loads((tmp_path / "found.json").read_text())
    assert (document["exit_code"], document["failed_rank"], document["rate"]) == (5, 1, "none")
    assert [one["rank"] for one in document["ranks"]] == [0, 1]
    assert guardian.namespaces(f"laconic-{lab.pid}") == []


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A lab of two ranks, each of which has started a process of its own in another session."""
    logs = str(tmp_path / "logs")
    lab = laconic_netlab("--rate", "100mbit", "--logs", logs, "sh", "-c", "setsid sleep 61 & echo started; wait")
    try:
        assert lab.stdout is not None and lab.stdout.readline() == "started\n"
        assert len(guardian.namespaces(f"laconic-{lab.pid}")) == 3
        deadline = time.monotonic() + 10.0
        while len(living_in(lab)) < 4 and time.monotonic() < deadline:  # the ranks, and what they started
            time.sleep(0.02)
        yield lab
    finally:
        lab.kill()
        lab.communicate()


def nothing_left(lab: subprocess.Popen[str]) -> bool:
    """Whether all its namespaces go in a while; with them go bridge and veths, and what ran in them is dead."""
    deadline = time.monotonic() + 10.0
    while guardian.namespaces(f"laconic-{lab.pid}") and time.monotonic() < deadline:
        time.sleep(0.02)
    links = subprocess.run(["ip", "link", "show"], capture_output=True, text=True, check=True).stdout
    return not guardian.namespaces(f"laconic-{lab.pid}") and "rank0" not in links and "br0" not in links


def living_in(lab: subprocess.Popen[str]) -> set[int]:
    inodes = {os.stat(f"{guardian.NAMESPACES}/{one}").st_ino for one in guardian.namespaces(f"laconic-{lab.pid}")}
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{pid}/ns/net").st_ino in inodes:
                found.add(int(pid))
        except OSError:
            continue
    return found


@pytest.mark.usefixtures("labs")
def test_a_lab_that_is_killed_leaves_nothing(running: subprocess.Popen[str]) -> None:
    inside = living_in(running)
    assert len(inside) >= 4
    running.kill()
    assert nothing_left(running)
    assert [pid for pid in inside if Path(f"/proc/{pid}/ns/net").exists()] == []


@pytest.mark.usefixtures("labs")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_lab_that_is_asked_to_end_does(running: subprocess.Popen[str], number: signal.Signals) -> None:
    running.send_signal(number)
    _, said = running.communicate(timeout=20)
    assert running.returncode == 128 + number and f"ended by {number.name}" in said
    assert nothing_left(running)


@pytest.mark.usefixtures("labs")
def test_what_is_left_when_the_guardian_is_killed_too_is_swept_later(running: subprocess.Popen[str]) -> None:
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    names = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    (keeper,) = [int(pid) for pid, words in names.items() if b"guardian.py" in words]
    os.kill(keeper, signal.SIGKILL)
    running.kill()
    running.wait()
    left = guardian.namespaces(f"laconic-{running.pid}")
    assert len(left) == 3 and set(left) <= set(guardian.stale())
    sweep = laconic_netlab("--clean")
    out, _ = sweep.communicate(timeout=20)
    assert sweep.returncode == 0 and all(name in out for name in left)
    assert nothing_left(running)
