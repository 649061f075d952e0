"""Asynchronous SGD in virtual time: where it goes, what it saves where workers are alike, what it costs where not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from laconic.core.delay import Delays
from laconic.core.keys import Keys
from laconic.core.problem import Problem
from laconic.core.spec import parse
from laconic.core.theory import Setting
from laconic.lab.figures import Grid, Panel, Series
from laconic.lab.recipe import Outcome, Ruling, Verdict
from laconic.lab.run import run
from laconic.problems.custom import Custom
from laconic.recipes._asynchronous_bias import Seen, bias
from laconic.recipes._common import cost, line, ruled, timed
from laconic.runtime.local import Local

SECONDS = (1.0, 1.0, 2.0, 3.0, 5.0, 8.0)  # of a gradient, by worker
N = len(SECONDS)
D = 5
ROWS = 100  # of each worker
TARGET = 1e-8  # of the gap, where workers are alike
SCHEMES = ("pure", "random", "shuffled")
CLOCK = "virtual time [s]"
MULTIPLES = {1: (1.0, 1.5), 0: (0.25, 0.5)}  # of 1 / L, for tuned steps: waiting for all, or not


def delays(parts: tuple[float, float], steps: int, minutes: dict[str, float]) -> Outcome:
    """All claims about asynchronous SGD, at two steps, parts of 1 / L_max, the larger one first.

    `steps` are those of the server at the larger one, and in proportion more at the other one.
    """
    with timed(minutes, "ages of gradients"):
        ages = _ages(min(steps // 2, 1200))
    with timed(minutes, "bias of asynchronous methods"):
        claims, panel, table = _bias(parts, steps)
    with timed(minutes, "asynchronous and synchronous methods, unlike workers"):
        price, unlike = _price(parts[0], min(steps, 1200))
    with timed(minutes, "asynchronous and synchronous methods, alike workers"):
        alike, same = _alike(min(2 * steps, 1500))
    figure = Grid(
        f"Least squares, d = {D}, {N} workers who take {', '.join(f'{s:g}' for s in SECONDS)} s for a gradient. Left: "
        "the mean of the iterates since half of the steps so far: at two steps γ the pure method goes to x_w, to which "
        "fast workers pull, and stays as far from x*; the others go to x*. Middle: the iterates of one run at the same "
        "γ, beside methods that wait. Right: workers with the same data, every method at its best step.",
        [[panel, unlike, same]],
    )
    return Outcome([ages, *claims, price, alike], {"asynchronous": figure}, {"asynchronous": table})


def _regression(spread: float) -> Problem:
    """Worker i's rows fit a solution of its own, `spread` from the mean; with 0 all have the same rows."""
    drawn = Keys(0, 0, "recipe/rows", np.arange(N), N).normal(ROWS * D).numpy().reshape(N, ROWS, D)
    rows = drawn if spread > 0.0 else np.broadcast_to(drawn[:1], drawn.shape)
    own = 1.0 + spread * Keys(0, 0, "recipe/solutions", np.arange(N), N).normal(D).numpy()
    return Custom.from_arrays(list(rows), [a @ x for a, x in zip(rows, own, strict=True)], loss="ridge", l2=0.0)


def _model() -> Delays:
    found = parse(f"fixed_delay({SECONDS})")
    assert isinstance(found, Delays)
    return found


def _largest(problem: Problem) -> float:
    return float(problem.constants().L_max)


# ---- ages ------------------------------------------------------------------------------------------------------------


def _ages(steps: int) -> Verdict:
    """How old the models are at which gradients were taken."""
    problem = _regression(1.0)
    means = {}
    for scheme in SCHEMES:
        runtime = Local(N)
        link = runtime.links[0]
        oracles = problem.host(link.block)
        method: Any = parse(f"{scheme}_async(step=1e-3, delays={_model()})")
        method = method.settled(Setting.of(problem, oracles))
        link.begin(0)
        (state,) = runtime.drive(method.init(oracles, link))
        ages = []
        for step in range(1, steps + 1):
            ages.append(step - 1 - int(state.queue.version[state.queue.first(1)[0]]))
            link.begin(step)
            (state,) = runtime.drive(method.iterate(state, oracles, link))
        flying = steps - state.queue.version.numpy()
        means[scheme] = (float(np.mean(ages)), max(ages), (sum(ages) + int(flying.sum())) / steps)
    off = max(abs(whole - (N - 1)) for _, _, whole in means.values())
    return Verdict(
        "mean-delay",
        "x_(k+1) = x_k − γ ∇f_(i_k)(x_(π_k)), with a potentially outdated model (formula of the slide): how outdated?",
        ruled(off < 1e-9),
        max(whole for _, _, whole in means.values()),
        f"by n − 1 = {N - 1} steps on average, whoever gets the new model, if those in flight are counted with the "
        f"others; in {steps} steps of those used: "
        f"{', '.join(f'{mean:.2f}, at most {most} ({scheme})' for scheme, (mean, most, _) in means.items())}",
    )


