"""Telemetry says what the ledger says, wherever it is written; alarms ring for what is wrong and for nothing else."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import worlds
from laconic.training.alarms import Alarm, Alarmed, ErrorGrows, Fatal, NothingCompressed, ReplicasDrift, StepsSkipped
from laconic.training.fingerprint import fingerprint
from laconic.training.meter import Step
from laconic.training.outputs import Callback, JsonLines, Output, Summary, TensorBoard, Totals, read_steps
from laconic.training.policy import DENSE, Policy
from laconic.training.telemetry import PATIENCE, Telemetry
from laconic.training.warned import LaconicWarning

STEP = Step(0, 100, 400, 4000, 120, 0.02, 0.04, 0.004, 0.009, 0.5)
SPEC = "ef14(topk(k=0.01) | natural)"


class Fake:
    """An averager that says what it is told to."""

    def __init__(self, rank: int = 0, policy: Policy | None = None, **shapes: tuple[int, ...]) -> None:
        self.rank, self.world, self.sample_every = rank, 1, 0
        self.policy = policy or Policy(SPEC)
        self.shapes = shapes
        self.plans = {name: self.policy.plan(name, shape, 1) for name, shape in shapes.items()}
        self.listeners: list[Callable[[Step], None]] = []

    def wait(self) -> None:
        pass

    def hear(self, *steps: Step) -> None:
        for step in steps:
            for listener in self.listeners:
                listener(step)


def telemetry_of(fake: Fake, *parts: Any, **options: Any) -> Telemetry:
    source: Any = SimpleNamespace(averager=fake)
    return Telemetry(source, *parts, **options)


def numbered(count: int, start: int = 0, **changes: Any) -> list[Step]:
    return [replace(STEP, number=start + i, **changes) for i in range(count)]


# ---- totals and the line at the end ---------------------------------------------------------------------------------


def test_the_summary_has_exactly_the_numbers_of_the_steps() -> None:
    lines: list[str] = []
    fake = Fake()
    with telemetry_of(fake, Summary(say=lines.append)) as telemetry:
        fake.hear(
            replace(STEP, number=0, up=300_000, dense=60_000_000, compress=9.0, contraction=0.99, residual=3.0),
            replace(STEP, number=1, up=200_000, dense=60_000_000, compress=0.021, skipped=2),
            replace(STEP, number=2, up=220_000, dense=60_000_000, hidden=0.0, contraction=0.93, residual=2.0),
            replace(STEP, number=3, up=240_000, dense=60_000_000, compress=0.021, contraction=0.5, residual=9.0),
        )
        assert lines == []
    # hidden: 21 + 40 + 4 - 9 = 56 ms twice, 0 once, and 500 ms where compressing took 9 s: the median is 56 ms
    assert lines == [
        "laconic: 4 steps, 0.24 MB up per step (0.4% of dense float32), compress 21 ms, communicate 40 ms, decode 4 "
        "ms, of which 56 ms hidden and 9 ms waited for, contraction 0.93, 1 step skipped"
    ]
    totals = telemetry.totals
    assert (totals.steps, totals.up, totals.down, totals.dense, totals.sent) == (4, 960_000, 1600, 240_000_000, 480)
    assert (totals.residual, totals.exposed, totals.alarms) == (3.0, 0.009, {})
    assert fake.listeners == []
    telemetry.close()
    assert len(lines) == 1


@pytest.mark.parametrize(("up", "said"), [(812, "812 B"), (24_100, "24.1 kB"), (3_200_000_000, "3.2 GB")])
def test_sizes_have_fitting_units(up: int, said: str) -> None:
    fake = Fake()
    telemetry = telemetry_of(fake)
    fake.hear(replace(STEP, up=up))
    assert f"1 step, {said} up per step" in str(telemetry.totals)
    assert str(telemetry_of(Fake()).totals) == "laconic: no step was heard of"


def test_the_summary_is_said_on_the_first_process_alone() -> None:
    lines: list[str] = []
    with telemetry_of(Fake(rank=1), Summary(say=lines.append)):
        pass
    assert lines == []


def test_samples_are_asked_for_where_there_are_none() -> None:
    fake = Fake()
    telemetry_of(fake, sample_every=7)
    assert fake.sample_every == 7
    telemetry_of(fake, sample_every=3)
    assert fake.sample_every == 7


# ---- JSON lines -----------------------------------------------------------------------------------------------------


def test_lines_come_back_as_they_were(tmp_path: Path) -> None:
    path, fake = tmp_path / "steps.jsonl", Fake()
    steps = [
        replace(STEP, number=0, compress=0.1 + 0.2, residual=math.inf, norm=1e-300, contraction=math.nan),
        replace(STEP, number=1, up=2**40, skipped=1),
    ]
    with telemetry_of(fake, JsonLines(path), StepsSkipped(over=1)), pytest.warns(LaconicWarning, match="StepsSkipped"):
        fake.hear(*steps)
    table = read_steps(path)
    assert table.index.tolist() == [0, 1] and table.index.name == "step"
    assert table["up"].tolist() == [100, 2**40] and table["up"].dtype == "int64"
    assert table["compress"].tolist() == [0.1 + 0.2, 0.02]
    assert table["residual"][0] == math.inf and math.isnan(table["residual"][1]) and math.isnan(table["contraction"][0])
    assert table["norm"][0] == 1e-300
    assert table["ratio"].tolist() == [0.025, 2**40 / 4000]
    assert table["skipped"].tolist() == [0, 1]
    assert table["alarms"].tolist() == [(), ("StepsSkipped",)]
    strict = [
        json.loads(line, parse_constant=lambda _: pytest.fail("no JSON")) for line in path.read_text().splitlines()
    ]
    assert (strict[0]["residual"], strict[0]["contraction"], strict[1]["residual"]) == ("inf", "nan", None)


def test_a_resumed_run_neither_repeats_nor_loses_a_step(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    fake = Fake()
    with telemetry_of(fake, JsonLines(path)):
        fake.hear(*numbered(6, up=1))
    with path.open("ab") as file:
        file.write(b'{"step": 6, "up')  # killed here; the checkpoint is of the time before step 4
    assert read_steps(path).index.tolist() == [0, 1, 2, 3, 4, 5]
    fake = Fake()
    with (
        telemetry_of(fake, JsonLines(path)),
        pytest.warns(LaconicWarning, match="2 lines .* from step 4 on, made room"),
    ):
        fake.hear(*numbered(4, start=4, up=2))
    table = read_steps(path)
    assert table.index.tolist() == list(range(8))
    assert table["up"].tolist() == [1] * 4 + [2] * 4
    fake = Fake()
    with telemetry_of(fake, JsonLines(path)):  # right at the end: nothing to make room, nothing to say
        fake.hear(*numbered(1, start=8))
    assert read_steps(path).index.tolist() == list(range(9))


def test_a_file_that_is_cut_in_its_first_line_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_bytes(b'{"step": 0, "u')
    assert read_steps(path).empty
    fake = Fake()
    with telemetry_of(fake, JsonLines(path)):
        fake.hear(STEP)
    assert read_steps(path).index.tolist() == [0]


def test_other_files_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.jsonl"
    path.write_text('{"step": 3, "loss": 0.1}\n')
    with pytest.raises(ValueError, match="line 1 is no step of telemetry"):
        telemetry_of(Fake(), JsonLines(path))
    with pytest.raises(ValueError, match=r"read_steps\(.*\) : line 1 is no step"):
        read_steps(path)
    with pytest.raises(ValueError, match=r"JsonLines\('.*'\) : cannot be written \(No such file"):
        telemetry_of(Fake(), JsonLines(tmp_path / "no" / "steps.jsonl"))
    assert path.read_text() == '{"step": 3, "loss": 0.1}\n'


def test_who_writes_follows_from_the_path(tmp_path: Path) -> None:
    for rank in (0, 1):
        fake = Fake(rank=rank)
        with telemetry_of(fake, JsonLines(tmp_path / "one.jsonl"), JsonLines(tmp_path / "{rank}.jsonl")):
            fake.hear(STEP)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.jsonl", "1.jsonl", "one.jsonl"]
    assert len(read_steps(tmp_path / "one.jsonl")) == 1


def test_the_lines_of_a_killed_process_are_there(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    program = (
        "import os, signal, sys\n"
        "from laconic.training.outputs import JsonLines, Step\n"
        "lines = JsonLines(sys.argv[1])\n"
        "lines.open(0)\n"
        "for i in range(5):\n"
        "    lines.write(Step(i, 1, 1, 4, 1, 0.0, 0.0, 0.0, 0.0, 0.0), [])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert ended.returncode == -9
    assert read_steps(path).index.tolist() == [0, 1, 2, 3, 4]


# ---- other outputs --------------------------------------------------------------------------------------------------


def test_tensorboard_reads_back_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fake = Fake()
    with telemetry_of(fake, TensorBoard(tmp_path)):
        fake.hear(*numbered(3), replace(STEP, number=3, up=7, contraction=0.25))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("laconic/up")] == [(0, 100), (1, 100), (2, 100), (3, 7)]
    assert [(one.step, one.value) for one in events.Scalars("laconic/contraction")] == [(3, 0.25)]
    assert "laconic/residual" not in events.Tags()["scalars"]


def test_a_writer_of_the_users_stays_open() -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    said: list[Any] = []
    writer: Any = SimpleNamespace(add_scalar=lambda *what: said.append(what), flush=lambda: said.append("flush"))
    fake = Fake()
    with telemetry_of(fake, TensorBoard(writer)):
        fake.hear(STEP)
    assert ("laconic/up", 100, 0) in said and ("laconic/ratio", 0.025, 0) in said
    assert said[-1] == "flush"


def test_without_tensorboard_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"^TensorBoard : needs the package tensorboard; `pip install.*$"):
        TensorBoard("runs")


def test_an_output_that_fails_is_dropped_and_the_others_go_on() -> None:
    def fails(step: Step) -> None:
        raise OSError("disk full")

    heard: list[int] = []
    fake = Fake()
    with (
        telemetry_of(fake, Callback(fails), Callback(lambda step: heard.append(step.number))),
        pytest.warns(LaconicWarning, match=r"Callback failed at step 0 .*OSError: disk full") as caught,
    ):
        fake.hear(*numbered(3))
    assert heard == [0, 1, 2]
    assert len(caught) == 1


def test_what_is_no_part_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Telemetry\(str\) : it must be an output or an alarm"):
        telemetry_of(Fake(), "steps.jsonl")
    assert issubclass(JsonLines, Output)


# ---- alarms over steps ----------------------------------------------------------------------------------------------


def rung(alarm: Alarm, steps: Sequence[Step], fake: Fake | None = None) -> tuple[list[str], int, int | None]:
    """What an alarm says over steps, how often it rings, and the first step at which it does."""
    fake = fake or Fake()
    telemetry, first = telemetry_of(fake, alarm), None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in steps:
            fake.hear(step)
            if first is None and telemetry.totals.alarms:
                first = step.number
    return [str(one.message) for one in caught], telemetry.totals.alarms.get(type(alarm).__name__, 0), first


def test_nothing_compressed_names_the_rules() -> None:
    policy = Policy(SPEC, warm_up=((5, DENSE),))
    fake = Fake(policy=policy, bias=(10,), scale=(20,), small=(10, 10), weight=(100, 100))
    said, count, first = rung(NothingCompressed(over=4), numbered(20, up=4000), fake)
    assert (count, first) == (12, 8)  # steps 5 to 8 are the first four after the warm-up
    assert said == [
        "laconic: NothingCompressed: nothing is compressed: 4,000 bytes up per step where dense float32 takes 4,000 "
        f"(steps 5 to 8); 10,000 numbers (98.7%) by {policy.mechanism} (no rule); 100 numbers (0.987%) by "
        "Rule(direct_all_reduce for numbers=1024); 30 numbers (0.296%) by Rule(direct_all_reduce for dimensions=1)"
    ]
    assert rung(NothingCompressed(over=4), numbered(20, up=3999), fake)[1] == 0
    assert rung(NothingCompressed(over=4, below=0.5), numbered(20, up=2000), fake)[1] == 12
    assert rung(NothingCompressed(over=4), numbered(8, up=9999), fake)[1] == 0
    assert rung(NothingCompressed(over=4), numbered(20, up=4000), Fake(rank=1, policy=policy))[0] == []


def test_steps_that_are_all_skipped_ring() -> None:
    some = [*numbered(9, skipped=1), *numbered(1, start=9), *numbered(9, start=10, skipped=1)]
    assert rung(StepsSkipped(over=10), some)[1] == 0
    said, count, first = rung(StepsSkipped(over=10), numbered(12, start=3, skipped=1))
    assert (len(said), count, first) == (1, 3, 12)


def sampled(residuals: Sequence[float], contraction: float | None = 1.5, norm: float = 1.0) -> list[Step]:
    return [
        replace(STEP, number=i, residual=residual, contraction=contraction, norm=norm)
        for i, residual in enumerate(residuals)
    ]


def error_grows(steps: Sequence[Step], **options: Any) -> int | None:
    fake = Fake()
    fake.sample_every = 1
    watch = ErrorGrows(**options).watcher(fake)
    return next((step.number for step in steps if watch(step) is not None), None)


bands = st.lists(st.floats(1.0, 3.99), min_size=1, max_size=120)


@given(bands, st.floats(0.9, 1.0), st.floats(1e-3, 1e6), st.integers(1, 12), st.sampled_from([0.5, 1.0, 7.0, None]))
@settings(max_examples=150, deadline=None)
def test_an_error_that_stays_or_falls_never_rings(
    band: list[float], falls: float, size: float, window: int, contraction: float | None
) -> None:
    steps = sampled([size * x * falls**i for i, x in enumerate(band)], contraction)
    assert error_grows(steps, window=window, factor=4.0, most=1.0) is None


@given(st.floats(1.02, 3.0), st.floats(1.0, 100.0), st.integers(1, 12), st.floats(1.0, 10.0), st.floats(1.0, 2.0))
@settings(max_examples=150, deadline=None)
def test_an_error_that_diverges_rings_within_the_stated_samples(
    growth: float, start: float, window: int, factor: float, contraction: float
) -> None:
    # 1e-9: at the border itself, rounding decides
    stated = window * (1 + max(2, math.ceil(math.log(factor) / (window * math.log(growth)) + 1e-9)))
    steps = sampled([1.01 * start * growth**i for i in range(stated)], contraction)
    assert error_grows(steps, window=window, factor=factor) is not None


@given(st.integers(0, 10**6), st.integers(1, 30), st.sampled_from([0.0, 0.9, 1.0]))
@settings(max_examples=25, deadline=None)
def test_a_memory_that_fills_never_rings(seed: int, kept: int, alike: float) -> None:
    """EF14 with TopK: the residual grows far more than fourfold from its first value, and is sound."""
    generator = torch.Generator().manual_seed(seed)
    common, error, steps = torch.randn(300, generator=generator), torch.zeros(300), []
    for number in range(150):
        v = alike * common + (1.0 - alike) * torch.randn(300, generator=generator)
        x = error + v
        sent = torch.zeros_like(x)
        top = x.abs().topk(kept).indices
        sent[top] = x[top]
        error = x - sent
        residual, norm = float(error.norm()), float(v.norm())
        steps.append(
            replace(STEP, number=number, residual=residual, norm=norm, contraction=residual**2 / float(x.norm()) ** 2)
        )
    assert error_grows(steps) is None
    if alike == 1.0 and kept == 1:
        assert steps[-1].residual > 4.0 * steps[0].residual  # type: ignore[operator]


def test_feedback_without_contraction_rings_once_and_says_where() -> None:
    """RandK scaled to be unbiased, in EF14: ||x - C(x)||^2 = (d / k - 1) ||x||^2 in expectation, here 3 ||x||^2."""
    generator = torch.Generator().manual_seed(1)
    error, steps = torch.zeros(400), []
    for number in range(60):
        v = torch.randn(400, generator=generator)
        x = error + v
        chosen = torch.randperm(400, generator=generator)[:100]
        sent = torch.zeros_like(x)
        sent[chosen] = 4.0 * x[chosen]
        error = x - sent
        steps += sampled([float(error.norm())], float(error.norm() / x.norm()) ** 2, float(v.norm()))
        steps[-1] = replace(steps[-1], number=number)
    fake = Fake(rank=3)
    said, count, first = rung(ErrorGrows(), steps, fake)
    assert (len(said), count, first) == (1, 4, 29)
    assert "ErrorGrows: step 29, rank 3: what error feedback owes grows without bound" in said[0]


def test_a_dense_warm_up_and_unknown_contractions_do_not_ring() -> None:
    warm = sampled([0.0] * 50, contraction=None)
    fills = [replace(step, number=50 + i) for i, step in enumerate(sampled([10 - 9 * 0.9**i for i in range(100)], 0.9))]
    assert error_grows([*warm, *fills]) is None
    slowly = sampled([50.0 * 1.01**i for i in range(100)], contraction=1.5)  # less than fourfold, but from nothing
    assert error_grows(slowly) is None
    assert error_grows([*warm, *slowly]) is None
    assert error_grows(sampled([1.0 + i for i in range(100)], contraction=None)) is None
    assert error_grows(sampled([50.0 * (1 + i) for i in range(100)], contraction=None)) is not None


def test_alarms_refuse_what_they_cannot_use() -> None:
    with pytest.raises(ValueError, match=r"ErrorGrows : the averager takes no samples; give Telemetry\(sample_every"):
        telemetry_of(Fake(), ErrorGrows(), sample_every=0)
    with pytest.raises(ValueError, match=r"ErrorGrows\(factor=0\.5\) : factor must be a number >= 1"):
        ErrorGrows(factor=0.5)
    with pytest.raises(ValueError, match=r"NothingCompressed\(over=0\) : over must be"):
        NothingCompressed(over=0)
    with pytest.raises(ValueError, match=r"ReplicasDrift\(model\) : it has no parameters"):
        ReplicasDrift(nn.ReLU())


# ---- fingerprints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64]
)
@pytest.mark.parametrize("size", [0, 1, 3, 2049, 9001])
def test_fingerprints_are_of_bits(dtype: torch.dtype, size: int) -> None:
    x = (torch.randn(size, generator=torch.Generator().manual_seed(size)) * 9).to(dtype)
    assert fingerprint(x) == fingerprint(x.clone())
    assert fingerprint(torch.cat([x[:1], x])[1:]) == fingerprint(x)  # wherever it begins
    assert -(2**63) <= fingerprint(x) < 2**63
    for place in {0, size // 2, size - 1} if size else set():
        bits = x.clone()
        bits.view(torch.uint8)[place * x.element_size()] ^= 1
        assert fingerprint(bits) != fingerprint(x)


def test_fingerprints_see_order_and_signs() -> None:
    x = torch.randn(64, 64, 3, 3, generator=torch.Generator().manual_seed(0))
    found = {"x": fingerprint(x)}
    flat = x.flatten()
    for name, (i, j) in {"neighbours": (0, 1), "words": (0, 2), "rows": (0, 2048), "both": (5, 9000)}.items():
        swapped, signs = flat.clone(), flat.clone()
        swapped[[i, j]] = flat[[j, i]]
        signs[[i, j]] *= -1.0
        found |= {f"{name} exchanged": fingerprint(swapped), f"signs of {name}": fingerprint(signs)}
    found |= {"negated": fingerprint(-x), "zero": fingerprint(0.0 * x.abs()), "-0": fingerprint(-0.0 * x.abs())}
    assert len(set(found.values())) == len(found)
    assert fingerprint(x.to(memory_format=torch.channels_last)) != found["x"]  # the order of memory
    assert fingerprint(x[:, ::2]) == fingerprint(x[:, ::2].contiguous())
    assert fingerprint(x.requires_grad_()) == found["x"]


# ---- checks ---------------------------------------------------------------------------------------------------------


def judged(*rows: Sequence[int]) -> str | None:
    named = {f"w{i}": torch.zeros(1) for i in range(len(rows[0]))}
    return ReplicasDrift(named).judge(torch.tensor(rows), 7)


def test_drift_names_who_and_where() -> None:
    assert judged([1, 2, 3], [1, 2, 3]) is None
    assert judged([1, 2, 3], [1, 5, 4]) == (
        "replicas have drifted apart as of optimizer step 7: rank 1 differs from rank 0, first in 'w1', in 2 of 3 "
        "tensors"
    )
    majority = judged([9, 2, 3], [1, 2, 3], [1, 2, 3])
    assert majority is not None and "rank 0 differs from rank 1, first in 'w0', in 1 of 3 tensors" in majority
    several = judged([1, 2], [1, 3], [1, 2], [1, 4])
    assert several is not None and "ranks 1 and 3 differ from rank 0, first in 'w1'" in several


def test_one_process_drifts_from_nobody_and_can_be_ended() -> None:
    model = nn.Linear(3, 2)
    fake = Fake()
    telemetry = telemetry_of(fake, ReplicasDrift(model, every=1), Fatal(StepsSkipped(over=2)))
    telemetry.step()
    fake.hear(*numbered(2, skipped=1))
    telemetry.step()
    with pytest.raises(Alarmed, match=r"numbers were not finite in each of the last 2 steps"):
        telemetry.step()
    late = Fake()
    telemetry = telemetry_of(late, Fatal(StepsSkipped(over=1)))
    late.hear(*numbered(1, skipped=1))
    with pytest.raises(Alarmed):
        telemetry.close()
    assert late.listeners == []


def test_who_never_calls_is_told() -> None:
    fake = Fake()
    with (
        telemetry_of(fake, ReplicasDrift({"w": torch.zeros(1)})),
        pytest.warns(LaconicWarning, match=r"nobody calls Telemetry\.step\(\) or Telemetry\.follow") as caught,
    ):
        fake.hear(*numbered(3 * PATIENCE))
    assert len(caught) == 1


def test_following_an_optimizer_ends_with_the_telemetry() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    telemetry = telemetry_of(Fake(), ReplicasDrift({"w": parameter}, every=2))
    telemetry.follow(optimizer)
    calls: list[Tensor] = []
    check: Any = telemetry._checks[0][1]
    object.__setattr__(check, "numbers", lambda: calls.append(parameter) or torch.zeros(1, dtype=torch.int64))
    for _ in range(4):
        optimizer.step()
    telemetry.close()
    optimizer.step()
    assert len(calls) == 2  # at the calls 0 and 2; call 4 would be the next


# ---- processes ------------------------------------------------------------------------------------------------------


def test_a_healthy_run_has_the_bytes_of_the_ledger_and_no_alarm(tmp_path: Path) -> None:
    steps = 7
    found = worlds.pool().results("observed", 4, mechanism="ef21_sgdm(topk(k=0.05))", steps=steps, folder=str(tmp_path))
    for rank, said in enumerate(found):
        table = read_steps(tmp_path / f"steps-{rank}.jsonl")
        totals = said["totals"]
        assert table.index.tolist() == list(range(steps))
        assert (sum(table["up"]), sum(table["down"])) == (said["up"], said["down"])
        assert (totals["up"], totals["down"]) == (said["up"], said["down"])
        assert [step["up"] for step in said["heard"]] == table["up"].tolist()
        assert table["dense"].tolist() == [4 * said["numbers"]] * steps
        assert table["residual"].notna().tolist() == [i % 2 == 0 for i in range(steps)]
        assert 0.0 < totals["contraction"] < 1.0
        assert said["own"] == 8 * (1 + said["tensors"]) * 3  # three comparisons, at the calls 0, 3 and 6
        assert (said["warned"], totals["alarms"], said["listeners"]) == ([], {}, 0)
        assert len(said["lines"]) == (rank == 0)
    assert re.match(rf"laconic: {steps} steps, .* up per step .*, 0 steps skipped$", found[0]["lines"][0])
    assert len(read_steps(tmp_path / "first.jsonl")) == steps


@pytest.mark.parametrize("world", [2, 3])
def test_one_ulp_on_one_process_is_drift(world: int, tmp_path: Path) -> None:
    found = worlds.pool().results(
        "observed", world, mechanism="direct(natural)", steps=6, folder=str(tmp_path), changed="filter.weight"
    )
    assert found[0]["warned"] == [
        "laconic: ReplicasDrift: replicas have drifted apart as of optimizer step 3: "
        f"rank {world - 1} differs from rank 0, first in 'filter.weight', in 1 of {found[0]['tensors']} tensors"
    ]
    assert all(said["warned"] == [] for said in found[1:])
    assert all(said["totals"]["alarms"] == {"ReplicasDrift": 1} for said in found)
    # taken at call 3, compared at call 4, which the averager's thread may see with step 4 or 5
    alarms = read_steps(tmp_path / "steps-1.jsonl")["alarms"].tolist()
    assert alarms[:4] == [()] * 4 and sorted(alarms[4:]) == [(), ("ReplicasDrift",)]


def test_a_run_that_compresses_nothing_says_so(tmp_path: Path) -> None:
    found = worlds.pool().results("observed", 2, mechanism=DENSE, steps=5, folder=str(tmp_path))
    (said,) = found[0]["warned"]
    assert "nothing is compressed" in said and "direct_all_reduce (no rule)" in said
    assert found[1]["warned"] == []
    assert found[1]["totals"]["alarms"] == {"NothingCompressed": 3}


def test_what_is_fatal_on_one_process_ends_all_at_one_call() -> None:
    found = worlds.pool().results("fatal", 3, check=False)
    # rank 1's step 2 is found before call 2, which votes; call 3 raises
    assert [(said["calls"], said["said"]) for said in found] == [(3, "rank 1 rang at 2")] * 3
    assert [said["alarms"].get("Rings", 0) > 0 for said in found] == [False, True, False]
    checked = worlds.pool().results("fatal", 2, check=True)
    assert [said["calls"] for said in checked] == [1, 1]
    assert all("rank 1 differs from rank 0, first in 'w'" in said["said"] for said in checked)


def test_totals_are_plain_numbers() -> None:
    assert isinstance(telemetry_of(Fake()).totals, Totals)
