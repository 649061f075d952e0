"""DDP's hook beside all that PyTorch offers: accumulation, clipping, scalers, compilation; checkpoints; bad input."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import worlds
from hook_jobs import WAYS

SIZES = {
    "head.weight": 60, "head.bias": 3, "scale": 1, "twice.weight": 400, "first.weight": 220, "first.bias": 20,
    "filter.weight": 12, "filter.bias": 4, "join.weight": 1440, "join.bias": 20,
}  # fmt: skip


def close(found: dict, expected: dict, tolerance: float) -> bool:
    return found.keys() == expected.keys() and all(
        values == pytest.approx(expected[name], rel=0.0, abs=tolerance) for name, values in found.items()
    )


@pytest.mark.parametrize("way", WAYS)
def test_the_identity_trains_as_ddp_does(way: str) -> None:
    options = {"way": way, "steps": 4, "dtype": "float64"}
    expected = worlds.pool().results("way", 4, mechanism=None, **options)
    found = worlds.pool().results("way", 4, mechanism="direct(identity)", **options)
    tolerance = 1e-6 if way == "autocast" else 1e-13  # its gradients differ by the order in which they are summed
    for rank in range(4):
        assert found[rank]["values"] == found[0]["values"]
        assert close(found[rank]["values"], expected[0]["values"], tolerance)


@pytest.mark.parametrize("way", WAYS)
def test_what_ef14_was_given_is_what_came_back_and_what_it_owes(way: str) -> None:
    found = worlds.pool().results("way", 4, way=way, mechanism="ef14(topk(k=0.1) | natural)", steps=4, dtype="float64")
    for rank in found:
        assert rank["values"] == found[0]["values"]
        assert len(rank["debts"]) == (16 if way == "branches" else 10)
        assert max(rank["debts"]) < 1e-13


@pytest.mark.parametrize("local", [False, True], ids=["hook", "local updates"])
@pytest.mark.parametrize("mechanism", ["ef14(topk(k=0.2) | natural)", "ef21_sgdm(int4(block=16))", "powersgd(rank=1)"])
def test_the_order_of_memory_changes_nothing(mechanism: str, local: bool) -> None:
    """Which positions are chosen, which matrix a filter is, and where randomness falls are matters of its shape."""
    found = worlds.pool().results("orders", 2, mechanism=mechanism, local=local, steps=6)
    one, other = found[0].values()
    assert close(one, other, 1e-12)
    assert found[0] == found[1]


def test_in_float32_the_identity_stays_with_ddp() -> None:
    options = {"way": "plain", "steps": 4, "dtype": "float32"}
    expected = worlds.pool().results("way", 2, mechanism=None, **options)
    found = worlds.pool().results("way", 2, mechanism="direct(identity)", **options)
    assert close(found[1]["values"], expected[0]["values"], 1e-6)


def test_memories_are_kept_in_units_without_the_scale() -> None:
    """Scales are powers of two, so not a bit differs; the step with the overflow changes no memory."""
    options = {"mechanism": "ef14(topk(k=0.1) | natural)", "steps": 6}
    scaled = worlds.pool().results("hook_scaled", 2, **options)
    unscaled = worlds.pool().results("hook_unscaled", 2, **options)
    assert scaled[0]["values"] == scaled[1]["values"] == unscaled[0]["values"]
    assert all(rank["untouched"] for rank in scaled)
    scales = scaled[0]["scales"]
    assert scales[3] == scales[2] / 2 and max(scales) > 2.0**10  # grown, and halved by the overflow
    assert scaled[1]["scales"] == scales


def test_a_step_with_nan_is_skipped_everywhere() -> None:
    for rank in worlds.pool().results("not_finite", 2, stop=False):
        assert rank["said"] == ""
        assert rank["zeros"] and rank["untouched"]
        assert rank["skipped"] == [0, 1]
        assert any("'twice.weight' of worker 1" in text for text in rank["notices"])


def test_or_stops_the_run_everywhere() -> None:
    for rank in worlds.pool().results("not_finite", 2, stop=True):
        assert "step 1: numbers are not finite in 'twice.weight' of worker 1" in rank["said"]
        assert rank["untouched"]


def test_rules_by_name_dimensions_and_size() -> None:
    found = worlds.pool().results("policy", 2)
    mechanisms = found[0]["mechanisms"]
    assert mechanisms == {
        name: "direct(natural)" if name.startswith("head") else
        "ef14(topk(k=10))" if name in ("twice.weight", "first.weight", "join.weight") else "direct_all_reduce"
        for name in SIZES
    }  # fmt: skip
    # a bucket's messages are one collective, the dense ones and the flags among them
    assert [operation for operation, _ in found[0]["issued"]] == ["all_gather"] * 3
    dense = 4 * sum(SIZES[name] for name, spec in mechanisms.items() if spec == "direct_all_reduce")
    natural = math.ceil(60 * 9 / 8) + math.ceil(3 * 9 / 8)
    flags = 4 * 2
    for rank in found:
        assert sum(rank["up"]) == rank["uplink"][0 if rank is found[0] else 1]
        for up in rank["up"]:
            topk = up - dense - natural - flags
            assert 3 * 10 * 4 < topk < 3 * (10 * 4 + 2 * 10)  # ten floats each, and their places in two bytes at most
    assert any("57 of 2,180 numbers" in text and "in 5 of 10 tensors" in text for text in found[0]["notices"])


def test_a_warm_up_is_dense_then_has_a_larger_k() -> None:
    for rank in worlds.pool().results("warm_up", 2, steps=7):
        warm, plain = rank["warm"], rank["plain"]
        assert close(warm["values"], plain["values"], 1e-14)
        up = warm["up"]
        assert up[0] == up[1] == 8 * sum(SIZES.values()) + 16
        assert all(8 * 0.5 * 2180 < size < 8 * 0.65 * 2180 for size in up[2:4])
        assert all(8 * 0.02 * 2180 < size < 8 * 0.035 * 2180 for size in up[4:])


@pytest.mark.parametrize(
    "mechanism",
    ["ef14(topk(k=0.1) | natural)", "ef21_sgdm(topk(k=0.1))", "powersgd(rank=2)", "ef14(power_iteration(rank=1))",
     "diana(natural)"],
)  # fmt: skip
@pytest.mark.parametrize("whole", [False, True])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(mechanism: str, whole: bool) -> None:
    for rank in worlds.pool().results("resume", 2, mechanism=mechanism, at=3, steps=6, whole=whole):
        assert rank["resumed"] == rank["straight"]


@pytest.mark.parametrize("worlds_of", [(4, 2), (2, 3), (3, 1)])
@pytest.mark.parametrize("mechanism", ["ef14(topk(k=0.1))", "ef21_sgdm(topk(k=0.1))", "powersgd(rank=2)"])
def test_another_number_of_processes_owes_what_was_owed(
    mechanism: str, worlds_of: tuple[int, int], tmp_path: Path
) -> None:
    before, after = worlds_of
    path = str(tmp_path / "whole.pt")
    saved = worlds.pool().results("save_whole", before, mechanism=mechanism, steps=3, path=path)
    loaded = worlds.pool().results("load_whole", after, mechanism=mechanism, path=path, steps=2)
    assert any(max(map(abs, values), default=0.0) > 0 for values in saved[0]["means"].values())
    for rank in loaded:
        assert rank["steps"] == 3
        assert close(rank["means"], saved[0]["means"], 1e-15)
        assert rank["values"] == loaded[0]["values"]


def test_bad_input_gets_one_line() -> None:
    pieces = {
        "second": ("a mechanism attached already", "call detach(model) first"),
        "bare": ("attach(model=Net)", "must be a DistributedDataParallel"),
        "sparse": ("'0' (Embedding) gives sparse gradients", "sparse=False"),
        "taken": ("another communication hook already",),
        "debts": ("what ef14(topk(k=0.1)) keeps would be lost when ef21(topk(k=3)) follows",),
        "format": ("a state of format 99",),
        "part": ("this is the part of rank", "give its own part, or merge() of all parts"),
        "world": ("this is the part of rank 2 of 3",),
        "seed": ("the checkpoint's seed is 7 and this run's is 0",),
        "shape": ("of another model; 'scale' is (2,) in it and () here",),
        "merge": ("give those of all ranks, each once",),
        "mechanism": ("the checkpoint's policy is 'ef14(topk(k=0.1));", "this run's is 'ef21_sgdm(topk(k=0.1));"),
        "model": ("of another model; 'either.bias' is only in this model",),
    }
    for said in worlds.pool().results("bad_input", 2):
        assert said.keys() == pieces.keys()
        for name, expected in pieces.items():
            assert all(piece in said[name] for piece in expected), (name, said[name])
            assert "\n" not in said[name]


@pytest.mark.parametrize("what", ["policy", "seed"])
def test_processes_that_were_given_different_things_find_out_at_once(what: str) -> None:
    for said in worlds.pool().results("differ", 3, timeout=20.0, what=what):
        assert f"ranks [1] were given another {what} than rank 0" in said


def test_a_steps_record_says_what_was_owed_sent_and_spent() -> None:
    steps = 5
    for place, rank in enumerate(worlds.pool().results("measured", 2, steps=steps)):
        records = rank["records"]
        assert [record["number"] for record in records] == list(range(steps))
        assert sum(record["up"] for record in records) == rank["uplink"][place]
        assert sum(record["sent"] for record in records) <= rank["sent"]  # a look at the specs came before them
        for record, owed in zip(records, rank["owed"], strict=True):
            assert record["dense"] == 4 * 2180
            assert min(record["compress"], record["communicate"], record["decode"], record["exposed"]) > 0.0
            if record["number"] % 2:
                assert record["residual"] is record["contraction"] is record["norm"] is None
                continue
            assert record["residual"] == pytest.approx(owed, rel=1e-12)
            assert 0.0 < record["contraction"] <= 0.9
        assert rank["again"] == ""
        assert any("ef21(topk(k=0.1)) : with stochastic gradients" in text for text in rank["notices"])
