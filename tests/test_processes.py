"""The same text over processes: the same bits and bytes as in the simulator, whoever hosts whom, and clear ends."""

from __future__ import annotations

import functools
import json
import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import jobs
import laconic
import worlds
from laconic.cli import app
from laconic.core.problem import Block
from laconic.core.registry import catalogue
from laconic.core.spec import parse
from laconic.runtime.local import Local

TEN = "logistic(data='breast_cancer', workers=10)"  # 1, 2, 3, 4 processes: 10 | 5 5 | 3 3 4 | 2 3 2 3 workers
THREE = "logistic(data='breast_cancer', workers=3)"  # 4 processes: none, 1, 1, 1
ITERATIONS = 12
METHODS = [
    "ef21(topk(k=3))", "diana(natural)", "marina(permk)", "proxskip(probability=0.5)", "clag(topk(k=3))",
    "svrp(probability=0.5)", "sliding", "fednl(topk(k=30))", "fednl_pp(topk(k=30), cohort=2)",
    "ef21_bc(topk(k=3), topk(k=10))", "gd(diana(randk(k=3)), estimator=lsvrg, step=0.1)",
]  # fmt: skip
LOGICAL = ("uplink", "downlink", "rounds", "messages")

# ---- the same bits and bytes ------------------------------------------------------------------------------------


@functools.cache
def in_one_process(problem: str, spec: str, iterations: int, data_dir: Path | None = None) -> dict[str, Any]:
    """What the simulator gives."""
    asked: Any = parse(problem)
    return jobs.solve(asked, spec, Local(asked.n), iterations, data_dir)


def agree(found: list[dict[str, Any]], expected: dict[str, Any], star: bool) -> None:
    """x and what is said are those of the simulator: on every rank, or in a star on the server."""
    assert expected["finite"]
    for rank in found[:1] if star else found:
        assert rank["x"] == expected["x"]
        assert {key: rank[key] for key in LOGICAL} == {key: expected[key] for key in LOGICAL}
    assert sum(rank["calls"] for rank in found) == expected["calls"]  # nobody computes twice
    for rank in found:
        assert rank["payload"] + rank["framing"] == rank["handed"]
        assert min(rank["payload"], rank["framing"]) >= 0


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("star", [False, True], ids=["replicated", "star"])
@pytest.mark.parametrize("spec", METHODS)
def test_any_number_of_processes_gives_the_bits_and_bytes_of_one(spec: str, star: bool, world: int) -> None:
    expected = in_one_process(TEN, spec, ITERATIONS)
    found = worlds.pool().results("solve", world, problem=TEN, spec=spec, iterations=ITERATIONS, star=star)
    agree(found, expected, star)
    blocks = Block.deal(10, world)
    for block, rank in zip(blocks, found, strict=True):
        if not star:
            assert rank["payload"] == sum(expected["uplink"][block.low : block.high])
        elif block.low:
            assert rank["payload"] == sum(rank["uplink"][block.low : block.high])


# what sums in flight rounds as the transport adds
SUMMED = ("powersgd", "alternating_powersgd", "direct_all_reduce")


def everything() -> list[str]:
    """A method for every mechanism, estimator, broadcast, schedule and other method there is, by its example."""
    found = [cls.example for cls in catalogue().of_kind("method") if not any(cls is type(parse(m)) for m in METHODS)]
    found += [f"gd({cls.example}, step=0.05)" for cls in catalogue().of_kind("mechanism")]
    found += [f"gd(step=0.05, estimator={cls.example})" for cls in catalogue().of_kind("estimator")]
    found += [f"gd(diana(natural), step=0.05, down={cls.example})" for cls in catalogue().of_kind("broadcast")]
    found += [f"gd(step=0.05, schedule={cls.example})" for cls in catalogue().of_kind("schedule")]
    return [spec for spec in found if spec not in METHODS]


