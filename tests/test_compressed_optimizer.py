"""The wrapped optimizer averages as DDP does, and probes as the pseudo-code and the simulator do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import worlds
from laconic.training import DENSE, Compressed
from optimizer_jobs import Net, on_simulator, scam_by_hand, sgd

pytestmark = pytest.mark.filterwarnings("error")


def results(job: str, world: int, **arguments: Any) -> list[Any]:
    return worlds.pool().results(job, world, **arguments)


def close(found: list[float], expected: list[float]) -> bool:
    return found == pytest.approx(expected, rel=1e-11, abs=1e-12)


# ---- without closures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", [DENSE, "ef21_sgdm(topk(k=0.1) | natural)"])
def test_it_trains_as_ddp_does_bit_for_bit(mechanism: str) -> None:
    found = results("wrapped_as_ddp", 2, mechanism=mechanism, steps=5, momentum=0.9, weight_decay=0.01)
    for rank in found:
        assert rank["wrapped"] == rank["ddp"] == found[0]["ddp"]
        assert rank["evaluations"] == 5
        assert mechanism == DENSE or rank["up"][0] == rank["up"][1] > 0


def test_steps_inside_the_memory_are_subtracted_as_they_are() -> None:
    found = results("inside", 2, steps=6)
    assert found[0]["x"] == found[1]["x"]
    for rank in found:
        assert rank["apart"] < 1e-14
        assert rank["lr"] == pytest.approx(0.1 * 0.5**6)
        assert len(rank["gradients"]) == 10 and min(rank["gradients"].values()) > 0.0  # there to be looked at


@pytest.mark.parametrize("joined", [False, True])
def test_parameters_without_a_gradient(joined: bool) -> None:
    found = results("unused", 2, joined=joined)
    assert found[0]["x"] == found[1]["x"]
    for rank in found:
        assert rank["never"] == 0.0 and rank["grad"]  # weight decay has not touched it
        # lr (mean gradient + weight decay): rank 1's gradient is 1 in odd steps; until the first one nothing moves
        expected, bias = [0.0], 0.25
        for gradient in (0.5, 0.0, 0.5):
            expected.append(-0.1 * (gradient + 0.1 * bias))
            bias += expected[-1]
        assert rank["moved"] == pytest.approx(expected, abs=1e-15)
    said = " ".join(text for text, _ in found[0]["said"])
    assert "4 of 6 parameters have had no gradient on any process" in said
    assert "2 of 6 parameters have had no gradient on any process" in said
    assert "'now_and_then.weight' has no gradient on this process in some steps" in said


def test_a_grad_scaler_leaves_a_step_out_on_all_processes() -> None:
    found = results("scaled", 2)
    for rank in found:
        assert rank["left out True"] and rank["left out False"]
        assert rank["True"] == {**rank["False"], "scale": rank["True"]["scale"]}  # powers of two round nothing
        assert rank["True"]["memory"][1] == rank["True"]["memory"][2] != rank["True"]["memory"][3]
        assert rank["True"]["x"] == found[0]["True"]["x"]
    assert [rank["True"]["scale"] for rank in found] == [1024.0, 512.0]


def test_to_others_it_is_the_optimizer_inside() -> None:
    (found,) = results("outside", 1, steps=4)
    assert found["x"][0] == found["x"][1]
    assert found["rates"] and found["moved"] == 4
    assert found["called"] == ["before", "after"] * 4
    assert found["same"] and found["optimizer"] and found["defaults"]
    assert found["keys"] == ["laconic", "param_groups", "state"]


# ---- with closures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reweighted", [False, True])
def test_scam_with_importances_is_the_pseudo_code(reweighted: bool) -> None:
    compressor = "reweighted_impk(k=9)" if reweighted else "impk(k=9)"
    spec = f"local_importance(scam({compressor}), steps=2, every=3)"
    found = results("closures", 2, mechanism=spec, steps=7)
    expected = scam_by_hand(2, 7, k=9, search=2, every=3, reweighted=reweighted)
    for rank, by_hand in zip(found, expected, strict=True):
        assert close(rank["x"], by_hand["x"])
        assert close(rank["buffers"], by_hand["buffers"])  # probes leave running statistics alone
        assert rank["random"] == by_hand["random"]  # and torch's random state
        assert rank["evaluations"] == [7, 6, 0, 0]
        assert rank["probed"] == [2, 0, 0, 2, 0, 0, 2]
    assert found[0]["x"] == found[1]["x"] and found[0]["buffers"] != found[1]["buffers"]


@pytest.mark.parametrize(
    ("spec", "evaluations"),
    [
        ("vr_marina(randk(k=20), probability=0.3)", None),
        ("dasha_sync_mvr(randk(k=20), probability=0.3)", None),
        ("lag_wk(weight=0.5)", [8, 0, 0, 0]),
        ("server_importance(direct(reweighted_impk(k=9)), steps=2, every=3)", [8, 0, 0, 9]),
        ("local_importance(ef14(scaled_reweighted_impk(k=9)), steps=1, every=4)", [8, 2, 0, 0]),
    ],
)
def test_probes_give_what_the_simulator_gives(spec: str, evaluations: list[int] | None) -> None:
    found = results("closures", 2, mechanism=spec, steps=8)
    expected, ledger = on_simulator(spec, 2, 8)
    for i, (rank, simulated) in enumerate(zip(found, expected, strict=True)):
        assert close(rank["x"], simulated["x"])
        assert close(rank["buffers"], simulated["buffers"])
        assert rank["random"] == simulated["random"]
        flags = 2 * 8 * 8  # an all-reduce of one float64 per worker and step: whether all numbers were finite
        assert rank["up"] == ledger["uplink"][i] + flags
        if evaluations is None:  # the coin, shared by all: full gradients or one probe
            plain, probe, full, server = rank["evaluations"]
            assert (plain, probe + full, server) == (8, 8, 0) and 2 <= full <= 6
            assert rank["evaluations"] == found[0]["evaluations"]
        else:
            assert rank["evaluations"] == evaluations


def test_what_a_rule_is_about_is_not_joined() -> None:
    spec = "local_importance(direct(impk(k=1.0)))"  # all coordinates are kept: the plain mean, by two ways
    joined = results("closures", 2, mechanism=spec, steps=3)
    apart = results("closures", 2, mechanism=spec, steps=3, rules=DENSE)
    assert apart[0]["x"] == pytest.approx(joined[0]["x"], rel=1e-13)
    assert apart[0]["evaluations"] == joined[0]["evaluations"] == [3, 3, 0, 0]


@pytest.mark.parametrize(
    ("mechanism", "rules"),
    [
        ("ef21_sgdm(topk(k=0.1) | natural)", DENSE),
        ("local_importance(scam(reweighted_impk(k=9)), steps=1, every=3)", DENSE),
        ("vr_marina(randk(k=20), probability=0.3)", ""),
        ("marina(randk(k=0.5))", ""),
    ],
)
def test_a_resumed_run_ends_as_one_in_one_go(mechanism: str, rules: str) -> None:
    for rank in results("resumed", 2, mechanism=mechanism, rules=rules, steps=8, at=5):
        assert rank["x"][0] == rank["x"][1]
        assert rank["counts"][0] == rank["counts"][1]
        assert rank["up"][0] == rank["up"][1]


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_served_is_refused_by_name_and_reason() -> None:
    (said,) = results("wrapper_refuses", 1)
    expected = {
        "cohorts": ("partial(ef21", "needs rounds in which some workers take no part", "a wrapped optimizer cannot"),
        "probe in a rule": ("lag_wk(step=1.0) needs a probe", "a rule for single parameters cannot give"),
        "momentum": ("ef14_inside", "must be plain SGD, and it is SGD with momentum=0.9"),
        "adam": ("ef14_inside", "must be plain SGD, and it is Adam"),
        "no closure": ("local_importance", "give step(closure)"),
        "no full": ("give step(closure, full=...)",),
        "no full gradients": ("marina(permk) needs gradients over all local data; give step(full=...)",),
        "no server": ("give step(closure, server=...)",),
        "rates": ("the groups have [0.1, 0.3]; give trial=, or one learning rate",),
        "sparse": ("the gradient of 'weight' is sparse",),
        "strangers": ("10 of the optimizer's 10 parameters are not the model's",),
        "dtypes": ("is torch.float32", "is torch.float64", "in one dtype"),
        "ddp": ("model=DistributedDataParallel", "laconic.training.attach"),
        "lbfgs": ("optimizer=LBFGS", "calls closures itself"),
        "twice": ("optimizer=Compressed", "not wrapped yet"),
        "added": ("parameters cannot be added",),
        "plain checkpoint": ("the state of an optimizer alone; load it into optimizer.inner",),
        "another checkpoint": ("the checkpoint's policy is 'ef21",),
        "scaled closure": ("a GradScaler has looked at the gradients before",),
        "not finite": ("FloatingPointError: step 0: numbers are not finite in", "of worker 0"),
        "failing probe": ('KeyError: "the user\'s own"',),
        "no mechanism": ("it is a compressor; give a mechanism",),
    }
    assert said.keys() == expected.keys()
    for name, pieces in expected.items():
        assert all(piece in said[name] for piece in pieces), said[name]
        assert "\n" not in said[name]
        assert said[name].startswith(("ValueError: ", "FloatingPointError: ", "KeyError: "))


def test_without_a_process_group_it_says_how_to_make_one() -> None:
    model = Net(torch.float64)
    with pytest.raises(ValueError, match=r"not initialised; call init_process_group.*in a single process"):
        Compressed(sgd(model), model, DENSE)
