"""Sweeps: every run of a stack has the bits and the bytes of the run alone; what cannot be stacked is noticed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import numpy as np
import pytest
import torch

import by_hand
import laconic
from laconic.core.problem import Block
from laconic.core.registry import catalogue
from laconic.core.spec import example, parse
from laconic.core.state import Server, Worker
from laconic.lab import trace
from laconic.lab.plan import Limits
from laconic.lab.sweep import COLUMNS, Field, Recording, sweep
from laconic.runtime.local import Local
from laconic.runtime.stack import Stack, Unstackable, chosen, stacked
from laconic.runtime.sweep import Sweep, SweepOracles

QUADRATIC = "quadratic(d=13, workers=5, noise=0.5, mu=0.05)"
LOGISTIC = "logistic(l2=1e-2, workers=4)"
STEPS = (0.1, 0.03, 0.5, 0.011, 3.0)


class Lockstep:
    """A sweep and the same runs alone, side by side."""

    def __init__(self, spec: Any, problem: str, steps: tuple[float, ...] = STEPS, seed: int = 3) -> None:
        self.problem = by_hand.problem_of(problem)
        setting = by_hand.setting_of(self.problem)
        method: Any = by_hand.method_of(spec, self.problem)
        self.methods = [dataclasses.replace(method, step=step).settled(setting) for step in steps]
        self.courses = [by_hand.Course(one, self.problem, Local(self.problem.n, seed=seed)) for one in self.methods]
        self.sweep = Sweep(self.problem.n, seed=seed, runs=len(steps))
        self.whole, self.iteration = self.problem.host(Block.whole(self.problem.n)), 0
        self._stack()
        self.sweep.link.begin(0)
        self.state = self.sweep.drive(self.method.init(self.oracles, self.sweep.link))

    def _stack(self) -> None:
        self.method, self.oracles = stacked(self.methods), SweepOracles(self.whole, len(self.methods))

    def go(self, iterations: int) -> None:
        for _ in range(iterations):
            self.iteration += 1
            self.sweep.link.begin(self.iteration)
            self.state = self.sweep.drive(self.method.iterate(self.state, self.oracles, self.sweep.link))
            for course in self.courses:
                course.go()
            self.check()

    def keep(self, *runs: int) -> None:
        self.state = self.sweep.keep(self.state, np.array(runs))
        self.methods, self.courses = [self.methods[r] for r in runs], [self.courses[r] for r in runs]
        self._stack()

    def check(self) -> None:
        x: Any = self.method.point(self.state)
        for run, course in enumerate(self.courses):
            ledger = course.runtime.ledger
            assert by_hand.equal(x.data[run], course.x), (self.iteration, run)
            np.testing.assert_array_equal(self.sweep.uplink[:, run], ledger.uplink)
            np.testing.assert_array_equal(self.sweep.downlink[:, run], ledger.downlink)
            assert self.sweep.rounds == ledger.rounds


def exact(spec: Any, problem: str = QUADRATIC, iterations: int = 5) -> Lockstep:
    both = Lockstep(spec, problem)
    both.check()
    both.go(iterations)
    both.keep(4, 0, 2)
    both.go(iterations)
    both.keep(1)
    both.go(2)
    return both


def stepped(kind: str) -> list[str]:
    """Examples of entries of a kind that run with an explicit step."""
    return [example(cls) for cls in catalogue().of_kind(kind)]


# ---- the contract ------------------------------------------------------------------------------------------------

MECHANISMS = [
    "direct(natural)", "ef14(topk(k=2))", "ef14_inside(topk(k=2))", "ef21(topk(k=2))", "ef21_sgdm(topk(k=2), eta=0.1)",
    "diana(natural)", "marina(permk)", "marina(randk(k=3), probability=0.3)", "ef21_bc(topk(k=2), topk(k=4))",
]  # fmt: skip


@pytest.mark.parametrize("spec", MECHANISMS)
def test_mechanisms_have_the_bits_of_single_runs(spec):
    exact(f"gd({spec}, step=0.1)")


@pytest.mark.parametrize("spec", stepped("compressor"))
def test_every_compressor_has_the_bits_of_single_runs(spec):
    exact(f"gd(ef21({spec}), step=0.1)", iterations=3)


@pytest.mark.parametrize("spec", ["natural", "topk(k=2)", "permk", "qsgd", "rank(rank=1)", "bernoulli(p=0.3)"])
@pytest.mark.parametrize("mechanism", ["direct", "ef14", "ef21"])
def test_mechanisms_times_compressors(mechanism, spec):
    exact(f"gd({mechanism}({spec}), step=0.1)", iterations=3)


@pytest.mark.parametrize("estimator", ["sgd(batch=3)", "lsvrg(batch=2)"])
@pytest.mark.parametrize("mechanism", ["ef21(topk(k=20))", "diana(natural)"])
def test_estimators_on_data(mechanism, estimator):
    exact(f"gd({mechanism}, step=0.1, estimator={estimator})", LOGISTIC)


@pytest.mark.parametrize(
    "spec",
    [
        "nesterov(ef21(topk(k=2)), step=0.1, momentum=0.5)",
        "adam(ef21(topk(k=2)), step=0.1)",
        "gd(ef21(topk(k=2)), step=0.1, schedule=decreasing)",
        "proxskip(step=0.1)",
    ],
)
def test_rules_and_schedules(spec):
    exact(spec)


def test_other_problems():
    exact("gd(ef21(natural), step=0.1)", "counterexample")
    exact("gd(ef14(topk(k=3)), step=0.1)", "ridge(l2=1e-2, workers=4)")


def test_every_entry_is_exact_or_unstackable():
    # what others add: it need not be stackable, but must never be stacked wrongly
    could = set()
    for kind in ("mechanism", "method", "estimator", "broadcast", "schedule"):
        for spec in stepped(kind):
            whole = {"estimator": f"gd(ef21(topk(k=2)), estimator={spec}, step=0.1)",
                     "broadcast": f"gd(ef21(topk(k=2)), down={spec}, step=0.1)",
                     "schedule": f"gd(ef21(topk(k=2)), schedule={spec}, step=0.1)"}.get(kind, spec)  # fmt: skip
            try:
                both = Lockstep(whole, QUADRATIC, (0.1, 0.02))
                both.go(2)
            except AssertionError:
                raise
            except Exception:  # noqa: S112 (any refusal makes the caller run them one by one)
                continue
            could.add(spec)
    assert {"ef21(topk(k=0.05))", "diana(natural)", "marina(permk)", "full", "exact", "constant"} <= could


def test_numbers_other_than_the_step_may_differ_too():
    problem = by_hand.problem_of(QUADRATIC)
    specs = [f"gd(ef21_sgdm(topk(k=2), eta={eta}), step={step})" for eta, step in ((0.1, 0.2), (0.7, 0.1), (1.0, 0.3))]
    methods = [by_hand.method_of(spec, problem) for spec in specs]
    found, why = sweep(Field.of(problem), methods, 0, Limits.make(20, None, None, None), 5)
    assert why == ""
    for spec, one in zip(specs, found, strict=True):
        same(one, laconic.run(QUADRATIC, spec, rounds=20, every=5, network=()))


# ---- curves ------------------------------------------------------------------------------------------------------


def same(found: Recording, runs: laconic.Runs) -> None:
    """A recording is the trace of a run, bit for bit."""
    for name in COLUMNS:
        np.testing.assert_array_equal(found[name], np.asarray(runs.trace[name], dtype=float), err_msg=name)
    assert found.status == runs.results[0]["status"]


LIMITS = [
    dict(rounds=60, until=1e-2), dict(budget=700.0), dict(iterations=25), dict(rounds=40, budget=500.0),
]  # fmt: skip


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("spec", ["gd(ef21(topk(k=2)))", "gd(marina(permk))", "gd(diana(natural))"])
def test_curves_are_those_of_laconic_run(spec, limits):
    field = Field.of(by_hand.problem_of(QUADRATIC))
    method: Any = by_hand.method_of(spec, field.problem)
    multiples = (1.0, 4.0, 16.0, 64.0, 4000.0)
    methods = [dataclasses.replace(method, step=m * method.step).settled(field.setting) for m in multiples]
    cut = Limits.make(**{"rounds": None, "iterations": None, "until": None, "budget": None, **limits})
    found, why = sweep(field, methods, 2, cut, 3)
    assert why == "" and found[-1].status == trace.DIVERGED and len({one.status for one in found}) > 1
    for one, single in zip(found, methods, strict=True):
        same(one, laconic.run(QUADRATIC, single, seeds=[2], every=3, network=(), **limits))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the single run
def test_overflow_between_two_evaluations_is_noticed_at_once():
    steps, limits = (0.1, 1e150, 1e40), Limits.make(30, None, None, None)
    field, spec = Field.of(by_hand.problem_of(QUADRATIC)), "gd(ef21(topk(k=2)), step={})"
    found, why = sweep(field, [by_hand.method_of(spec.format(s), field.problem) for s in steps], 0, limits, 1000)
    assert why == "" and [one.status for one in found] == [trace.DONE, trace.DIVERGED, trace.DIVERGED]
    for one, step in zip(found, steps, strict=True):
        same(one, laconic.run(QUADRATIC, spec.format(step), rounds=30, every=1000, network=()))


@pytest.mark.parametrize("problem", [LOGISTIC, "logistic(l2=1e-2, workers=4, nonconvex=0.1)", "counterexample"])
def test_curves_on_other_problems(problem):
    found, why = together(problem, "gd(ef21(natural), step=1.0)", (0.1, 1.0, 1e4))
    assert why == ""
    for one, step in zip(found, (0.1, 1.0, 1e4), strict=True):
        same(one, laconic.run(problem, f"gd(ef21(natural), step={step})", rounds=12, network=()))


def together(problem: str, spec: str, steps: tuple[float, ...], seed: int = 0) -> tuple[list[Recording], str]:
    field, method = Field.of(by_hand.problem_of(problem)), cast(Any, parse(spec))
    methods = [dataclasses.replace(method, step=s).settled(field.setting) for s in steps]
    return sweep(field, methods, seed, Limits.make(12, None, None, None), 1)


@pytest.mark.parametrize("spec", ["gd(clag(topk(k=2)), step=0.1)", "gd(powersgd(rank=1), step=0.1)"])
def test_what_cannot_be_stacked_is_run_alone_and_says_why(spec):
    problem = "quadratic(d=12, workers=4, noise=0.5, mu=0.05)"
    found, why = together(problem, spec, (0.05, 0.1))
    assert why != "" and "\n" not in why
    for one, step in zip(found, (0.05, 0.1), strict=True):
        same(one, laconic.run(problem, spec.replace("0.1", str(step)), rounds=12, network=()))


def test_wide_stacks_are_cut(monkeypatch):
    monkeypatch.setattr("laconic.lab.sweep.WIDEST", 2 * 13 * 5)
    assert Field.of(by_hand.problem_of(QUADRATIC)).widest == 2
    found, _ = together(QUADRATIC, "gd(ef21(topk(k=2)), step=0.1)", (0.1, 0.2, 0.3))
    monkeypatch.undo()
    again, _ = together(QUADRATIC, "gd(ef21(topk(k=2)), step=0.1)", (0.1, 0.2, 0.3))
    assert [one.columns for one in found] == [one.columns for one in again]


@pytest.mark.parametrize(
    ("spec", "random"),
    [
        ("gd(ef21(topk(k=2)), step=0.1)", False), ("gd(step=0.1)", False), ("gd(ef21(randk(k=2)), step=0.1)", True),
        ("gd(ef21(topk(k=2)), step=0.1, estimator=sgd(batch=2))", True), ("gd(direct(natural), step=0.1)", True),
        ("gd(marina(identity, probability=0.5), step=0.1)", True),
    ],
)  # fmt: skip
def test_a_sweep_knows_whether_the_seed_matters(spec, random):
    problem = LOGISTIC if "sgd" in spec else QUADRATIC
    found = {seed: together(problem, spec, (0.1, 0.2), seed)[0] for seed in (0, 1)}
    assert [one.random for one in found[0]] == [random, random]
    assert (found[0][1].columns == found[1][1].columns) is not random


# ---- everything that a text may say --------------------------------------------------------------------------------


async def says_everything(link: Any, x: Any, v: Any) -> Any:
    """Shared and private cohorts, a text among some workers, messages to some, sums in flight."""
    x = await link.broadcast(x, parse("natural"), to=link.sample(3))
    some = link.bernoulli(0.6)
    sent = await link.uplink(parse("topk(k=2)"), v[some.rows], some)
    sent.own.add_to(v, scale=-0.5)
    sent.mean.add_to(x, scale=3.0)
    brave = link.volunteers(link.coins(torch.tensor([0.9, 0.1, 0.5, 0.5, 0.5], dtype=torch.float64)))
    sent = await link.scope("private").uplink(
        parse("bernoulli(p=0.5)"), v[brave.rows], brave, minus=x.expand(v.shape)[brave.rows]
    )
    x = x + sent.mean.dense() * sent.count
    among = link.sample(4)
    inner = link.scope("inner").among(among)
    sent = await inner.uplink(parse("randk(k=3)"), v[among.rows], plus=v[among.rows])
    part = v[among.rows].clone()
    sent.own.add_to(part)
    v[among.rows] = part
    packet = link.compress(parse("natural"), v)
    other, one = await laconic.core.flight.together(
        link.uplink(packet), link.scope("b").uplink(link.again(packet, 2.0 * v))
    )
    return x + other.mean.dense() - one.mean.dense() + await link.all_reduce(v + other.own.dense())


def test_everything_a_text_may_say():
    v, x, n, runs = (
        torch.sin(torch.arange(90.0, dtype=torch.float64)).reshape(5, 3, 6),
        torch.ones(6, dtype=torch.float64),
        5,
        3,
    )
    xs = torch.stack([x * (run + 1) for run in range(runs)])
    wide = Sweep(n, seed=4, runs=runs)
    wide.link.begin(2)
    found = wide.drive(says_everything(wide.link, Stack(xs.clone(), 0), Stack(v.clone(), 1)))
    for run in range(runs):
        alone = Local(n, seed=4)
        alone.links[0].begin(2)
        (single,) = alone.drive(says_everything(alone.links[0], xs[run].clone(), v[:, run].clone()))
        assert by_hand.equal(found.data[run], single)
        np.testing.assert_array_equal(wide.uplink[:, run], alone.ledger.uplink)
        np.testing.assert_array_equal(wide.downlink[:, run], alone.ledger.downlink)
    assert wide.rounds == alone.ledger.rounds == 5 and len(np.unique(wide.uplink)) > 3


# ---- stacked values ----------------------------------------------------------------------------------------------


def workers(dtype: torch.dtype = torch.float64) -> Stack:
    """Three workers, two runs, four coordinates."""
    values = torch.arange(24, dtype=dtype).reshape(3, 2, 4)
    return Stack(torch.sin(values), 1)


def server(dtype: torch.dtype = torch.float64) -> Stack:
    return Stack(torch.cos(torch.arange(8, dtype=dtype).reshape(2, 4)), 0)


def runs_of(stack: Stack) -> list[torch.Tensor]:
    return list(stack.data.unbind(stack.axis))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "formula",
    [
        lambda v, x, s, w: v - x, lambda v, x, s, w: x * s + v, lambda v, x, s, w: v * s, lambda v, x, s, w: x - s * x,
        lambda v, x, s, w: x / s, lambda v, x, s, w: (1.0 - s) * v + 0.3 * x, lambda v, x, s, w: v * w,
        lambda v, x, s, w: w * v - v, lambda v, x, s, w: -v / (abs(x).sqrt() + 1e-8), lambda v, x, s, w: 2.0 / x - 1,
        lambda v, x, s, w: torch.where(v > x, v, x), lambda v, x, s, w: torch.maximum(v, x) * torch.sign(v),
        lambda v, x, s, w: torch.zeros_like(v) + x, lambda v, x, s, w: v.new_zeros(v.shape[1:]) + s * x,
        lambda v, x, s, w: x.expand(v.shape).clone().add_(v), lambda v, x, s, w: v[torch.tensor([2, 0])] - x,
        lambda v, x, s, w: x.clamp(-0.5, 0.5), lambda v, x, s, w: 3 - v, lambda v, x, s, w: 0.7 / v + (0.7 / s) * x,
        lambda v, x, s, w: (s * 0.3 - 1.1 / s + s / 0.9 - (-s)) * v,
    ],
)  # fmt: skip
def test_each_run_of_a_stack_is_what_it_is_alone(formula, dtype):
    v, x, numbers = workers(dtype), server(dtype), [3.1, 1.0 / 3.0]
    w = torch.tensor([[0.3], [0.7], [1.9]], dtype=dtype)  # a weight per worker, the same in all runs
    together_ = formula(v, x, Stack.numbers(numbers), w)
    for run, s in enumerate(numbers):
        alone = formula(runs_of(v)[run].clone(), runs_of(x)[run].clone(), s, w)
        assert by_hand.equal(runs_of(together_)[run], alone)
        assert together_.shape == alone.shape and together_.dtype == alone.dtype == dtype


@pytest.mark.parametrize(
    "mixes",
    [
        lambda v, x, s: float(x), lambda v, x, s: bool(x > 0), lambda v, x, s: x.norm(), lambda v, x, s: x.sum(),
        lambda v, x, s: torch.linalg.norm(x), lambda v, x, s: v @ v, lambda v, x, s: x**2, lambda v, x, s: math.sqrt(s),
        lambda v, x, s: v.reshape(3, -1), lambda v, x, s: x[0], lambda v, x, s: v[:, 0], lambda v, x, s: list(x),
        lambda v, x, s: torch.zeros(4, dtype=torch.float64).add_(x), lambda v, x, s: x.add_(v),
        lambda v, x, s: v.numpy(),
        lambda v, x, s: torch.zeros(4, dtype=torch.float64) * s, lambda v, x, s: torch.stack([x, x]),
        lambda v, x, s: torch.zeros(2, 3, 4) + v, lambda v, x, s: torch.where(torch.ones(4) > 0, x, x),
        lambda v, x, s: laconic.core.rows.norm2(v), lambda v, x, s: laconic.core.rows.mean(v),
        lambda v, x, s: torch.add(x, x, alpha=2.0), lambda v, x, s: max(s, 1.0), lambda v, x, s: np.asarray(x, float),
    ],
)  # fmt: skip
def test_what_would_mix_runs_is_refused(mixes):
    with pytest.raises((Unstackable, TypeError)):
        mixes(workers(), server(), Stack.numbers([0.1, 0.2]))


def test_methods_that_differ_in_more_than_numbers_are_no_stack():
    for pair in (("gd(ef21(topk(k=1)))", "gd(ef21(topk(k=2)))"), ("gd", "nesterov"), ("gd(step='2x')", "gd(step='3x')"),
                 ("gd(ef21(bernoulli(p=0.1)))", "gd(ef21(bernoulli(p=0.2)))")):  # fmt: skip
        with pytest.raises(Unstackable):
            stacked([parse(spec) for spec in pair])
    both: Any = stacked([parse("gd(step=0.5)"), parse("gd(step=0.25)")])
    assert both.step.data.tolist() == [0.5, 0.25]


@dataclasses.dataclass
class Memory:
    a: Worker
    b: Server
    c: dict[str, Server]
    d: int


def test_dropping_runs_keeps_what_is_one_value_one_value():
    v, x = cast(Any, workers()), cast(Any, server())
    left: Any = chosen(Memory(v, x, {"again": x}, 7), torch.tensor([1]))
    assert left.b is left.c["again"] and left.b is not x and left.d == 7
    assert by_hand.equal(left.a.data[:, 0], v.data[:, 1]) and by_hand.equal(left.b.data[0], x.data[1])