@pytest.mark.parametrize("spec", everything())
@pytest.mark.parametrize(("world", "star"), [(1, False), (3, False), (3, True)], ids=["1", "3", "star of 3"])
def test_all_of_the_catalogue_gives_the_bits_and_bytes_of_one_process(spec: str, world: int, star: bool) -> None:
    """And where sums are in flight 1e-12 of its values."""
    expected = in_one_process(TEN, spec, 6)
    assert expected["rounds"] > 0  # else nobody would have to agree
    found = worlds.pool().results("solve", world, problem=TEN, spec=spec, iterations=6, star=star)
    if spec.startswith(tuple(f"gd({name}" for name in SUMMED)):
        for rank in found[:1] if star else found:
            assert rank["values"] == pytest.approx(expected["values"], rel=0.0, abs=1e-12)
            assert {key: rank[key] for key in LOGICAL} == {key: expected[key] for key in LOGICAL}
    else:
        agree(found, expected, star)


@pytest.mark.parametrize("star", [False, True], ids=["replicated", "star"])
@pytest.mark.parametrize("spec", METHODS)
def test_a_process_without_workers_takes_part(spec: str, star: bool) -> None:
    expected = in_one_process(THREE, spec, ITERATIONS)
    found = worlds.pool().results("solve", 4, problem=THREE, spec=spec, iterations=ITERATIONS, star=star)
    agree(found, expected, star)
    assert found[0]["calls"] == 0 or spec in ("sliding",)


@pytest.mark.parametrize("star", [False, True], ids=["replicated", "star"])
@pytest.mark.parametrize("spec", METHODS)
def test_messages_that_go_through_bytes_are_the_same(spec: str, star: bool) -> None:
    expected = in_one_process(TEN, spec, ITERATIONS)
    options = {"problem": TEN, "spec": spec, "iterations": ITERATIONS, "star": star}
    plain = worlds.pool().results("solve", 3, **options)
    encoded = worlds.pool().results("solve", 3, encoded=True, **options)
    agree(encoded, expected, star)
    assert [rank["handed"] for rank in encoded] == [rank["handed"] for rank in plain]


@pytest.mark.parametrize("spec", ["ef21(topk(k=6))", "diana(natural)", "marina(permk)", "proxskip"])
def test_a9a_over_processes(spec: str, data_dir: Path) -> None:
    problem = "logistic(data='a9a', l2=1e-3, workers=20)"
    expected = in_one_process(problem, spec, 8, data_dir)
    for world, options in ((2, {}), (3, {"encoded": True}), (4, {"star": True})):
        options = {"problem": problem, "spec": spec, "iterations": 8, "data_dir": str(data_dir), **options}
        agree(worlds.pool().results("solve", world, **options), expected, "star" in options)


# ---- whole mechanisms in one flight, sums, and sizes that nobody could know -------------------------------------

MATRIX = (9, 7)
TOGETHER = {
    "low rank": ("powersgd(rank=2)", MATRIX),
    "scalar": ("powersgd(rank=1)", ()),
    "sparse": ("ef21(topk(k=0.5))", (41,)),
    "lazy": ("clag(topk(k=3), trigger=0.5)", (5, 3)),
    "fixed": ("diana(natural, rate=0.5)", MATRIX),
}


@pytest.mark.parametrize("world", [2, 3, 4])
def test_mechanisms_that_share_flights_agree_with_the_simulator(world: int) -> None:
    expected = jobs.exchange(TOGETHER, Local(5), 6)
    for rank in worlds.pool().results("exchange", world, specs=TOGETHER, workers=5, steps=6, ordered=True):
        assert rank["x"] == expected["x"]
        assert {key: rank[key] for key in LOGICAL} == {key: expected[key] for key in LOGICAL}
        assert rank["payload"] + rank["framing"] == rank["handed"]
    assert expected["rounds"] == 2 * 7  # PowerSGD's second half is the only thing that waits


