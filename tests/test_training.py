"""DDP's hook trains as the simulator does, and the order of its collectives is never a matter of timing."""

from __future__ import annotations

from typing import Any

import pytest

import worlds
from laconic.core.mechanism import Mechanism, Need
from laconic.core.registry import catalogue
from laconic.core.spec import parse
from training_jobs import MANY_BUCKETS

REFUSED = {  # the step, full gradients, a probe, rounds without some workers
    "ef14_inside", "marina", "vr_marina", "dasha_sync_mvr", "lag_wk", "local_importance", "server_importance", "partial"
}  # fmt: skip


def accepted() -> list[str]:
    """The examples of all mechanisms of the catalogue that a hook can serve."""
    found = [cls.example for cls in catalogue().of_kind("mechanism") if cls.name not in REFUSED]
    assert len(found) >= 8
    return found


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_ef21_trains_as_in_the_simulator_bit_for_bit(world: int, dtype: str) -> None:
    spec = "ef21(topk(k=0.1))"
    (expected,) = worlds.pool().results("simulate", 1, mechanism=spec, workers=world, steps=20, dtype=dtype)
    found = worlds.pool().results("train", world, mechanism=spec, steps=20, dtype=dtype, bucket_cap_mb=MANY_BUCKETS)
    for rank in found:
        assert rank["x"] == expected["x"]
        assert rank["uplink"] == expected["uplink"]
        assert rank["steps"] == 20
    assert expected["uplink"][0] > 0


@pytest.mark.parametrize(("steps", "tolerance"), [(5, 1e-13), (20, 1e-7)])
def test_powersgd_trains_as_in_the_simulator(steps: int, tolerance: float) -> None:
    # What is summed in flight is rounded in another way, and the gradient of the head, whose rows sum to zero, has rank
    # 2 exactly: orthonormalising what is left of it blows the rounding up, by 1e6 in 20 steps.
    spec = "powersgd(rank=2)"
    (expected,) = worlds.pool().results("simulate", 1, mechanism=spec, workers=3, steps=steps, dtype="float64")
    found = worlds.pool().results("train", 3, mechanism=spec, steps=steps, dtype="float64", bucket_cap_mb=MANY_BUCKETS)
    for rank in found:
        assert rank["x"] == found[0]["x"]  # what is summed in flight is the same on every rank
        assert rank["uplink"] == expected["uplink"]
        for name, values in expected["values"].items():
            assert rank["values"][name] == pytest.approx(values, rel=0.0, abs=tolerance)


@pytest.mark.parametrize("spec", accepted())
def test_every_mechanism_that_needs_nothing_more_trains_as_in_the_simulator(spec: str) -> None:
    (expected,) = worlds.pool().results("simulate", 1, mechanism=spec, workers=2, steps=6, dtype="float64")
    found = worlds.pool().results("train", 2, mechanism=spec, steps=6, dtype="float64", bucket_cap_mb=MANY_BUCKETS)
    assert [rank["uplink"] for rank in found] == [expected["uplink"]] * 2
    for rank in found:
        if "powersgd" in spec:
            for name, values in expected["values"].items():
                assert rank["values"][name] == pytest.approx(values, rel=0.0, abs=1e-13)
        else:
            assert rank["x"] == expected["x"]


def test_an_open_rate_is_settled_for_each_parameter() -> None:
    options = {"steps": 3, "dtype": "float64", "bucket_cap_mb": MANY_BUCKETS}
    settled = worlds.pool().results("train", 2, mechanism="diana(natural)", **options)
    by_hand = worlds.pool().results("train", 2, mechanism=f"diana(natural, rate={1 / (1 + 1 / 8)!r})", **options)
    assert settled[0]["x"] == by_hand[0]["x"]


def test_state_belongs_to_names_and_not_to_buckets() -> None:
    options = {"mechanism": "ef21(topk(k=0.1))", "steps": 4, "dtype": "float64"}
    many = worlds.pool().results("train", 2, bucket_cap_mb=MANY_BUCKETS, **options)[0]
    one = worlds.pool().results("train", 2, bucket_cap_mb=25, **options)[0]
    first, second = many["buckets"][:2]
    assert [names for names in first if names in second] == []  # DDP did deal the parameters anew
    assert len(second) >= 3
    assert many["memory"] == sorted(name for bucket in first for name in bucket)
    assert [len(step) for step in one["buckets"]] == [1] * 4
    assert many["x"] == one["x"]
    assert many["uplink"] == one["uplink"]


def test_a_bucket_is_one_collective_per_flight() -> None:
    options = {"steps": 4, "dtype": "float64", "bucket_cap_mb": MANY_BUCKETS}
    sums = worlds.pool().results("train", 2, mechanism="powersgd(rank=2)", **options)[0]
    begun = [flight for what, flight in sums["events"] if what == "begin"]
    assert len(sums["issued"]) == len(begun) == sums["rounds"]
    assert {operation for operation, _ in sums["issued"]} == {"all_reduce"}
    gathers = worlds.pool().results("train", 2, mechanism="direct(natural)", **options)[0]
    assert len(gathers["issued"]) == sum(map(len, gathers["buckets"]))


