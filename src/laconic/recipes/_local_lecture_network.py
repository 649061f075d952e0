"""Collectives and the price of communication: why p workers are not p times faster, and what messages change."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from laconic.core.keys import Keys
from laconic.lab.figures import Grid, Panel, Series
from laconic.lab.recipe import Outcome, Verdict
from laconic.lab.trace import numbers
from laconic.recipes._common import ruled
from laconic.runtime import collectives
from laconic.runtime.collectives import COLLECTIVES, Collective
from laconic.runtime.moves import Price, even_sizes, perform, volumes
from laconic.runtime.speedup import Summed, Timing, Work, timings

WORK = Work(compute=10.0, nbytes=100_000_000)
STAR, RING, TREE = "10gbit,10us,star,server=10gbit", "10gbit,10us,ring", "10gbit,10us,tree"
SPEEDUP, WORKERS = "times faster than one", "workers p"


def network(most: int) -> Outcome:
    """Operations, speed-ups and forms of all-reduce, the latter two in one figure."""
    done, (faster, left), (forms, right) = operations(8), speedup(most), ring_and_tree(256)
    grid = Grid(
        "Left: compute/p + communication(p), 10 s and 100 MB a step at 10 Gbit/s and 10 µs a message; past its best "
        "number of workers each arrangement gets slower. Right: an all-reduce of numbers of 32 bits on the same lines, "
        "adding left out; latency decides for short vectors, where trees win, bandwidth for long ones.",
        [[left, right]],
    )
    return Outcome([*done.verdicts, *faster.verdicts, forms], {"network": grid}, faster.tables)


# ---- operations ------------------------------------------------------------------------------------------------------


def operations(most: int) -> Outcome:
    """The table of operations: every form, done on numbers for every p up to `most`, against what it should leave."""
    worst, lines, numbers_sent, steps = 0.0, 0, 0.0, True
    for p in range(2, most + 1):
        for n in (p - 1, 2 * p + 1, 8 * p):
            held = np.round(100.0 * Keys(0, 0, "recipe/held", np.arange(p), p).normal(n).numpy())
            for one in COLLECTIVES:
                wrong = _missed(one, held)
                worst, lines = max(worst, wrong), lines + 1
        ring = collectives.ring_all_reduce(p)
        sent = volumes(ring, even_sizes(8 * p, p))
        numbers_sent = max(numbers_sent, float(np.abs(sent - 2 * (p - 1) * 8).max()))
        steps = steps and len(ring.steps) == 2 * (p - 1)
    return Outcome(
        [
            Verdict(
                "operations-table",
                "(table) what broadcast, reduce, scatter, gather, all-gather, reduce-scatter and all-reduce leave on "
                "the nodes",
                ruled(worst == 0.0),
                worst,
                f"all {len(COLLECTIVES)} forms, on 2 to {most} nodes and vectors shorter and longer than their number, "
                f"leave what the table says: the largest difference in {lines} trials is {worst:g}",
            ),
            Verdict(
                "ring-all-reduce",
                "(pictures) around a ring every node ends with the sum of all vectors, by one chunk a step",
                ruled(steps and numbers_sent == 0.0 and worst == 0.0),
                numbers_sent,
                "it takes 2(p − 1) steps, and every node sends 2(p − 1)/p d numbers, not 2d p as a server would: "
                f"counted on 2 to {most} nodes, the largest difference is {numbers_sent:g}",
            ),
        ],
        {},
        {},
    )


def _missed(one: Collective, held: np.ndarray) -> float:
    """The largest difference from what the operation should leave, over the nodes and chunks that it is about."""
    p, n = held.shape
    ends = np.concatenate([[0], np.cumsum(even_sizes(n, p))])
    own = np.zeros((p, n), dtype=bool)
    for node in range(p):
        own[node, ends[node] : ends[node + 1]] = True
    pieces = np.where(own, held, 0.0).sum(0)  # chunk j as node j has it
    first = np.zeros((p, n), dtype=bool)
    first[0] = True
    everywhere = np.ones((p, n), dtype=bool)
    wanted: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "broadcast": (held[0], everywhere),
        "reduce": (held.sum(0), first),
        "scatter": (held[0], own),
        "gather": (pieces, first),
        "all-gather": (pieces, everywhere),
        "reduce-scatter": (held.sum(0), own),
        "all-reduce": (held.sum(0), everywhere),
    }
    right, where = wanted[one.operation]
    return float(np.abs(np.where(where, perform(one.build(p), held) - right, 0.0)).max())


# ---- speed-up --------------------------------------------------------------------------------------------------------


def speedup(most: int) -> tuple[Outcome, Panel]:
    """Speed-up against the number of workers: at a server, around a ring and on a tree, dense and compressed."""
    cases = [
        (f"{label}{', 100 × shorter' if ratio > 1 else ''}", network, float(ratio))
        for label, network in (("server", STAR), ("ring", RING), ("rabenseifner", TREE))
        for ratio in (1, 100)
    ]
    p = np.unique(np.concatenate([np.geomspace(1, most, 80).round(), 2.0 ** np.arange(math.log2(most))])).astype(int)
    curves = {label: timings(WORK, network, Summed(ratio), p) for label, network, ratio in cases}
    found = {label: _best(network, ratio, curves[label]) for label, network, ratio in cases}
    table = pd.DataFrame(
        {
            "messages": list(found),
            "best p": [one.workers for one in found.values()],
            "speed-up": [one.speedup for one in found.values()],
            "efficiency": [one.efficiency for one in found.values()],
            "communication [s]": [one.communication for one in found.values()],
        }
    )
    full = max(one.efficiency for one in found.values() if one.workers > 1)
    lines = [
        Series(label, p.astype(float), np.array([one.speedup for one in curve])) for label, curve in curves.items()
    ]
    lines.append(Series("full parallelisation", p.astype(float), p.astype(float), dashed=True))
    rarely = _tables_of_networks()
    efficiency = numbers(rarely, "efficiency at p = 256")
    judged = Outcome(
        [
            Verdict(
                "full-parallelisation",
                "full parallelisation is not achieved: communication costs are a waste of time",
                ruled(full < 0.95 and found["server"].workers < most),
                full,
                f"10 s of computing and 100 MB a step at 10 Gbit/s: the best p is {found['server'].workers} at a "
                f"server ({found['server'].speedup:.1f} times faster), {found['ring'].workers} on a ring "
                f"({found['ring'].speedup:.0f} times); each worker then gives at most {full:.0%} of its share",
            ),
            Verdict(
                "bottleneck-everywhere",
                "the communication bottleneck is relevant in all distributed learning (clusters, over the Internet)",
                ruled(bool(efficiency.max() < 0.9)),
                float(efficiency.max()),
                "of perfect speed 256 workers reach "
                + ", ".join(f"{e:.1%} {name}" for e, name in zip(efficiency, rarely["network"], strict=True)),
            ),
            _compression(found),
        ],
        {},
        {"speed-up": table, "networks": rarely},
    )
    return judged, Panel("speed-up against the number of workers", WORKERS, SPEEDUP, lines, "xy")


def _best(network: str, ratio: float, curve: list[Timing]) -> Timing:
    """The best number of workers, sought between the neighbours of the best one of a curve."""
    at = min(range(len(curve)), key=lambda place: curve[place].total)
    near = range(curve[max(0, at - 1)].workers, curve[min(at + 1, len(curve) - 1)].workers + 1)
    return min(timings(WORK, network, Summed(ratio), near), key=lambda one: one.total)


def _compression(found: dict[str, Timing]) -> Verdict:
    server = found["server, 100 × shorter"].workers / found["server"].workers
    ring = found["ring, 100 × shorter"].workers / found["ring"].workers
    faster = found["ring, 100 × shorter"].speedup / found["ring"].speedup
    expected = math.sqrt(100.0)
    return Verdict(
        "compression-and-workers",
        "there are ways to fight for effective communications: what shorter messages change",
        ruled(0.5 < server / expected < 2.0 and ring < 1.2 and faster > 2.0),
        server,
        f"messages 100 times shorter make {server:.1f} times as many workers worth having at a server (√100 = 10), and "
        f"{ring:.2f} times as many on a ring, where latency decides that; there they lower the floor of "
        f"{2.0 * 8.0 * WORK.nbytes / 1e10:.3g} s under a step, and the best speed-up grows {faster:.1f} times",
    )


def _tables_of_networks() -> pd.DataFrame:
    networks = {
        "over the Internet (100 Mbit/s, 20 ms, server)": "100mbit,20ms",
        "in a cluster (10 Gbit/s, 10 µs, ring)": RING,
        "in a fast cluster (100 Gbit/s, 2 µs, ring)": "100gbit,2us,ring",
    }
    rows = []
    for name, network in networks.items():
        (one,) = timings(WORK, network, Summed(), [256])
        rows.append({"network": name, "speed-up at p = 256": one.speedup, "efficiency at p = 256": one.efficiency})
    return pd.DataFrame(rows)


# ---- ring against tree -----------------------------------------------------------------------------------------------


def ring_and_tree(p: int) -> tuple[Verdict, Panel]:
    """Seconds of the forms of all-reduce over the length of the vector: latency on the left, bandwidth on the right."""
    price = Price(1e-5, 8.0 * 4.0 / 1e10)
    forms: dict[str, Collective] = {one.form: one for one in COLLECTIVES if one.operation == "all-reduce"}
    n = 2.0 ** np.arange(4, 31)

    def seconds(form: str) -> np.ndarray:
        closed: Callable[[int, int], collectives.Cost] = forms[form].closed
        return np.array([closed(p, int(one)).seconds(price) for one in n])

    ring, tree, both = seconds("ring"), seconds("tree"), seconds("rabenseifner")
    short, long = float(ring[0] / tree[0]), float(tree[-1] / ring[-1])
    crossing = float(n[np.argmax(tree > ring)])
    within = float(both[-1] / ring[-1])
    bound = np.array([collectives.lower_bound("all-reduce", p, int(one), price) for one in n])
    lines = [Series(form, n, values) for form, values in (("ring", ring), ("tree", tree), ("rabenseifner", both))]
    lines += [Series("star", n, seconds("star")), Series("no form is below", n, bound, dashed=True)]
    verdict = Verdict(
        "ring-against-tree",
        "(what the slides leave out) is the ring the right all-reduce?",
        ruled(short > 2.0 and long > 2.0 and within < 1.01 and ring[-1] < 1.01 * bound[-1]),
        crossing,
        f"for long vectors: on {p} nodes (10 µs, 10 Gbit/s) it is as fast as any form can be, {long:.1f} times "
        f"faster than a tree; short ones it takes {short:.0f} times longer for, up to about {crossing:.1e} "
        f"numbers. Rabenseifner's form has the better of both ({within:.3f} of the ring for long vectors)",
    )
    return verdict, Panel(f"forms of all-reduce, p = {p}", "numbers in the vector", "seconds", lines, "xy")
