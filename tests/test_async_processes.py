"""Real asynchronous runs: replayed bit for bit, a worker who dies, bytes, and what goes wrong in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import jobs
import laconic
import worlds
from by_hand import start
from laconic.lab.asynchronous import asynchronous as asynchronously

TWO = "quadratic(d=7, workers=2, noise=0.8, mu=0.1)"
THREE = "logistic(data='breast_cancer', workers=3, l2=0.1)"
SIZE = 7 * 8  # bytes of a vector of TWO


def asynchronous(problem: str, spec: str, steps: int, world: int, **how: Any) -> list[dict[str, Any]]:
    return worlds.pool().run("asynchronous", world, problem=problem, spec=spec, steps=steps, **how)


def replayed(found: dict[str, Any], problem: str, wait: int = 1) -> Any:
    """The recorded order in the simulator."""
    order = tuple(tuple(pair) for pair in found["order"])
    return start(f"replayed_async(order={order}, step=0.05, wait={wait})", problem).go(len(order) // wait)


@pytest.mark.parametrize(
    ("spec", "wait"),
    [
        ("pure_async(step=0.05)", 1),
        ("random_async(step=0.05)", 1),
        ("shuffled_async(step=0.05)", 1),
        ("waiting_async(step=0.05, wait=2)", 2),
    ],
)
@pytest.mark.parametrize(("problem", "world"), [(TWO, 3), (THREE, 4)], ids=["3 processes", "4 processes"])
def test_the_recorded_order_gives_the_same_bits_in_the_simulator(
    problem: str, world: int, spec: str, wait: int
) -> None:
    replies = asynchronous(problem, spec, 60, world, slow=0.001)
    server, *workers = (reply["result"] for reply in replies)
    assert len(server["order"]) == 60 * wait and not server["lost"] and not server["said"]
    replay = replayed(server, problem, wait)
    assert jobs.sha(replay.x) == server["x"] and replay.x.flatten().tolist() == server["values"]
    # every model that went down came back as a gradient; those of the last jobs were not used
    assert sum(worker["jobs"] for worker in workers) == server["messages"][1]
    assert server["uplink"] == replay.runtime.ledger.uplink.tolist() and server["rounds"] == 60
    assert server["payload"] == sum(server["downlink"])
    # a byte in front of each model, and a word to each worker at the end
    size = server["payload"] // server["messages"][1]
    assert server["framing"] == server["messages"][1] + len(workers) * (1 + size)


def test_workers_speak_as_fast_as_they_are_and_in_turns_alike() -> None:
    pure = asynchronous(TWO, "pure_async(step=0.05)", 60, 3, slow=0.002)[0]["result"]  # one of them twice as slow
    counts = [sum(worker == i for worker, _ in pure["order"]) for i in (0, 1)]
    assert counts[0] > counts[1] > 0
    turns = asynchronous(TWO, "shuffled_async(step=0.05)", 60, 3, slow=0.001)[0]["result"]
    assert abs(sum(worker for worker, _ in turns["order"]) - 30) <= 2
    assert turns["uplink"] == [SIZE * sum(worker == i for worker, _ in turns["order"]) for i in (0, 1)]


def test_a_worker_dies_and_the_server_goes_on() -> None:
    server, first, died = asynchronous(TWO, "random_async(step=0.05)", 80, 3, slow=0.001, dies=1, after=5, needs=1)
    found = server["result"]
    (lost,) = found["lost"]
    assert died == {"died": 3} and first["result"]["jobs"] > 50 and lost[0] == 1
    assert found["said"] == [
        f"worker 1 died after {lost[1]} steps; the server goes on with 1 of 2 workers, without its function"
    ]
    assert len(found["order"]) == 80 and sum(worker == 1 for worker, _ in found["order"]) <= 5
    assert all(worker == 0 for worker, _ in found["order"][lost[1] :])
    assert jobs.sha(replayed(found, TWO).x) == found["x"]  # what it did until then is replayed too


def test_a_worker_dies_and_the_server_stops() -> None:
    server, first, died = asynchronous(TWO, "pure_async(step=0.05)", 80, 3, slow=0.001, dies=0, after=3)
    assert died["result"]["jobs"] > 0 and first == {"died": 3}  # the other one is told to stop
    assert server["result"]["error"] == "NetworkFailure"
    message = server["result"]["message"]
    assert message.startswith("worker 0 died after ") and "1 of 2 workers are left and 2 are needed" in message
    assert "\n" not in message and "needs=" in message


def test_a_gradient_that_is_none_is_refused() -> None:
    server, *workers = asynchronous(TWO, "pure_async(step=0.05)", 80, 3, dies=0, after=3, says=float("nan"))
    assert server["result"]["error"] == "FloatingPointError"
    assert server["result"]["message"].startswith("worker 0 sent a gradient that is not finite after ")
    assert all("jobs" in worker["result"] for worker in workers)  # all are told to stop


def test_the_recording_of_a_run_is_a_method(tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    server, *workers = worlds.pool().results(
        "recorded", 3, problem=TWO, spec="waiting_async(wait=2)", steps=30, out=str(out)
    )
    recorded = json.loads(out.read_text())
    assert recorded == server and workers == [{}, {}]
    runs = laconic.run(TWO, recorded["replay"], iterations=recorded["steps"])
    assert recorded["steps"] == 30 and runs.results[0]["x_sha256"] == recorded["x_sha256"]
    assert runs.results[0]["uplink_bytes_total"] == sum(recorded["uplink_bytes"]) and recorded["lost"] == []


def test_what_is_no_asynchronous_method_is_refused_before_anybody_waits() -> None:
    with pytest.raises(ValueError, match="gd is no asynchronous method; use pure_async"):
        asynchronously(TWO, "gd", 10)


def test_as_many_processes_as_workers_and_one() -> None:
    for reply in asynchronous(TWO, "pure_async(step=0.05)", 5, 2):
        found = reply.get("result", reply)
        assert found["error"] == "ValueError"
        assert found["message"] == "a server and 2 workers are 3 processes, and there are 2; start 3"
