"""Checks of guarantees: steps in the right units, Lyapunov functions that contract, also on the tightest instances."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from typing import Any

import torch

from laconic.checks.course import Course, course, frozen, parts_of, replaced, with_parameter
from laconic.checks.findings import Findings
from laconic.checks.reference import Reference
from laconic.checks.statistics import quantile
from laconic.checks.suite import Amounts, Suite
from laconic.checks.trial import addresses, same, sent
from laconic.checks.vectors import normal
from laconic.core.compressor import Compressor, as_unbiased
from laconic.core.entry import Interval, parameters
from laconic.core.method import Method
from laconic.core.registry import catalogue
from laconic.core.state import flatten, restore
from laconic.core.theory import Guarantee, NoTheorem

PLAIN = Reference()
INSTANCES = {
    "unlike workers": PLAIN,
    "the steepest axis": Reference(bent=0.0, unlike=0.0, along=0),
    "the flattest axis": Reference(bent=0.0, unlike=0.0, along=5),
}
ALIKE = Reference(unlike=0.0)
OTHER_UNITS = {"4 f(x)": Reference(scale=4.0), "f(x / 2)": Reference(unit=2.0)}
WARM = 5  # iterations before averages are taken
SURE = 20  # iterations after which a draw must have shown
MOST = 4000  # draws of one average, at most


def theory_checks(found: Findings, method: Method, effort: Amounts) -> Suite:
    """Of what a method promises at its theorem's step."""
    yield "the promise is one", functools.partial(_promise, found, method)
    yield "f and x in other units", functools.partial(_units, found, method, effort)
    yield "the theorem's step descends", functools.partial(_descends, found, method, effort)
    yield "the Lyapunov function contracts", functools.partial(_contracts, found, method, effort)
    yield "with the identity in the place of compressors", functools.partial(_with_identity, found, method, effort)
    yield "compressing more never allows a larger step", functools.partial(_monotone, found, method)


def _promised(method: Method, problem: Reference) -> tuple[Method, Guarantee] | None:
    """The method at its theorem's step, and the theorem; None where there is none, or the problem is refused."""
    try:
        ready = with_parameter(method, step=None).settled(problem.setting())
        return ready, ready.guarantee(problem.setting())
    except ValueError:
        return None


def _promise(found: Findings, method: Method) -> None:
    """Numbers that can be what they are called, and less of them at other steps."""
    both = _promised(method, PLAIN)
    if both is None:
        return
    ready, promise = both
    rate = "no rate" if promise.rate is None else f"rate {promise.rate:.4g}"
    found.notes.append(f"step {promise.step:.4g}, {rate}{'' if promise.sure else ', not sure'}")
    found.expect(0.0 < promise.step < math.inf, f"the step is {promise.step}")
    found.expect(promise.rate is None or 0.0 <= promise.rate < 1.0, f"the rate is {promise.rate}")
    found.expect(promise.plateau >= 0.0, f"the plateau is {promise.plateau}")
    found.expect((promise.rate is None) <= (promise.lyapunov is None), "a Lyapunov function without a rate")
    step = _step(ready)
    if step is None:
        return
    found.expect(
        math.isclose(step, promise.step, rel_tol=1e-9), f"step=None is {step:.9g}, not the theorem's {promise.step:.9g}"
    )
    twice, half = (_at(ready, factor * step) for factor in (2.0, 0.5))
    found.expect(twice is None or twice.rate is None, "a rate is promised at twice the largest step")
    if half is not None and half.rate is not None and promise.rate is not None:
        found.expect(half.rate >= promise.rate - 1e-12, "half the step promises a better rate than the largest")


def _step(method: Any) -> float | None:
    known = {parameter.name for parameter in parameters(type(method))}
    return float(method.step) if "step" in known and method.step is not None else None


def _at(method: Method, step: float) -> Guarantee | None:
    try:
        return with_parameter(method, step=step).guarantee(PLAIN.setting())
    except ValueError:
        return None


# ---- units -----------------------------------------------------------------------------------------------------------