@pytest.mark.parametrize("world", [2, 3, 4])
def test_sums_in_flight_agree_within_rounding(world: int) -> None:
    specs = {name: TOGETHER[name] for name in ("low rank", "scalar")}
    expected = jobs.exchange(specs, Local(5), 6)
    found = worlds.pool().results("exchange", world, specs=specs, workers=5, steps=6)
    for rank in found:
        for name, values in expected["values"].items():
            assert rank["values"][name] == pytest.approx(values, rel=0.0, abs=1e-12)
        assert {key: rank[key] for key in LOGICAL} == {key: expected[key] for key in LOGICAL}
        # a sum is one vector per process and flight, however many workers live there
        assert rank["payload"] == rank["handed"] == expected["uplink"][0]
        assert rank["framing"] == 0


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("star", [False, True], ids=["replicated", "star"])
def test_messages_beyond_the_agreed_capacity_follow(star: bool, world: int) -> None:
    # about 12 kB per worker at the start, next to nothing while it is silent: the capacity grows and shrinks
    specs = {"large": ("ef21_bc(topk(k=0.5), topk(k=0.3))", (3000,)), "larger": ("ef21_bc(topk(k=0.5))", (1500,))}
    expected = jobs.exchange(specs, Local(5), 4)
    found = worlds.pool().results("exchange", world, specs=specs, workers=5, steps=4, star=star)
    for rank in found:  # the estimate of this mechanism is public
        assert rank["x"] == expected["x"]
        assert rank["payload"] + rank["framing"] == rank["handed"]
    assert found[0]["uplink"] == expected["uplink"] and found[0]["downlink"] == expected["downlink"]
    if not star:
        assert found[0]["operations"] == expected["rounds"] + 1  # more than agreed came the first time only


# ---- nobody computes for others ---------------------------------------------------------------------------------


@pytest.mark.parametrize("star", [False, True], ids=["replicated", "star"])
@pytest.mark.parametrize("spec", METHODS)
def test_a_rank_that_knows_its_own_rows_alone_gives_the_same(spec: str, star: bool) -> None:
    spec = spec.replace("k=30", "k=9").replace("k=10", "k=4")  # d is 7
    expected = jobs.solve(jobs.small_problem(7), spec, Local(7), ITERATIONS)
    # the replicated server of sliding knows f_1 on every process, as in a star on rank 0, which hosts worker 0 anyway
    options = {"workers": 7, "spec": spec, "iterations": ITERATIONS, "server_too": spec == "sliding", "star": star}
    found = worlds.pool().results("solve_own_rows", 3, **options)
    agree(found, expected, star)
    assert all(0.4 < rank["hidden"] < 0.8 for rank in found)


# ---- ends -------------------------------------------------------------------------------------------------------


def struck(rank: int, how: str, star: bool, limit: float) -> list[dict[str, Any]]:
    # a worker that has just replaced a dead one loads its kernels first, which must not look like a hung network
    worlds.pool().results("solve_own_rows", 3, workers=6, spec="ef21(topk(k=2))", iterations=1, server_too=False)
    return worlds.pool().run("struck", 3, rank=rank, flight=9, how=how, star=star, limit=limit)


@pytest.mark.parametrize("star", [False, True], ids=["replicated", "star"])
@pytest.mark.parametrize("rank", [1, 0])
def test_when_a_rank_dies_the_others_end_with_one_line(rank: int, star: bool) -> None:
    # in a star a rank that never talks to the dead one may have to wait for the timeout of 4 s
    replies = struck(rank, "dies", star, limit=4.0)
    for other, reply in enumerate(replies):
        if other == rank:
            assert reply == {"died": 3}
        else:
            found = reply["result"]
            assert found["error"] == "NetworkFailure"
            assert found["message"].startswith(f"rank {other} of 3: the network failed (")
            assert "another process has probably died" in found["message"] and "\n" not in found["message"]
            assert found["seconds"] < 6.0


@pytest.mark.parametrize("star", [False, True], ids=["replicated", "star"])
def test_when_a_rank_hangs_the_others_end_within_the_timeout(star: bool) -> None:
    replies = struck(1, "sleeps", star, limit=2.0)
    for other in (0, 2):
        found = replies[other]["result"]
        assert found["error"] == "NetworkFailure"
        assert found["seconds"] < 4.0  # the timeout is 2 s, and the sleep 6 s
    assert replies[1]["result"]["error"] == "NetworkFailure"  # when it wakes up, the others are gone


