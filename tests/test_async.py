"""Asynchronous methods in virtual time: the queue against a plain heap, delays of gradients, biases, replays."""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import laconic
from by_hand import RUNTIMES, Course, equal, hand, matrices, method_of, problem_of, setting_of, start
from laconic.core.events import Queue
from laconic.core.keys import Keys
from laconic.core.spec import parse
from laconic.lab.series import axes
from laconic.lab.trace import numbers
from laconic.methods.delays import ExponentialDelay, FixedDelay, Speeds
from laconic.methods.replayed_async import ReplayedAsync
from laconic.recipes._asynchronous_bias import bias, pulled_point
from laconic.runtime.local import Local
from test_averages import Killed, dies

SIX = "quadratic(d=7, workers=6, noise=0.8, mu=0.1)"
UNLIKE = (1, 1, 2, 3, 5, 8)
SCHEMES = ("pure_async", "random_async", "shuffled_async")


def run_of(scheme: str, delays: Any, step: float = 0.05, problem: str = SIX, **other: Any) -> Course:
    words = "".join(f", {name}={value}" for name, value in other.items())
    return start(f"{scheme}(step={step}, delays={delays}{words})", problem)


def used(run: Course, steps: int) -> list[tuple[int, int]]:
    """Worker and version of every gradient that the next steps use, a step after the other."""
    found = []
    for _ in range(steps):
        queue = run.state.queue
        places = queue.first(run.method.per_step)  # type: ignore[attr-defined]
        found += [(int(queue.worker[place]), int(queue.version[place])) for place in places]
        run.go()
    return found


# ---- the text against the sheet's pseudo-code ------------------------------------------------------------------------