# ---- bias ------------------------------------------------------------------------------------------------------------


def _bias(parts: tuple[float, float], steps: int) -> tuple[list[Verdict], Panel, pd.DataFrame]:
    problem, model = _regression(1.0), _model()
    seen: dict[tuple[str, float], list[Seen]] = {}
    for scheme, part in (("pure", parts[0]), *((scheme, parts[1]) for scheme in SCHEMES)):
        method: Any = parse(f"{scheme}_async(step={part / _largest(problem)!r})")
        count = round(steps * parts[0] / part)
        seen[scheme, part] = bias(problem, method, model, count, every=max(1, count // 40))
    ends = {key: found[-1] for key, found in seen.items()}
    rows = [
        {"method": f"{scheme}_async", "γ L_max": part, "steps": one.step, "virtual seconds": one.virtual_seconds,
         "steps per second": one.step / one.virtual_seconds, "‖mean − x*‖": one.mean_to_solution,
         "‖mean − x_w‖": one.mean_to_pulled, "‖x − x*‖": one.to_solution}
        for (scheme, part), one in ends.items()
    ]  # fmt: skip
    far, near = (ends["pure", part] for part in parts)
    apart = abs(far.mean_to_solution / near.mean_to_solution - 1.0)
    pulled = max(one.mean_to_pulled / one.mean_to_solution for one in (far, near))
    left = {scheme: ends[scheme, parts[1]].mean_to_solution / near.mean_to_solution for scheme in SCHEMES[1:]}
    biased, lucky = pulled < 0.1 and apart < 0.1, ends["random", parts[1]]
    verdicts = [
        Verdict(
            "pure-bias",
            "(question of the slides: do we have convergence?) asynchronous SGD whose workers just go on finds x* if "
            "the step is small, also where workers are unlike",
            ruled(not biased),
            near.mean_to_solution,
            f"the mean of its iterates ends {far.mean_to_solution:.3f} from x* with γ = {parts[0]:g}/L_max and "
            f"{near.mean_to_solution:.3f} with {parts[1]:g}/L_max: the bias does not depend on the step",
        ),
        Verdict(
            "pulled-point",
            "where it goes instead: to x_w with Σ ∇f_i(x_w)/τ_i = 0, τ_i the seconds of a gradient of worker i",
            ruled(pulled < 0.1),
            pulled,
            f"the means are {far.mean_to_pulled:.1e} and {near.mean_to_pulled:.1e} from x_w, at most "
            f"{100.0 * pulled:.1f}% of their distances from x*",
        ),
        Verdict(
            "assigned-unbiased",
            "the analysis of the slide's paper covers ways to hand out the model that do converge to x*: to random "
            "workers, and in shuffled turns",
            ruled(left["shuffled"] < 0.1 and left["random"] < 0.5 and lucky.mean_to_solution < lucky.mean_to_pulled),
            max(left.values()),
            f"their means end {100.0 * left['random']:.1f}% (random) and {100.0 * left['shuffled']:.1f}% "
            "(shuffled) of the pure method's distance from x*, at the same step, after "
            f"{lucky.step} steps",
        ),
    ]
    lines = []
    for (scheme, part), found in seen.items():
        clock = np.array([one.virtual_seconds for one in found])
        lines.append(Series(f"{scheme}, γ = {part:g}/L", clock, np.array([one.mean_to_solution for one in found])))
    found = seen["pure", parts[1]]
    clock, pull = (np.array([getattr(one, name) for one in found]) for name in ("virtual_seconds", "mean_to_pulled"))
    lines.append(Series(f"pure, γ = {parts[1]:g}/L, to x_w", clock, pull, dashed=True))
    return verdicts, Panel("unlike workers, means", CLOCK, "‖mean − x*‖", lines), pd.DataFrame(rows)


# ---- price -----------------------------------------------------------------------------------------------------------


def _price(part: float, steps: int) -> tuple[Verdict, Panel]:
    problem = _regression(1.0)
    step = part / _largest(problem)
    specs = {name: f"{name}_async(step={step!r})" for name in SCHEMES}
    specs |= {f"waiting for {wait}": f"waiting_async(step={step!r}, wait={wait})" for wait in (N // 2, N)}
    specs["gradient descent"] = f"gd(step={step!r})"
    waits = {f"waiting for {N}", "gradient descent"}  # for everyone, so that a step takes as long as many others
    runs = {
        label: run(problem, [(label, spec)], iterations=steps // N if label in waits else steps,
                   every=1 if label in waits else max(1, steps // 60), delays=_model())
        for label, spec in specs.items()
    }  # fmt: skip
    clock = {label: float(one.results[0]["virtual_seconds"]) for label, one in runs.items()}
    per = {"pure": 1, "random": 1, "shuffled": 1, f"waiting for {N // 2}": N // 2, f"waiting for {N}": N}
    pace = {label: runs[label].results[0]["iterations"] * count / clock[label] for label, count in per.items()}
    together, fastest = N / max(SECONDS), sum(1.0 / s for s in SECONDS)
    gained = max(pace["random"], pace["shuffled"]) / together
    free = pace["pure"] / together
    verdict = Verdict(
        "price",
        "asynchronous methods do not wait for slow workers, and so get more gradients used in the same time",
        Ruling.HOLDS if min(gained, free) > 1.5 else Ruling.CORRECTED if max(gained, free) > 1.5 else Ruling.FAILS,
        gained,
        f"gradients used per second: pure {pace['pure']:.2f} (Σ 1/τ_i = {fastest:.2f}), waiting for {N // 2} "
        f"{pace[f'waiting for {N // 2}']:.2f}; random {pace['random']:.2f}, shuffled "
        f"{pace['shuffled']:.2f}, and gradient descent n/τ_max = {together:.2f}: where every worker is to count the "
        "same, the slowest one sets the pace",
    )
    lines = [line(one, label, "virtual_seconds", "distance2") for label, one in runs.items()]
    most = 1.2 * max(clock["random"], clock["shuffled"])
    kept = [Series(one.label, one.x[one.x <= most], np.sqrt(one.y[one.x <= most])) for one in lines]
    return verdict, Panel("unlike workers, iterates", CLOCK, "‖x − x*‖", kept)


def _alike(most: int) -> tuple[Verdict, Panel]:
    problem = _regression(0.0)
    specs = {"gradient descent": "gd", **{name: f"{name}_async" for name in SCHEMES}}
    smooth, best, lines = _largest(problem), {}, []
    for label, name in specs.items():
        for times in MULTIPLES[name == "gd"]:
            runs = run(problem, [(label, f"{name}(step={times / smooth!r})")], iterations=most, until=TARGET,
                       every=6, delays=_model())  # fmt: skip
            found = cost(runs, label, TARGET, "virtual_seconds")
            if found < best.get(label, (math.inf,))[0]:
                best[label] = (found, runs)
        if label in best:
            lines.append(line(best[label][1], label, "virtual_seconds", "gap"))
    spent: dict[str, float] = {label: best[label][0] if label in best else math.inf for label in specs}
    gain = spent["gradient descent"] / spent["pure"]
    verdict = Verdict(
        "asynchrony-pays",
        "asynchronous communication is what to do about machines of unlike speed (where they have the same data)",
        ruled(gain > 1.5),
        gain,
        f"to a gap of {TARGET:g} at the best of some steps the pure method takes {spent['pure']:.0f} "
        f"virtual seconds and gradient descent {spent['gradient descent']:.0f}, {gain:.1f} times as many "
        f"(random {spent['random']:.0f}, shuffled {spent['shuffled']:.0f})",
    )
    return verdict, Panel("workers with the same data", CLOCK, "f(x) − f*", lines, "y")