CORRUPTED = {
    "header": "rank 1 announces -1 bytes",
    "length": "rank 1 announces 281474976710656 bytes",
    "too_short": "rank 1 sent what cannot be right: 3 bytes came",
    "row_length": "rank 1 sent what cannot be right",
    "flag": "rank 1 sent what cannot be right: a flag is neither 0 nor 1",
    "body": "rank 1 sent what cannot be right",
    "longer": "rank 1 sent 68 bytes where 63 were due",
}


def test_every_corruption_is_tried() -> None:
    assert CORRUPTED.keys() == jobs.CORRUPTIONS.keys()


@pytest.mark.parametrize("how", sorted(CORRUPTED))
def test_bytes_that_cannot_be_are_refused_with_one_line(how: str) -> None:
    spec = "clag(topk(k=2), trigger=0.0)" if how == "flag" else "ef21(topk(k=2))"
    receiver, _ = worlds.pool().run("corrupted", 2, how=how, spec=spec)
    assert receiver["error"] == "Malformed"
    assert receiver["message"].startswith(CORRUPTED[how])
    assert "\n" not in receiver["message"]


# ---- killed and resumed -----------------------------------------------------------------------------------------

SEVERAL = ["ef21(topk(k=3))", "diana(natural)", "marina(permk)", "proxskip(probability=0.5)"]
METHOD_OPTIONS = [word for spec in SEVERAL for word in ("--method", spec)]
COMMAND = ["run", "--problem", TEN, "--rounds", "250", "--every", "20", *METHOD_OPTIONS]
TIMED = ("compute_seconds", "seconds")  # how columns begin that hold measured time


def kill_at_a_random_moment(folder: Path) -> None:
    """Two processes run, and SIGKILL ends both some time after the first checkpoint. They must have been running."""
    with ThreadPoolExecutor(1) as aside:
        running = aside.submit(
            worlds.pool().run, "run", 2, problem=TEN, methods=SEVERAL, rounds=250, every=20, out=str(folder)
        )
        while not (folder / "checkpoint.safetensors").exists() and not running.done():
            time.sleep(0.005)
        time.sleep(random.uniform(0.0, 0.4))
        worlds.pool().kill(2)
        assert running.result() == [{"died": -signal.SIGKILL}] * 2


def facts(runs: laconic.Runs) -> list[dict[str, Any]]:
    keys = ("method", "seed", "status", "x_sha256", "uplink_bytes", "downlink_bytes", "rounds", "gap")
    return [{key: result[key] for key in keys} for result in runs.results]


def untimed(runs: laconic.Runs) -> pd.DataFrame:
    return runs.trace[[name for name in runs.trace if not name.startswith(TIMED)]]


def test_a_run_killed_on_two_processes_goes_on_with_three_and_with_one(tmp_path: Path) -> None:
    whole = laconic.run(TEN, SEVERAL, rounds=250, every=20)
    killed, one = tmp_path / "three", tmp_path / "one"
    kill_at_a_random_moment(killed)
    shutil.copytree(killed, one)
    assert len(json.loads((killed / "run.json").read_text())["results"]) < len(SEVERAL)
    worlds.pool().results("command", 3, arguments=[*COMMAND, "--out", str(killed), "--resume"])
    done = CliRunner().invoke(app, [*COMMAND, "--out", str(one), "--resume"])
    assert done.exit_code == 0, done.output
    for folder in (killed, one):
        resumed = laconic.Runs.load(folder)
        assert facts(resumed) == facts(whole)
        pd.testing.assert_frame_equal(untimed(resumed), untimed(whole), check_exact=True)  # and so each row once
    assert len(whole.results) == len(SEVERAL)
    assert laconic.Runs.load(killed).document["machine"]["processes"] == 3