def reference(scheme: str, tau: tuple[float, ...], steps: int, step: float, b: int = 1) -> tuple[Any, Any, float]:
    """A heap of events and a first-in-first-out list of jobs per worker, in plain Python: x, order, time."""
    a, c = (part.numpy() for part in matrices(problem_of(SIX)))
    n, d = c.shape
    x = np.zeros(d) + problem_of(SIX).oracles(start("gd", SIX).oracles[0].block).start().numpy()
    heap: list[Any] = []
    jobs: list[deque[Any]] = [deque() for _ in range(n)]
    busy, count, now, order = [False] * n, 0, 0.0, []

    def begin(i: int) -> None:
        nonlocal count
        busy[i] = True
        version, snapshot = jobs[i].popleft()
        heapq.heappush(heap, (now + tau[i], count, i, version, snapshot))
        count += 1

    for i in range(n):
        jobs[i].append((0, x))
        begin(i)
    for t in range(1, steps + 1):
        done = [heapq.heappop(heap) for _ in range(b)]
        now = done[-1][0]
        for _, _, i, _, _ in done:
            busy[i] = False
            if jobs[i]:
                begin(i)
        total = sum((a[i] @ snapshot - c[i] for _, _, i, _, snapshot in sorted(done, key=lambda job: job[2])), 0.0)
        x = x - step / b * total
        order += [(i, version) for _, _, i, version, _ in done]
        fresh = [i for _, _, i, _, _ in done]
        shared = Keys(0, t, "/assignment0", np.arange(n), n).shared
        if scheme == "random_async":
            fresh = [int(shared.subsets(n, 1)[0, 0])]
        if scheme == "shuffled_async":
            keys = Keys(0, (t - 1) // n, "/shuffle0", np.arange(n), n).shared
            fresh = [int(keys.permutations(n)[0, (t - 1) % n])]
        for j in fresh:
            jobs[j].append((t, x))
            if not busy[j]:
                begin(j)
    return x, order, now


@pytest.mark.parametrize("tau", [UNLIKE, (1, 1, 1, 1, 1, 1), (2.5, 0.25, 0.75, 0.75, 4.0, 1.0)])
@pytest.mark.parametrize(
    ("scheme", "b"), [*((one, 1) for one in SCHEMES), ("waiting_async", 2), ("waiting_async", 5), ("waiting_async", 6)]
)
def test_the_queue_is_that_of_the_pseudo_code(scheme: str, b: int, tau: tuple[float, ...]) -> None:
    run = run_of(scheme, f"fixed_delay({tau})", 0.05, SIX, **({"wait": b} if b > 1 else {}))
    x, order, now = reference(scheme, tau, 60, 0.05, b)
    assert used(run, 60) == order
    assert np.allclose(run.x.numpy(), x, rtol=1e-12, atol=1e-14)
    assert run.method.virtual_seconds(run.state) == pytest.approx(now, rel=1e-12)


def test_equals_are_settled_by_who_started_first() -> None:
    queue = Queue.begin(np.array([2.0, 1.0, 1.0]))
    assert queue.first(3).tolist() == [1, 2, 0]
    queue, starts = queue.after(np.array([1]), np.array([1]), 1, lambda workers: np.ones(len(workers)))
    assert (starts.new.tolist(), starts.old.tolist(), starts.waiting.tolist()) == ([1], [], [])
    assert float(queue.now) == 1.0 and queue.first(3).tolist() == [2, 0, 1]  # all at 2.0 but worker 2
    queue, starts = queue.after(np.array([2]), np.array([0]), 2, lambda workers: np.ones(len(workers)))
    assert starts.waiting.tolist() == [2] and math.isinf(float(queue.finish[2]))  # worker 0 is busy
    queue, starts = queue.after(np.array([0]), np.array([0]), 3, lambda workers: np.ones(len(workers)))
    assert (starts.old.tolist(), starts.waiting.tolist()) == ([2], [0])  # its old job first, then the new one
    assert queue.version.tolist() == [3, 1, 2]


# ---- delays of gradients ---------------------------------------------------------------------------------------------


def test_waiting_for_all_is_gradient_descent() -> None:
    for delays in ("fixed_delay", f"fixed_delay({UNLIKE})", "exponential_delay"):
        run, gd = run_of("waiting_async", delays, wait=6), start("gd(step=0.05)", SIX).go(40)
        assert all(version == k // 6 for k, (_, version) in enumerate(used(run, 40)))  # nothing is old
        assert torch.allclose(run.x, gd.x, rtol=0, atol=1e-14)
    assert run_of("waiting_async", f"fixed_delay({UNLIKE})", wait=6).go(10).state.queue.now == 80.0


def test_equal_workers_in_turn() -> None:
    run = run_of("pure_async", "fixed_delay")
    order = used(run, 60)
    assert [worker for worker, _ in order] == list(range(6)) * 10
    assert {t - version for t, (_, version) in enumerate(order) if t >= 6} == {5}


@pytest.mark.parametrize("delays", [f"fixed_delay({UNLIKE})", "exponential_delay"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_mean_delay_is_the_number_of_other_jobs(scheme: str, delays: str) -> None:
    """Of the jobs that are used and those in flight: at every step the n - 1 others grow older by one."""
    run, steps = run_of(scheme, delays), 300
    ages = [t - version for t, (_, version) in enumerate(used(run, steps))]
    flying = [steps - int(version) for version in run.state.queue.version]
    assert sum(ages) + sum(flying) == 5 * steps
    assert abs(np.mean(ages) - 5.0) < 0.3


def test_how_often_workers_speak() -> None:
    """As often as they are fast, or all alike."""
    steps, rates = 634, 1.0 / np.array(UNLIKE)
    pure = Counter(worker for worker, _ in used(run_of("pure_async", f"fixed_delay({UNLIKE})"), steps))
    assert np.abs(np.array([pure[i] for i in range(6)]) - steps * rates / rates.sum()).max() < 2.5
    shuffled = Counter(worker for worker, _ in used(run_of("shuffled_async", f"fixed_delay({UNLIKE})"), 300))
    assert max(shuffled.values()) - min(shuffled.values()) <= 6
    random = Counter(worker for worker, _ in used(run_of("random_async", f"fixed_delay({UNLIKE})"), 600))
    assert max(abs(random[i] - 100) for i in range(6)) < 5 * math.sqrt(100)


# ---- where they go ---------------------------------------------------------------------------------------------------


BIASED = "quadratic(d=5, workers=6, noise=0.8, mu=0.5)"


def weighted(weights: np.ndarray) -> torch.Tensor:
    """The x with sum w_i grad f_i(x) = 0."""
    a, b = matrices(problem_of(BIASED))
    w = torch.from_numpy(weights)
    return torch.linalg.solve((w[:, None, None] * a).sum(0), (w[:, None] * b).sum(0))


def mean_point(scheme: str, step: float, steps: int) -> torch.Tensor:
    """The mean of the iterates of the last two thirds."""
    run = run_of(scheme, f"fixed_delay({UNLIKE})", step, BIASED).go(steps // 3)
    total = torch.zeros_like(run.x)
    for _ in range(2 * steps // 3):
        total += run.go().x
    return total / (2 * steps // 3)


def test_the_bias_of_the_pure_method_is_independent_of_the_step() -> None:
    """It goes to x_w, in which a worker counts as often as it is fast; the others go to x*."""
    solution, aside = weighted(np.ones(6)), weighted(1.0 / np.array(UNLIKE))
    bias = float((aside - solution).norm())
    for step, steps in ((0.2, 450), (0.05, 750)):
        pure, shuffled = (mean_point(scheme, step, steps) for scheme in ("pure_async", "shuffled_async"))
        assert float((pure - aside).norm()) < 0.05 * bias
        assert float((pure - solution).norm()) == pytest.approx(bias, rel=0.05)
        assert float((shuffled - solution).norm()) < 0.05 * bias
    assert float((mean_point("random_async", 0.1, 600) - solution).norm()) < 0.4 * bias


def test_the_numbers_of_the_picture_of_the_bias() -> None:
    problem, step = problem_of(BIASED), parse("pure_async(step=0.1)")
    solution, aside = weighted(np.ones(6)), weighted(1.0 / np.array(UNLIKE))
    assert torch.allclose(pulled_point(problem, [1.0 / tau for tau in UNLIKE]), aside, rtol=0, atol=1e-10)
    seen = bias(problem, step, FixedDelay(UNLIKE), 300, every=100)  # type: ignore[arg-type]
    run = run_of("pure_async", f"fixed_delay({UNLIKE})", 0.1, BIASED).go(300)
    assert [one.step for one in seen] == [100, 200, 300]
    assert seen[-1].virtual_seconds == float(run.state.queue.now)
    assert seen[-1].to_solution == pytest.approx(float((run.x - solution).norm()), rel=1e-8)
    assert seen[-1].mean_to_pulled < 0.1 * seen[-1].mean_to_solution


# ---- virtual seconds -------------------------------------------------------------------------------------------------


def test_methods_of_both_kinds_stand_on_one_axis() -> None:
    methods = ["gd(step=0.1)", "waiting_async(step=0.1, wait=6)", "pure_async(step=0.1)", "proxskip(probability=1.0)"]
    runs = laconic.run(SIX, methods, iterations=20, delays=f"fixed_delay({UNLIKE})")
    ends = {one["method"]: one["virtual_seconds"] for one in runs.results}
    assert ends[methods[0]] == 8.0 * 21  # a gradient at x^0, and one in every iteration, at the pace of the slowest
    assert ends[methods[1]] == ends[methods[3]] == 8.0 * 20
    assert ends[methods[2]] == reference("pure_async", UNLIKE, 20, 0.1)[2]
    assert "virtual time [s]" in [axis.label for axis in axes(runs.trace, None)]
    alone = laconic.run(SIX, ["gd", "pure_async(step=0.1)"], iterations=3)
    assert [one["virtual_seconds"] for one in alone.results][0] is None
    assert np.isnan(alone.trace["virtual_seconds"]).sum() == 4


def test_virtual_seconds_count_who_computes_and_how_much() -> None:
    """Half the terms are half a gradient; who does not act takes no time; without a round nobody waits."""
    delays = "fixed_delay((1, 2, 4))"
    small = "logistic(data='breast_cancer', workers=3, l2=0.1)"
    specs = ["gd(step=0.1, estimator=sgd(batch=19))", "svrp(step=0.1, probability=1e-9)", "proxskip(probability=0.3)"]
    runs = laconic.run(small, specs, iterations=6, seeds=[1], delays=delays)
    sgd, svrp, proxskip = (one["virtual_seconds"] for one in runs.results)
    terms = problem_of(small).oracles(start("gd", small).oracles[0].block).terms()
    assert sgd == pytest.approx(7 * max(19 * tau / count for tau, count in zip((1, 2, 4), terms, strict=True)))
    trace = runs.trace.query("method == @specs[1]")
    passed = numbers(trace, "virtual_seconds")
    assert passed[0] == 4.0  # all, at x^0
    looked = np.diff(numbers(trace, "gradients")) * terms.sum()  # terms of the one who acted, all of its own at a time
    possible = [[g / count * tau for count, tau in zip(terms, (1, 2, 4), strict=True)] for g in looked]
    for step, some in zip(np.diff(passed), possible, strict=True):
        assert min(abs(step - one) for one in some) < 1e-9
    assert svrp == passed[-1] and proxskip == 4.0 * 6


def test_without_a_round_fast_workers_run_ahead() -> None:
    """Until a round each adds up its own delays; then all wait for the one who has most."""
    spec = "proxskip(probability=0.2)"
    trace = laconic.run(SIX, spec, iterations=30, delays="exponential_delay").trace
    run, own, now, expected = start(spec, SIX), np.zeros(6), 0.0, {0: 0.0}
    for k in range(1, 31):
        before = run.runtime.ledger.rounds
        own += ExponentialDelay().draw(Keys(0, k, "delays", np.arange(6), 6))
        expected[k] = now + own.max()
        if run.go().runtime.ledger.rounds > before:
            now, own = expected[k], np.zeros(6)
    passed = dict(zip(trace["iteration"], trace["virtual_seconds"], strict=True))
    assert all(passed[k] == pytest.approx(expected[k], rel=1e-12) for k in passed) and len(passed) > 3


@pytest.mark.parametrize("star", [False, True])
def test_a_killed_run_goes_on_at_the_same_virtual_time(tmp_path: Any, star: bool) -> None:
    """In the middle of a stretch without rounds as well, and on other parties."""
    methods = ["proxskip(probability=0.2)", "shuffled_async(step=0.1)"]
    options: dict[str, Any] = {
        "iterations": 9, "delays": "speeds(8.0, exponential_delay)", "topology": "star" if star else "replicated",
    }  # fmt: skip
    whole = laconic.run(SIX, methods, **options)
    for after in (20, 60):
        out = tmp_path / str(after)
        with pytest.raises(Killed):
            laconic.run(SIX, methods, out=out, runtime=dies(after, star, 1), save_every=0.0, **options)
        assert (out / "checkpoint.safetensors").exists()
        again: dict[str, Any] = {} if star else {"runtime": lambda n, *, seed, **other: Local(n, seed=seed, parts=3)}
        resumed = laconic.run(SIX, methods, out=out, resume=True, **again, **options)
        for name in ("virtual_seconds", "iteration", "gap"):
            assert resumed.trace[name].tolist() == whole.trace[name].tolist()
    assert len(set(whole.trace["virtual_seconds"])) > 9


# ---- theory and bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "stale", "flying"),
    [
        # n = 4, L_max = 7. In one second each of three others ends at most twice, once at either end
        ("pure_async", 6, 4),
        # worker 3 takes 4 s: others end 5, 3 and 2 times at most
        ("pure_async(delays=fixed_delay((1, 2, 4, 4)))", 5 + 3 + 2, 4),
        ("pure_async(delays=speeds(2.0))", 3 * 3, 4),
        ("waiting_async(wait=4)", 2, 1),
        ("waiting_async(wait=3)", 2, 2),
        # all jobs at one worker: 4 s, in which each other ends 5 times, and its own three before
        ("random_async", 3 * 5 + 3, 4),
        ("shuffled_async(delays=speeds(2.0))", 3 * 9 + 3, 4),
        ("replayed_async(order=((0, 0), (1, 0), (0, 0), (3, 3)))", 2, 4),
    ],
)
def test_the_step_of_the_theorem(spec: str, stale: int, flying: int) -> None:
    method: Any = parse(spec)
    promise = method.settled(hand()).guarantee(hand())
    assert promise.step == pytest.approx(1 / (4 * 7 * math.sqrt(stale * flying)), rel=1e-12)
    assert method.settled(hand()).step == promise.step and not promise.sure and promise.rate is None
    assert (promise.plateau == 0.0) == (spec.startswith(("random", "shuffled")) or "wait=4" in spec)


def test_the_bound_on_the_age_holds() -> None:
    for scheme in (*SCHEMES, "waiting_async"):
        for delays in (FixedDelay(UNLIKE), FixedDelay((0.1, 0.2, 0.3, 0.7, 0.1, 0.1)), Speeds(5.0)):
            run = run_of(scheme, delays)
            steps = [t // run.method.per_step for t in range(160)]  # type: ignore[attr-defined]
            ages = [t - version for t, (_, version) in zip(steps, used(run, 80), strict=False)]
            assert max(ages) <= run.method.most_stale(*delays.bounds(6))  # type: ignore[attr-defined]


def test_draws_of_delays() -> None:
    keys = Keys(3, 5, "delay", np.arange(6), 6)
    many = [replace(keys, step=k) for k in range(4000)]
    draws = np.stack([ExponentialDelay((1, 1, 2, 3, 5, 8)).draw(key) for key in many])
    assert np.abs(draws.mean(0) / np.array(UNLIKE) - 1).max() < 5 / math.sqrt(4000) and draws.min() > 0.0
    assert np.abs((draws > np.array(UNLIKE)).mean(0) - math.exp(-1)).max() < 5 * 0.5 / math.sqrt(4000)
    speeds = [Speeds(9.0).draw(key) for key in (keys, many[7], replace(keys, stream="other"))]
    assert (speeds[0] == speeds[1]).all() and (speeds[0] == speeds[2]).all() and len(set(speeds[0])) == 6
    assert speeds[0].min() >= 1.0 and speeds[0].max() <= 9.0
    assert (Speeds(9.0).draw(replace(keys, seed=4)) != speeds[0]).all()
    assert FixedDelay(UNLIKE).draw(keys.at([4, 0])).tolist() == [5.0, 1.0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pure_async(delays=fixed_delay((1, 2)))", "it has delays of 2 workers, and there are 6"),
        ("random_async(step=0.1, delays=speeds(2.0, exponential_delay((1, 2))))", "delays of 2 workers"),
        ("waiting_async(wait=7)", "waits for 7 gradients, and there are 6 workers"),
        ("pure_async(delays=exponential_delay)", "needs delays that are bounded"),
        ("replayed_async(order=((0, 0), (6, 0)))", "it is of worker 6, and there are 6 workers"),
        ("pure_async(delays=fixed_delay((1, 1, 0, 1, 1, 1)))", "would starve a worker"),
        ("pure_async(delays=exponential_delay(0))", "would starve a worker"),
        ("replayed_async(order=((0, 1),))", "uses version 1 of the model, made only later"),
        ("replayed_async(order=((0, 0), (0, 0)), wait=2)", "uses two gradients of one worker"),
        ("replayed_async(order=((0, 0, 1),))", "a tuple of pairs"),
        ("pure_async(delays=topk(k=1))", "delays must be a delay"),
    ],
)
def test_refusals(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        method_of(spec, problem_of(SIX))
    assert "\n" not in str(caught.value)


def test_delays_of_a_run_are_checked() -> None:
    with pytest.raises(ValueError, match="delays of 2 workers, and there are 6"):
        laconic.run(SIX, "gd", iterations=1, delays="fixed_delay((1, 2))")
    with pytest.raises(ValueError, match="topk\\(k=1\\) is a compressor, no model of delays"):
        laconic.run(SIX, "gd", iterations=1, delays="topk(k=1)")


def test_a_worker_who_starves_is_remarked() -> None:
    starving = run_of("pure_async", "fixed_delay((1, 1, 1, 1, 1, 500))").go(400)
    (text,) = starving.runtime.links[0].remarks
    assert text.startswith("worker 5 starves") and "\n" not in text
    assert starving.runtime.links[0].remarks[text] == {180: 180.0, 360: 360.0}  # every 30 n steps
    for run in (run_of("pure_async", f"fixed_delay({UNLIKE})"), run_of("pure_async", "exponential_delay")):
        assert not run.go(400).runtime.links[0].remarks
    assert not run_of("shuffled_async", "fixed_delay((1, 1, 1, 1, 1, 500))").go(200).runtime.links[0].remarks


# ---- replays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [*SCHEMES, "waiting_async"])
@pytest.mark.parametrize("runtime", ["plain", "encoded star", "a part for each and two for none"])
def test_a_recorded_order_gives_the_same_bits(scheme: str, runtime: str) -> None:
    original = run_of(scheme, f"fixed_delay({UNLIKE})")
    order = tuple(used(original, 40))
    wait = original.method.per_step  # type: ignore[attr-defined]
    replay = start(ReplayedAsync(order, 0.05, wait), SIX, runtime=runtime).go(43)  # nothing moves after its end
    assert equal(replay.x, original.x)
    assert (replay.runtime.ledger.uplink == original.runtime.ledger.uplink).all()
    assert len(replay.state.kept) <= 6


@pytest.mark.parametrize("scheme", [*SCHEMES, "waiting_async"])
def test_only_those_who_act_compute_and_every_byte_is_counted(scheme: str) -> None:
    run = run_of(scheme, f"fixed_delay({UNLIKE})", problem=SIX).go(50)
    count = 50 * run.method.per_step  # type: ignore[attr-defined]
    ledger, size = run.runtime.ledger, 7 * 8
    assert run.oracles[0].calls.gradient_terms == count
    assert (ledger.rounds, ledger.messages_up, int(ledger.uplink.sum())) == (50, count, count * size)
    started = 6 + ledger.messages_down  # jobs; x^0 is known to all
    waiting = int(torch.isinf(run.state.queue.finish).sum())
    assert started - count == 6 - waiting and int(ledger.downlink.sum()) == ledger.messages_down * size


@pytest.mark.parametrize("runtime", list(RUNTIMES))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_they_are_the_same_everywhere(scheme: str, runtime: str) -> None:
    problem = problem_of(SIX)
    method = method_of(f"{scheme}(step=0.05, delays=speeds(8.0, exponential_delay))", problem)
    plain, other = (Course(method, problem, RUNTIMES[name](6, 5)).go(15) for name in ("plain", runtime))
    assert equal(other.x, plain.x) and equal(other.state.queue.finish, plain.state.queue.finish)
    assert method.virtual_seconds(other.state) == method.virtual_seconds(plain.state)
    assert setting_of(problem).delays is None