@pytest.mark.parametrize("spec", ["powersgd(rank=2)", "ef21(topk(k=0.1))"])
def test_delays_on_one_rank_never_change_the_order_of_collectives(spec: str) -> None:
    options: dict[str, Any] = {"mechanism": spec, "steps": 12, "dtype": "float64", "bucket_cap_mb": MANY_BUCKETS}
    punctual = worlds.pool().results("train", 2, **options)
    delayed = worlds.pool().results("train", 2, delayed=1, **options)
    assert delayed[1]["waited"] > 0.2 and delayed[0]["waited"] == 0.0
    expected = punctual[0]["events"]
    for rank in (*punctual, *delayed):
        assert rank["events"] == expected
        assert rank["issued"] == punctual[0]["issued"]
        assert rank["x"] == punctual[0]["x"]
    aloft = [sum(1 if what == "begin" else -1 for what, _ in expected[: i + 1]) for i in range(len(expected))]
    assert max(aloft) >= 3  # several buckets were in flight at once
    second = [flight for what, flight in expected if what == "begin" and flight[0].endswith("sum1")]
    assert (len(second) > 12) == ("powersgd" in spec)  # its buckets go up twice


def test_the_conductor_sends_off_in_the_order_of_the_texts() -> None:
    found = worlds.pool().results("conduct", 2, texts=[2, 1, 0, 3, 1], window=3)
    assert found[0]["events"] == found[1]["events"]
    assert found[0]["most"] == 3
    step = [
        ("begin", "t0", 0), ("begin", "t1", 0), ("begin", "t3", 0),  # t2 says nothing, so it takes no room
        ("finish", "t0", 0), ("begin", "t0", 1), ("finish", "t1", 0), ("begin", "t4", 0), ("finish", "t3", 0),
        ("begin", "t3", 1), ("finish", "t0", 1), ("finish", "t4", 0), ("finish", "t3", 1), ("begin", "t3", 2),
        ("finish", "t3", 2),
    ]  # fmt: skip
    assert found[0]["events"] == [[what, f"/{name}/sum{i}"] for what, name, i in step] * 2
    # after k flights of total <- 2 total + i + rank's mean: 0.5, then 2 * 0.5 + 1.5, then 2 * 2.5 + 2.5
    assert found[0]["values"] == [[2.5, 2.5], [0.5, 0.5], [0.0, 0.0], [7.5, 7.5], [0.5, 0.5]] * 2


def test_a_window_of_one_is_one_text_after_the_other() -> None:
    found = worlds.pool().results("conduct", 2, texts=[2, 1], window=1)
    assert [event[1][1:3] for event in found[0]["events"]] == ["t0", "t0", "t0", "t0", "t1", "t1"] * 2
    assert found[0]["most"] == 1


def test_a_rank_that_dies_ends_the_backward_pass_of_the_others() -> None:
    survivor, dead = worlds.pool().run("train_struck", 2, step=3)
    assert dead == {"died": 3}
    found = survivor["result"]
    assert len(found["says"]) == 2  # and what comes later fails at once
    assert all("NetworkFailure: rank 0 of 2: the network failed" in says for says in found["says"])
    assert found["seconds"] < 10.0
    assert found["untouched"]


def test_detaching_leaves_plain_averages_and_no_thread() -> None:
    for rank in worlds.pool().results("detach", 2, dtype="float64"):
        assert rank["error"] < 1e-15
        assert rank["threads"] == []
        assert rank["said"] == 0


def test_what_a_hook_cannot_give_is_refused_by_name_and_reason() -> None:
    (said,) = worlds.pool().results("refused", 1)
    expected = {
        "full gradients": ("marina(permk)", "needs full gradients", "DDP hook cannot give"),
        "stepsize": ("ef14_inside(topk(k=0.1))", "needs the stepsize"),
        "probe": ("probing", "needs a probe"),
        "no mechanism": ("topk(k=0.1)", "it is a compressor; give a mechanism"),
        "no theorem": ("diana(topk(k=0.1))", "give explicit rate"),
        "window": ("window=0", "window must be an integer >= 1"),
        "dtype": ("'scale'", "torch.float16", "must be float64, float32 or bfloat16"),
    }
    assert said.keys() == expected.keys()
    for name, pieces in expected.items():
        assert all(piece in said[name] for piece in pieces), said[name]
        assert "\n" not in said[name]


def test_the_refused_are_those_that_declare_it() -> None:
    given = {Need.UNBIASED, Need.CONSTANT_STEP}
    declared = {cls.name for cls in catalogue().of_kind("mechanism") if cls.needs - given or cls.takes_step}
    assert declared == REFUSED
    assert all(isinstance(parse(spec), Mechanism) for spec in accepted())