def _units(found: Findings, method: Method, effort: Amounts) -> None:
    """f measured in quarters and x in halves: the step follows, the rate stays, and the run is the same one.

    Of sign methods and their like, which have units, no theorem promises a rate, and none of this.
    """
    if _has_units(method) or not all(_homogeneous(c) for c in parts_of(method, Compressor)):
        return
    for name, problem in OTHER_UNITS.items():
        found.place = f"{name} for f(x)"
        factor = problem.unit**2 / problem.scale
        one, other = _promised(method, PLAIN), _promised(method, problem)
        off = _off_in_units(method, problem, effort.iterations)
        if one is not None and one[1].rate is not None:
            found.expect(off < 1e-6, f"the run in other units is off by {off:.3g}")
        elif off >= 1e-6:
            return
        if one is not None and other is not None:
            _in_units(found, one, other, factor)


def _off_in_units(method: Method, problem: Reference, iterations: int) -> float:
    """How far a run on a problem in other units, with the step in other units, is from the plain one."""
    small = 0.05 / float(PLAIN.constants().L_max)
    factor = problem.unit**2 / problem.scale
    ends = []
    for where, step in ((PLAIN, small), (problem, factor * small)):
        ready = with_parameter(method, step=step).settled(where.setting())
        ends.append(course(ready, where).go(iterations).x / where.unit)
    return float((ends[1] - ends[0]).norm() / ends[0].norm())


def homogeneous(method: Method) -> bool:
    """Whether nothing in a method depends on the units of f and x but its step: then it rests where gradients vanish.

    So it must where a theorem promises a rate and no plateau.
    """
    both = _promised(method, PLAIN)
    if both is not None and both[1].rate is not None and both[1].plateau == 0.0:
        return True
    try:
        return all(_off_in_units(method, problem, 4) < 1e-6 for problem in OTHER_UNITS.values())
    except ValueError:
        return False


def _in_units(found: Findings, one: tuple[Method, Guarantee], other: tuple[Method, Guarantee], factor: float) -> None:
    step, scaled = one[1].step, other[1].step
    if _step(one[0]) is not None:
        found.expect(
            math.isclose(scaled, factor * step, rel_tol=1e-6),
            f"the step is {scaled:.6g} and must be {factor * step:.6g}",
        )
    a, b = one[1].rate, other[1].rate
    alike = a is None and b is None or (a is not None and b is not None and math.isclose(1 - a, 1 - b, rel_tol=1e-6))
    found.expect(alike, f"the rate is {b} and was {a}")


def _has_units(entry: Any) -> bool:
    """Whether a number is given that might be a length, a step or a weight: it knows no upper end, or no range."""
    for part in [entry, *parts_of(entry, object)]:
        if not dataclasses.is_dataclass(part) or isinstance(part, Compressor):
            continue
        for parameter in parameters(type(part)):
            value, declared = getattr(part, parameter.name), parameter.range
            free = declared is None or (isinstance(declared, Interval) and math.isinf(declared.high))
            if isinstance(value, float) and free:
                return True
    return False


def _homogeneous(compressor: Compressor) -> bool:
    """Whether 4 v becomes 4 times what v becomes."""
    try:
        v, keys = normal((6,), 4, "units"), addresses(4)
        return same(sent(compressor, 4.0 * v, keys), 4.0 * sent(compressor, v, keys))
    except Exception:  # of another shape, or lent importances: nothing is known of it
        return False


# ---- descent and contraction -----------------------------------------------------------------------------------------


def _descends(found: Findings, method: Method, effort: Amounts) -> None:
    """Where all workers agree on the solution, f at the end is below f at the start."""
    for name, problem in {"workers that agree": ALIKE, **INSTANCES}.items():
        both = _promised(method, problem)
        if both is None or problem is PLAIN:
            continue
        found.place = name
        run = course(both[0], problem)
        before = run.gap()
        after = run.go(effort.long).gap()
        found.expect(
            after <= before * (1.0 + 1e-9) + both[1].plateau,
            f"after {effort.long} iterations f - f* is {after:.3g}, from {before:.3g}",
        )


