"""The simulated network against values worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.runtime.network import Line, Network


def seconds(text: str, *flights: tuple[list[int] | None, list[int] | None]) -> float:
    n = next(len(side) for flight in flights for side in flight if side is not None)
    clock = Network.parse(text).clock(n)
    for up, down in flights:
        clock(None if up is None else np.array(up), None if down is None else np.array(down))
    return clock.seconds


@pytest.mark.parametrize(
    ("text", "up", "down", "latency", "server"),
    [
        ("10mbit,20ms", 1e7, 1e7, 0.02, None),
        ("1gbit, 50us", 1e9, 1e9, 5e-5, None),
        ("1.5kbit,2s,server=3Mbit", 1.5e3, 1.5e3, 2.0, 3e6),
        ("800bit,0ms", 800.0, 800.0, 0.0, None),
    ],
)
def test_units(text, up, down, latency, server):
    network = Network.parse(text)
    line = network.default
    assert line is not None and line == Line(up, down, line.latency) and line.latency == pytest.approx(latency)
    assert network.server == server


def test_a_flight_waits_for_its_slowest_worker():
    # 5000 bytes are 40,000 bits: 4 ms at 10 Mbit/s, and 20 ms of latency
    assert seconds("10mbit,20ms", ([1000, 5000, 0], None)) == pytest.approx(0.024)


def test_both_directions_of_a_flight_run_at_once_but_flights_follow_each_other():
    assert seconds("10mbit,20ms", ([1250, 0], [2500, 2500])) == pytest.approx(0.022)
    assert seconds("10mbit,20ms", ([1250, 0], None), (None, [2500, 2500])) == pytest.approx(0.021 + 0.022)


def test_whoever_is_silent_costs_nothing():
    assert seconds("10mbit,20ms", ([0, 0], None)) == 0.0
    assert seconds("10mbit,20ms", (None, [0, 0])) == 0.0


def test_the_servers_port_carries_the_sum():
    # each worker alone: 20 + 1 ms; the port: 20 ms + 10 * 10,000 bits / 1 Mbit/s = 120 ms
    assert seconds("10mbit,20ms,server=1mbit", ([1250] * 10, None)) == pytest.approx(0.12)
    assert seconds("10mbit,20ms,server=1gbit", ([1250] * 10, None)) == pytest.approx(0.021)


def test_unequal_links_from_csv(tmp_path):
    path = tmp_path / "links.csv"
    path.write_text("worker,up,down,latency\n0,1mbit,10mbit,100ms\n1-2,10mbit,10mbit,1ms\n*,1gbit,1gbit,0ms\n")
    network = Network.parse(str(path))
    assert network.name == "links.csv"
    clock = network.clock(5)
    clock(np.array([1250, 1250, 1250, 1250, 1250]), None)  # worker 0: 100 ms + 10 ms
    assert clock.seconds == pytest.approx(0.110)
    clock(np.array([0, 1250, 0, 125000, 0]), None)  # worker 1: 1 + 1 ms; worker 3: 1 ms
    assert clock.seconds == pytest.approx(0.112)
    clock(None, np.array([1250, 0, 0, 0, 0]))  # down: 100 ms + 1 ms
    assert clock.seconds == pytest.approx(0.213)


def test_unequal_links_from_toml(tmp_path):
    path = tmp_path / "links.toml"
    path.write_text(
        'server = "1mbit"\n[[links]]\nworker = 0\nrate = "1mbit"\nlatency = "10ms"\n'
        '[[links]]\nworker = "*"\nrate = "10mbit"\nlatency = "1ms"\n'
    )
    clock = Network.parse(str(path)).clock(3)
    clock(np.array([125, 125, 1250]), None)  # lines: 11, 1.1, 2 ms; port: 1 + 12 ms
    assert clock.seconds == pytest.approx(0.013)


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(0, 10**7), min_size=3, max_size=3), min_size=1, max_size=5), st.integers(1, 999))
def test_flights_and_peaks_reprice_equal_lines(flights, rate):
    network = Network.parse(f"{rate}kbit,3ms")
    clock = network.clock(3)
    for sizes in flights:
        clock(np.array(sizes), np.array(sizes[::-1]))
    loud = [max(sizes) for sizes in flights if max(sizes) > 0]
    assert clock.seconds == pytest.approx(float(network.price(np.array(len(loud)), np.array(sum(loud)))))


@settings(max_examples=50)
@given(st.lists(st.integers(0, 10**6), min_size=4, max_size=4), st.integers(0, 3))
def test_more_bytes_never_take_less_time(sizes, worker):
    more = list(sizes)
    more[worker] += 1000
    for text in ("10mbit,20ms", "10mbit,20ms,server=20mbit"):
        assert seconds(text, (more, None)) >= seconds(text, (sizes, None))


def test_the_clock_goes_on_from_a_checkpoint():
    network = Network.parse("10mbit,20ms")
    whole, first, second = network.clock(2), network.clock(2), network.clock(2)
    flights = [np.array([100 * i, 77 * i]) for i in range(1, 9)]
    for flight in flights:
        whole(flight, None)
    for flight in flights[:5]:
        first(flight, None)
    second.load(first.state())
    for flight in flights[5:]:
        second(flight, None)
    assert second.seconds == whole.seconds


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fast", "'10mbit,20ms'"),
        ("10mbit", "'10mbit,20ms'"),
        ("10mbit,20ms,30ms", "'10mbit,20ms'"),
        ("10,20ms", "rate must be a number and a unit (bit, kbit, mbit, gbit, tbit), not '10'"),
        ("10MB,20ms", "not '10MB'"),
        ("0mbit,20ms", "more than zero"),
        ("-1mbit,20ms", "not '-1mbit'"),
        ("10mbit,20", "latency must be a number and a unit"),
        ("10mbit,20ms,server=x", "server's rate"),
        ("nowhere.csv", "cannot read the file"),
    ],
)
def test_bad_networks_say_what_is_allowed(text, said):
    with pytest.raises(ValueError) as caught:
        Network.parse(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("worker,rate,latency\nx,1mbit,1ms\n", "line 2: worker must be"),
        ("worker,rate,latency\n0,1mbit,1ms\n0,1mbit,1ms\n", "line 3: worker 0 has a line already"),
        ("worker,rate\n0,1mbit\n", "latency must be"),
        ("worker,speed,latency\n0,1mbit,1ms\n", "no column 'speed'"),
        ("worker,rate,latency\n", "has no links"),
    ],
)
def test_bad_files_name_the_line(tmp_path, content, said):
    path = tmp_path / "links.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match="links.csv") as caught:
        Network.parse(str(path))
    assert said in str(caught.value)


def test_every_worker_needs_a_line(tmp_path):
    path = tmp_path / "links.csv"
    path.write_text("worker,rate,latency\n0-2,1mbit,1ms\n")
    with pytest.raises(ValueError, match="no line for worker 3"):
        Network.parse(str(path)).clock(5)
    with pytest.raises(ValueError, match="worker 1, but there are only 1"):
        Network.parse(str(path)).clock(1)


@pytest.mark.parametrize("text", ["10mbit,20ms", "1gbit,1ms,server=2gbit", "links.csv"])
def test_a_network_survives_run_json(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "links.csv").write_text("worker,up,down,latency\n0-1,1mbit,2mbit,0.3ms\n*,1gbit,1gbit,1us\n")
    network = Network.parse(text)
    assert Network.of_record(json.loads(json.dumps(network.record()))) == network


def test_only_equal_lines_can_be_repriced():
    with pytest.raises(ValueError, match="--network"):
        Network.parse("1mbit,1ms,server=1mbit").price(np.array(1), np.array(1))
