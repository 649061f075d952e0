"""Speed-up against the number of workers: limits, best numbers and a slide's claim, worked out by hand."""

from __future__ import annotations

import math

import pytest

from laconic.runtime.network import Network
from laconic.runtime.speedup import RESNET152, Gathered, Summed, Work, best, timings

WORK = Work(compute=8.0, nbytes=1_000_000)
BYTE = 1e-6  # seconds a byte at 8 Mbit/s
COMMUNICATION = {  # seconds of an exchange among p > 1 workers at 8 Mbit/s, 1 ms a message
    ("8mbit,1ms", Summed): lambda p, r: 2 * (0.001 + 1e6 / r * BYTE),
    ("8mbit,1ms,star,server=8mbit", Summed): lambda p, r: 2 * (0.001 + p * 1e6 / r * BYTE),
    ("8mbit,1ms,ring", Summed): lambda p, r: 2 * (p - 1) * (0.001 + 1e6 / r / p * BYTE),
    ("8mbit,1ms,tree", Summed): lambda p, r: 2 * math.ceil(math.log2(p)) * 0.001 + 2 * (p - 1) / p * 1e6 / r * BYTE,
    ("8mbit,1ms,ring,replicated", Gathered): lambda p, r: (p - 1) * (0.001 + 1e6 / r * BYTE),
    ("8mbit,1ms,tree,replicated", Gathered): lambda p, r: math.ceil(math.log2(p)) * 0.001 + (p - 1) * 1e6 / r * BYTE,
    ("8mbit,1ms", Gathered): lambda p, r: 2 * 0.001 + (1e6 / r + min(1e6, p * 1e6 / r)) * BYTE,
}


@pytest.mark.parametrize(("network", "exchange"), COMMUNICATION, ids=str)
@pytest.mark.parametrize("ratio", [1, 8, 100])
def test_a_step_takes_its_share_of_computing_and_its_communication(network, exchange, ratio):
    workers = (1, 2, 5, 8, 20)
    for p, one in zip(workers, timings(WORK, network, exchange(ratio), workers), strict=True):
        waiting = 0.0 if p == 1 else COMMUNICATION[network, exchange](p, ratio)
        assert one.total == pytest.approx(8.0 / p + waiting, rel=1e-4)  # pieces are whole bytes
        assert one.speedup == pytest.approx(8.0 / one.total) and one.efficiency == pytest.approx(one.speedup / p)
        assert one.speedup <= p


@pytest.mark.parametrize("ratio", [1, 4, 100])
def test_the_best_number_of_workers(ratio):
    beta = BYTE / ratio
    at_server = best(WORK, "8mbit,1ms,star,server=8mbit", Summed(ratio), most=128).workers
    assert at_server == pytest.approx(math.sqrt(8.0 / (2 * 1e6 * beta)), abs=1)
    on_ring = best(WORK, "8mbit,1ms,ring", Summed(ratio), most=128).workers
    assert on_ring == pytest.approx(math.sqrt((8.0 - 2 * 1e6 * beta) / 0.002), abs=2)


def test_compression_moves_the_best_number_at_a_server_and_only_the_floor_on_a_ring():
    at_server = [
        best(WORK, "8mbit,1ms,star,server=8mbit", Summed(ratio), most=128).workers for ratio in (4, 16, 64, 256)
    ]
    assert at_server == [4, 8, 16, 32]  # sqrt(8 s ratio / 2 s)
    dense, compressed = (best(WORK, "8mbit,1ms,ring", Summed(ratio), most=128) for ratio in (1, 100))
    assert compressed.workers < 1.2 * dense.workers and compressed.speedup > 5 * dense.speedup


@pytest.mark.parametrize("network", ["8mbit,1ms", "8mbit,1ms,ring", "8mbit,1ms,tree", "8mbit,0ms,tree"])
def test_full_parallelisation_is_out_of_reach(network):
    """However many workers there are, T is at least the time of the numbers on the wire."""
    found = timings(WORK, network, Summed(), [2**k for k in range(1, 13)])
    assert all(one.speedup < 8.0 / (2 * 1e6 * BYTE * (1 - 1 / one.workers)) for one in found)
    efficiency = [one.efficiency for one in found]
    assert efficiency == sorted(efficiency, reverse=True) and efficiency[-1] < 1e-2


def test_slow_lines_make_one_worker_the_best():
    assert best(Work(0.5, 1_000_000), "8mbit,1ms,ring", Summed(), most=64).workers == 1


# ---- 19 days, 25 minutes ------------------------------------------------------------------------------------


def test_the_claim_leaves_no_time_to_communicate():
    assert RESNET152.implied_speedup == pytest.approx(1094.4)  # 27,360 minutes / 25, on 1024 nodes
    assert RESNET152.perfect / 60 == pytest.approx(26.71875) and RESNET152.left == pytest.approx(-103.125)
    # 90 x 1,281,167 pictures in 19 days are 70 a second; 32 of them take 0.456 s
    assert RESNET152.step == pytest.approx(32 / (90 * 1_281_167 / (19 * 86_400)))
    with pytest.raises(ValueError, match="efficiency must be in"):
        RESNET152.needed_ratio("1gbit,1us,ring", RESNET152.perfect / RESNET152.claimed)


def test_what_95_percent_of_the_perfect_speed_needs():
    allowed = RESNET152.step / 0.95 - RESNET152.step
    assert RESNET152.allowed(0.95) == pytest.approx(allowed) and RESNET152.allowed(1.0) == 0.0
    vector = 8 * 4 * 60_192_808
    for kind, messages in (("ring", 2 * 1023), ("tree", 20)):
        wire = 2 * 1023 / 1024 * vector / 1e10
        ratio = wire / (allowed - messages * 1e-5)
        assert RESNET152.needed_ratio(f"10gbit,10us,{kind}", 0.95) == pytest.approx(ratio, rel=1e-3)
        whole = RESNET152.seconds(f"10gbit,10us,{kind}", Summed())
        assert whole == pytest.approx(RESNET152.perfect * (1 + (wire + messages * 1e-5) / RESNET152.step), rel=1e-3)
        # compressed that much, the training keeps 95%; and a line that many times as fast does the same
        for network, exchange in ((f"10gbit,10us,{kind}", Summed(ratio)), (f"{10 * ratio}gbit,10us,{kind}", Summed())):
            assert RESNET152.perfect / RESNET152.seconds(network, exchange) == pytest.approx(0.95, rel=1e-4)
    assert RESNET152.needed_ratio("10gbit,50us,ring", 0.95) == math.inf  # 2,046 messages of 50 µs alone are too slow
    assert RESNET152.needed_ratio("1000gbit,1us,ring", 0.95) == 1.0


def test_messages_are_whole_bytes():
    ring = Network.parse("8mbit,0ms,ring")
    assert Summed(3).seconds(ring, 2, 10) == pytest.approx(2 * 2 * BYTE)  # 4 bytes in 2 pieces
    assert Gathered(3).seconds(Network.parse("8mbit,0ms,ring,replicated"), 2, 10) == pytest.approx(4 * BYTE)