def _contracts(found: Findings, method: Method, effort: Amounts) -> None:
    both = _promised(method, PLAIN)
    if both is None or both[1].rate is None or both[1].lyapunov is None:
        return
    judge = _at_every_step if _deterministic(both[0]) else _on_average
    for name, problem in INSTANCES.items():
        here = _promised(method, problem)
        if here is not None and here[1].rate is not None:
            found.place = name
            judge(found, course(here[0], problem), here[1], effort)


def _deterministic(method: Method) -> bool:
    """Whether other seeds give the same run."""
    ends = [course(method, PLAIN, seed).go(SURE).x for seed in (3, 4, 5)]
    return same(ends[1], ends[0]) and same(ends[2], ends[0])


def _at_every_step(found: Findings, run: Course, promise: Guarantee, effort: Amounts) -> None:
    assert promise.rate is not None
    after = first = run.lyapunov(promise)
    left = (1.0 - promise.rate) * promise.plateau
    for _ in range(effort.long):
        before, after = after, run.go().lyapunov(promise)
        if after > (promise.rate * before + left) * (1 + 1e-9) + 1e-13 * first:
            return found.fail(
                f"V is {after:.6g} after {before:.6g}, at iteration {run.step}: a factor of {after / before:.6g}, "
                f"and {promise.rate:.6g} is promised"
            )
    return None


def _on_average(found: Findings, run: Course, promise: Guarantee, effort: Amounts) -> None:
    """Two steps from one state, over many draws: the second V against the first.

    The first step may have been drawn already, with the estimate that the state holds.
    """
    assert promise.rate is not None
    run.go(WARM)
    kept, compressors, step = frozen(run), run.runtime.links[0].compressor_leaves(), run.step
    compressors = {name: dataclasses.replace(leaf, tensor=leaf.tensor.clone()) for name, leaf in compressors.items()}
    state, values = run.states[0], []
    names, began = list(flatten(state)), time.process_time()
    while len(values) < MOST and (len(values) < 60 or time.process_time() - began < effort.seconds):
        run.states = [restore(state, {name: kept[name] for name in names})]
        run.runtime.links[0].restore_compressors(compressors)
        run.step = step + 1000 * (len(values) + 1)  # other randomness
        values.append((run.go().lyapunov(promise), run.go().lyapunov(promise)))
    drawn = torch.tensor(values, dtype=torch.float64)
    before = float(drawn[:, 0].mean())
    excess = drawn[:, 1] - promise.rate * drawn[:, 0] - (1.0 - promise.rate) * promise.plateau
    width = quantile(len(values)) * float(excess.std()) / math.sqrt(len(values))
    found.expect(
        float(excess.mean()) <= width + 1e-13 * before,
        f"V is {float(drawn[:, 1].mean()):.6g} on average after {before:.6g}, {float(excess.mean()):.3g} more than the "
        f"rate {promise.rate:.6g} allows ({len(values)} draws, {width:.2g} of chance)",
    )


# ---- other compressors -----------------------------------------------------------------------------------------------


def _with_identity(found: Findings, method: Method, effort: Amounts) -> None:
    """Nothing is lost on the way, so the step must still be one: twice 1 / L, say, does not contract any more."""
    if not parts_of(method, Compressor):
        return
    identity: Any = catalogue().find("identity")
    try:
        plain = replaced(method, Compressor, identity())
    except ValueError:  # a combination that makes no sense
        return
    _descends(found, plain, effort)
    _contracts(found, plain, effort)


def _monotone(found: Findings, method: Method) -> None:
    compressors = parts_of(method, Compressor)
    if not compressors:
        return
    claims = [as_unbiased(compressor.claim(PLAIN.d, PLAIN.n)) for compressor in compressors]
    family: Any = catalogue().find("randk" if None not in claims else "topk")
    last = math.inf
    for k in range(PLAIN.d, 0, -1):
        try:
            both = _promised(replaced(method, Compressor, family(k=k)), PLAIN)
        except (ValueError, NoTheorem):
            return
        if both is None:
            return
        step = both[1].step
        found.expect(
            step <= last * (1 + 1e-9), f"with {family.name}(k={k}) the step is {step:.6g}, with one more {last:.6g}"
        )
        last = step
