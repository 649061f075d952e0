"""`laconic train` with local updates, with closures, with policies and predictions; what its records count."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import worlds
from laconic.cli import app
from laconic.netlab.counters import Traffic
from laconic.training.policy import DENSE, Policy
from laconic.training.recipes import launch, loop, networks
from laconic.training.recipes.baselines import Dense, TorchPowerSGD
from laconic.training.recipes.choice import exchange_of, policy_of
from laconic.training.recipes.compressed import Compressed, Wrapped
from laconic.training.recipes.image_tasks import Digits, ImageCourse
from laconic.training.recipes.local_methods import _Locally
from laconic.training.recipes.text_tasks import GPT2

ALL, SMALL = 9_930, 202  # numbers of the digits' network, and of its tensors that are small or have one dimension
PLAIN = {"momentum": 0.0}
IMPORTANCE = "local_importance(scam(impk(k=0.01)))"
METHODS = [
    ("local_sgd", {"sync_every": 3}, "ef14(topk(k=0.1))", {}),
    ("post_local_sgd", {"sync_every": 3, "local_start": 4}, None, {}),
    ("diloco", {"sync_every": 4, "fragments": 2, "delay": 2, "mixing": 0.5}, None, {}),
    ("proxskip", {"probability": 0.4}, None, PLAIN),
    ("scaffold", {"sync_every": 3}, "direct(natural)", PLAIN),
]


def lines(out: Path, name: str = "steps") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def train(out: Path, world: int = 2, exchange: str | None = None, steps: int = 12, **more: Any) -> list[Any]:
    return worlds.pool().results("recipe", world, exchange=exchange, out=str(out), steps=steps, **more)


# ---- local updates -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("local", "options", "mechanism", "task"), METHODS)
def test_local_updates_go_on_where_they_stopped_and_count_their_bytes(
    tmp_path: Path, local: str, options: dict[str, Any], mechanism: str | None, task: dict[str, Any]
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    given = {"local": local, "options": options, "exchange": mechanism, "task": task}
    expected = train(whole, **given)
    train(stopped, stop_after=9, **given)
    found = train(stopped, resume=True, **given)
    assert [rank["x"] for rank in found] == [rank["x"] for rank in expected]
    assert expected[0]["label"].startswith(f"{local}(")
    assert expected[0]["judged"] == expected[1]["judged"]
    for name in ("steps", "evaluations"):
        kept = {"step", "up", "down", "loss", "test_loss", "train_loss", "evaluations"}
        one, other = ([{key: line[key] for key in kept & line.keys()} for line in lines(out, name)]
                      for out in (whole, stopped))  # fmt: skip
        assert one == other
    steps = lines(whole)
    assert sum(line["up"] for line in steps) == expected[0]["up"] == expected[0]["ledger"] > 0
    assert lines(whole, "evaluations")[-1]["up"] == expected[0]["ledger"]
    if local == "diloco":  # exchanges leave after steps 2, 4, ..., are merged two steps later, and the last one at once
        assert [line["step"] + 1 for line in steps if line["up"]] == [4, 6, 8, 10, 12]
        assert json.loads((whole / "run.json").read_text())["judged_model"].startswith("the anchor")


def test_averages_of_each_step_are_dense_averages(tmp_path: Path) -> None:
    local = train(tmp_path / "local", local="local_sgd", options={"sync_every": 1}, steps=8)
    dense = train(tmp_path / "dense", exchange="dense", steps=8)
    assert local[0]["weights"] == pytest.approx(dense[0]["weights"], rel=1e-4, abs=1e-6)
    assert local[0]["weights"] == local[0]["judged"] == local[1]["weights"]
    flags = 2 * 4  # whether the numbers of each process are finite
    assert dense[0]["up"] == 8 * 4 * ALL and local[0]["up"] == 8 * (4 * ALL + flags)
    result = local[0]["result"]
    assert result["up_per_step_settled"] == 4 * ALL + flags and result["evaluations"] == 8


def test_an_evaluation_between_averages_is_about_the_mean_model(tmp_path: Path) -> None:
    found, seldom = (
        train(tmp_path / str(every), local="local_sgd", options={"sync_every": 100}, steps=3, every=every)
        for every in (1, 100)
    )
    assert found[0]["x"] == seldom[0]["x"]  # it leaves the models as they are
    assert found[0]["result"]["test_loss"] == found[0]["judged_loss"] != found[0]["own_loss"]
    assert found[0]["weights"] != found[1]["weights"] and found[0]["up"] == 0
    mean = [(one + other) / 2 for one, other in zip(found[0]["weights"], found[1]["weights"], strict=True)]
    assert found[0]["judged"] == pytest.approx(mean, rel=1e-6, abs=1e-8)


def test_nobody_waits_for_what_may_take_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, waited = _Locally.told, []

    def counted(joined: _Locally) -> dict[str, Any]:
        averager, aloft = joined.updates.averager, joined.updates.in_the_air
        with monkeypatch.context() as patched:
            patched.setattr(averager, "wait", lambda: waited.append(aloft) or type(averager).wait(averager))
            return told(joined)

    monkeypatch.setattr(_Locally, "told", counted)
    run(tmp_path, exchange_of(None, None, "diloco", options={"sync_every": 4, "delay": 2}), steps=9)
    assert waited == [0] * 6  # not after steps 4, 5 and 8, from which an exchange is in the air


# ---- closures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (2, 3)])
def test_importances_count_their_gradients_and_resume(tmp_path: Path, steps: int, every: int) -> None:
    spec = f"local_importance(scam(impk(k=0.01)), steps={steps}, every={every})"
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected = train(whole, exchange=spec, steps=7)
    counts = [1 + steps * (step % every == 0) for step in range(7)]
    assert [line["evaluations"] for line in lines(whole)] == counts
    assert lines(whole, "evaluations")[-1]["evaluations"] == expected[0]["result"]["evaluations"] == sum(counts)
    assert sum(line["up"] for line in lines(whole)) == expected[0]["up"] < 7 * 4 * ALL / 20
    train(stopped, exchange=spec, steps=7, stop_after=5)
    assert [rank["x"] for rank in train(stopped, exchange=spec, steps=7, resume=True)] == [
        rank["x"] for rank in expected
    ]
    assert [line["evaluations"] for line in lines(stopped)] == counts


def run(out: Path, exchange: Any, steps: int = 2, watch: Any = None, **options: Any) -> Any:
    """A run in this process alone."""
    with launch.world():
        found = loop.Run(Digits(batch=500, **options), exchange, loop.Plan(out, steps))
        found.train(*([watch] if watch else []))
    return found


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


@pytest.mark.parametrize(("spec", "evaluations"), [("marina(randk(k=0.5))", 3), ("vr_marina(randk(k=0.5))", 4)])
def test_a_full_gradient_is_that_of_the_epoch(tmp_path: Path, spec: str, evaluations: int) -> None:
    found = run(tmp_path, exchange_of(spec, None, None), steps=1, momentum=0.0, weight_decay=0.0)
    assert found.course.steps_per_epoch == 3 and lines(tmp_path)[0]["evaluations"] == evaluations
    task = Digits(batch=500)
    course, module = task.open(0, 0, 1), task.module(0)
    start = weights(module)
    sum(course.loss(module, step) for step in range(3)).backward()  # type: ignore[union-attr]
    gradient = torch.cat([parameter.grad.flatten() for parameter in module.parameters()]) / 3  # type: ignore[union-attr]
    if spec.startswith("vr"):  # tensors that travel dense have no probe: theirs is the minibatch's
        matrices = torch.cat([torch.full((p.numel(),), p.numel() > 1024) for p in module.parameters()])
        assert torch.allclose(weights(found.module)[matrices], (start - 0.1 * gradient)[matrices], atol=1e-6)
    else:
        assert torch.allclose(weights(found.module), start - 0.1 * gradient, atol=1e-6)


def test_around_the_optimizer_dense_is_dense(tmp_path: Path) -> None:
    one = run(tmp_path / "wrapped", Wrapped(Policy(DENSE)))
    other = run(tmp_path / "ddp", Dense())
    assert torch.equal(weights(one.module), weights(other.module))
    assert [line["loss"] for line in lines(tmp_path / "wrapped")] == [line["loss"] for line in lines(tmp_path / "ddp")]


def test_a_step_has_one_minibatch_however_often_it_is_asked_for() -> None:
    class Moved(Digits):
        augments = True

    task = Moved()
    course, module = task.open(3, 1, 2), task.module(0)
    assert isinstance(course, ImageCourse)
    with torch.no_grad():
        first, again, following = (float(course.loss(module, step)) for step in (5, 5, 6))
        other, zeros = (float(part.batch_loss(module, 5, 0)) for part in (course, task.open(3, 0, 2)))
    assert first == again and len({first, following, other}) == 3 and other == zeros


def test_in_bfloat16_products_are_narrow_and_nothing_else_is(tmp_path: Path) -> None:
    plain, narrow = (task.course(3, 0, 1) for task in (Digits(), Digits(bf16=True)))
    module = Digits().module(0)
    with torch.no_grad():
        one, other = float(plain.loss(module, 5)), float(narrow.loss(module, 5))
    assert one != other and other == pytest.approx(one, rel=2**-6)
    found = run(tmp_path, Compressed(Policy("ef14(topk(k=0.1))")), steps=2, bf16=True)
    momenta = {state["momentum_buffer"].dtype for state in found.optimizer.state.values()}  # the gradients' dtype
    assert momenta == {torch.float32} and found.identity()["bf16"] is True


# ---- policies, predictions, records ------------------------------------------------------------------------------


def test_policies_from_the_command_line_say_what_travels_how(tmp_path: Path) -> None:
    spec = "ef14(topk(k=0.01))"
    assert policy_of(spec) == Policy(spec)
    found = train(tmp_path, exchange=spec, steps=8, small="direct(natural)", warm_up_dense=3,
                  rules=[f"head.*={DENSE}"])  # fmt: skip
    assert f"{DENSE} for names='head.*'" in found[0]["label"] and f"first {DENSE} for 3 steps" in found[0]["label"]
    ups = [line["up"] for line in lines(tmp_path)]
    head, middle = 4 * (5_120 + 10), 4 * 4_608
    assert head + middle < ups[0] == ups[2] < 4 * ALL - 2 * (SMALL - 10)  # natural has 9 bits for 32
    assert head < ups[3] < head + 9 * 46 + 2 * SMALL  # 46 of 4,608 numbers
    result = found[0]["result"]
    assert result["up_per_step_settled"] == sorted(ups[5:])[1] < result["up_per_step"] == sum(ups) / 8
    counts = json.loads((tmp_path / "run.json").read_text())["parameters"]
    assert counts == {"all": ALL, "dense": 5_130, "compressed": ALL - 5_130}


def test_pytorchs_powersgd_has_one_bucket(tmp_path: Path) -> None:
    assert TorchPowerSGD(1).bucket_mb(networks.DigitsNet(), 0.001) * 2**20 >= 4 * ALL
    assert Dense().bucket_mb(networks.DigitsNet(), 0.001) == 0.001
    result = run(tmp_path, TorchPowerSGD(1), steps=5)._result({})
    assert result["up_per_step_settled"] == 4 * (25 + 176 + 522 + 58) < result["up_per_step"]


def test_predictions_stand_beside_what_was_measured(tmp_path: Path) -> None:
    for rank in train(tmp_path, exchange="ef14(topk(k=0.01))", steps=3, predict=True):
        result = rank["result"]
        assert result["predicted"] > 0 and result["measured"] == result["seconds_per_step"] > 0
    parts = json.loads((tmp_path / "run.json").read_text())["prediction"]
    assert parts["seconds"] == pytest.approx(parts["compute"] + parts["codec"] + parts["exposed"])
    assert Wrapped(Policy(IMPORTANCE)).candidate() is None is exchange_of(None, "none", None).candidate()
    assert exchange_of(None, None, "diloco", options={"sync_every": 9}).candidate() == "diloco-9"
    assert exchange_of(None, None, "diloco", options={"delay": 2}).candidate() is None
    done = CliRunner().invoke(
        app, ["train", "digits", "--steps", "2", "--batch", "500", "--predict", "--out", str(tmp_path / "alone")]
    )
    assert "--predict : there is one process, and nothing to communicate\n" in done.output
    assert json.loads((tmp_path / "alone" / "run.json").read_text())["result"]["predicted"] is None


class Interface:
    """Counters of a network on which steps send 7 bytes and evaluations 1,000."""

    def __init__(self) -> None:
        self.sent = 0

    def look(self) -> Traffic:
        sent, self.sent = self.sent, 0
        return Traffic(sent, 2 * sent, 1, 1)


def test_what_crosses_the_interface_in_a_step_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interface = Interface()
    monkeypatch.setattr(loop, "Counters", lambda: interface)

    def more(name: str, sent: int) -> None:
        original = getattr(ImageCourse, name)

        def counted(self: Any, *arguments: Any) -> Any:
            interface.sent += sent
            return original(self, *arguments)

        monkeypatch.setattr(ImageCourse, name, counted)

    more("batch_loss", 7)
    more("evaluate", 1000)
    result = run(tmp_path, Dense(), steps=7)._result({})
    assert [(line["wire_up"], line["wire_down"]) for line in lines(tmp_path)] == [(7, 14)] * 7
    assert (result["wire_up_per_step"], result["wire_down_per_step"]) == (7, 14)


@pytest.mark.parametrize("options", [("ef14(topk(k=0.01))", None), (IMPORTANCE, None), (None, "local_sgd")])
def test_a_run_that_fails_leaves_no_thread(tmp_path: Path, options: tuple[str | None, str | None]) -> None:
    def watch(step: int, steps: int, loss: float) -> None:
        assert any(thread.name == "laconic-conductor" for thread in threading.enumerate())
        raise RuntimeError("the user has had enough")

    mechanism, local = options
    with pytest.raises(RuntimeError, match="had enough"):
        run(tmp_path, exchange_of(mechanism, None, local), watch=watch)
    assert not any(thread.name == "laconic-conductor" for thread in threading.enumerate())


def test_images_are_judged_once_in_an_epoch_and_text_more_seldom() -> None:
    assert Digits().evaluate_every(1000, 46) == 46
    assert GPT2().evaluate_every(5000, 400) == 400 and GPT2().evaluate_every(300, 400) == 100


def test_mechanisms_go_where_they_can_be_served() -> None:
    for spec in (IMPORTANCE, "vr_marina(randk(k=0.1))", "ef14_inside(topk(k=0.1))", "marina(randk(k=0.1))"):
        assert isinstance(exchange_of(spec, None, None), Wrapped)
    assert isinstance(exchange_of("ef21_sgdm(topk(k=0.1))", None, None), Compressed)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--local fedavg", "give one of local_sgd, post_local_sgd, diloco, proxskip, scaffold"),
        ("--sync-every 4", "--sync-every : it is an option of local updates; give --local local_sgd or"),
        ("--local proxskip --sync-every 4", "--sync-every : proxskip has no such option; it has --probability"),
        ("--local proxskip --mechanism ef14(topk(k=0.1))", "--mechanism : proxskip has no such option"),
        ("--local local_sgd --delay 2", "--delay : local_sgd has no such option; it has --mechanism, --sync-every"),
        ("--local proxskip", r"momentum=0.9 mixes in those of earlier models; use momentum=0"),
        ("--local scaffold --sync-every 0 --momentum 0", "sync_every must be an integer >= 1"),
        ("--local post_local_sgd", "--local-start 1000 say"),
        ("--local diloco --sync-every 4 --delay 4", "--delay 4 : give an integer < 4"),
        ("--local diloco --mixing 1", "--mixing 1.0 .*: both must be >= 0 and < 1"),
        ("--local local_sgd --baseline dense", "give either --baseline, or --mechanism or --local, not both"),
        (f"--local local_sgd --mechanism {IMPORTANCE}", "needs a probe .*which --local local_sgd, .*cannot give"),
        ("--small direct(natural)", "--small : it goes with --mechanism"),
        ("--baseline dense --rule a=ef14(topk(k=0.1))", "--rule : it goes with --mechanism"),
        ("--mechanism ef14(topk(k=0.1)) --rule head", "--rule 'head' : give NAMES=SPEC"),
        ("--mechanism ef14(topk(k=0.1)) --warm-up-dense -1", "--warm-up-dense -1 : give an integer >= 0"),
        ("--mechanism ef14_inside(topk(k=0.1))", "the optimizer must be plain SGD, and it is SGD with momentum=0.9"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(arguments: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        CliRunner().invoke(app, ["train", "digits", *arguments.split()], catch_exceptions=False)
    assert "\n" not in str(caught.value)
