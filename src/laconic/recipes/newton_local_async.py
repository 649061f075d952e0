"""Second-order, local and asynchronous methods: what the slides of a line of work say, put to numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import pandas as pd

from laconic.core.entry import Count, Interval, Source
from laconic.lab.figures import Grid
from laconic.lab.recipe import Bench, Outcome, Recipe, Ruling, Verdict
from laconic.recipes._asynchronous_picture import delays
from laconic.recipes._gradskip_counts import skips
from laconic.recipes._newton_bytes import FIRST, Effort, contest
from laconic.recipes._newton_near import near
from laconic.runtime.speedup import RESNET152, Summed

NETWORKS = {
    "ring, 10 Gbit/s, 10 µs": "10gbit,10us,ring",
    "tree, 10 Gbit/s, 10 µs": "10gbit,10us,tree",
    "ring, 100 Gbit/s, 2 µs": "100gbit,2us,ring",
    "tree, 100 Gbit/s, 2 µs": "100gbit,2us,tree",
}
RATIOS = (1.0, 10.0, 100.0)
SHARES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)  # of the hardest worker's condition number


@dataclass(frozen=True)
class NewtonLocalAsync(Recipe):
    """FedNL's rates and bytes, GradSkip's gradients, where asynchronous SGD goes, and what 1024 nodes can do.

    Logistic regression on data that are shipped with the library, and on LIBSVM files where they are at hand; ridge
    regressions for the local methods; least squares in virtual time for the asynchronous ones. Steps are the theorems',
    but for first-order methods that are held against FedNL, which are tuned.

    Parameters
    ----------
    conditions : how many ridges, 0.1, 0.01 and so on, make condition numbers.
    first_order : rounds of first-order methods at most.
    files : how many of the LIBSVM files a9a and w8a are used, where they are.
    target : the gap of the contest in bytes.
    hardest : the condition number of GradSkip's hardest worker; the others have 0.3, 0.1,
        ... to 0.003 of it, where that is more than 2.
    rounds : of GradSkip, in which gradients are counted.
    step : of asynchronous methods, as a part of 1 / L_max; another one is `finer` times smaller.
    finer : see there.
    steps : of asynchronous methods at the larger step.
    seeds : for what is random in the race of GradSkip and ProxSkip.

    >>> NewtonLocalAsync().small().seeds
    1
    """

    conditions: Annotated[int, Count(2)] = 4
    first_order: Annotated[int, Count(200)] = 4000
    files: Annotated[int, Count(0)] = 2
    target: Annotated[float, Interval(0.0, 1e-3, open="low")] = 1e-10
    hardest: Annotated[float, Interval(30.0)] = 2500.0
    rounds: Annotated[int, Count(100)] = 800
    step: Annotated[float, Interval(0.0, 0.5, open="low")] = 0.1
    finer: Annotated[float, Interval(1.0, open="low")] = 10.0
    steps: Annotated[int, Count(200)] = 3000
    seeds: Annotated[int, Count(1)] = 3

    name: ClassVar[str] = "newton_local_async"
    example: ClassVar[str] = "newton_local_async"
    title: ClassVar[str] = "Second-order, local and asynchronous methods: what slides and numbers say"
    source: ClassVar[Source | None] = Source(
        "Safaryan",
        2024,
        "Slides on contributions to distributed optimization",
        where="second-order, infrequent and asynchronous communication",
    )

    def small(self) -> NewtonLocalAsync:
        return NewtonLocalAsync(2, 560, 0, 1e-10, 36.0, 300, 0.2, 4.0, 240, 1)

    def run(self, bench: Bench) -> Outcome:
        minutes: dict[str, float] = {}
        weights = [float(f"1e-{1 + power}") for power in range(self.conditions)]
        kappas = [self.hardest * share for share in SHARES if self.hardest * share > 2.0]
        thorough = self.first_order >= 1000
        effort = Effort(
            self.files,
            tuple(FIRST) if thorough else ("Nesterov", "ADIANA"),
            "2^0..2^3" if thorough else "2^0..2^2",
            int(thorough),
            min(self.first_order, 2000),
            150 if thorough else 60,
            self.target,
        )
        parts = [
            speedup(),
            near(weights, 30, self.first_order, minutes),
            contest(effort, bench, minutes),
            skips(kappas, self.rounds, self.seeds, minutes),
            delays((self.step, self.step / self.finer), self.steps, minutes),
        ]
        figures: dict[str, Grid] = {}
        tables: dict[str, pd.DataFrame] = {}
        for part in parts:
            figures |= part.figures
            tables |= part.tables
        return Outcome([verdict for part in parts for verdict in part.verdicts], figures, tables, minutes)


def speedup() -> Outcome:
    """19 days on a node, and what 1024 of them can do on networks, with 90 epochs and 32 pictures a node assumed."""
    perfect, claimed = RESNET152.perfect / 60.0, RESNET152.claimed / 60.0
    rows = []
    for label, network in NETWORKS.items():
        row: dict[str, str | float] = {"network": label}
        for ratio in RATIOS:
            row[f"minutes, messages {ratio:g} times shorter"] = RESNET152.seconds(network, Summed(ratio)) / 60.0
        rows.append(row | {"ratio for 95% of perfect": RESNET152.needed_ratio(network, 0.95)})
    table = pd.DataFrame(rows)
    least = float(table.iloc[:, 1].min())
    beyond = RESNET152.implied_speedup / RESNET152.workers
    verdict = Verdict(
        "nineteen-days",
        "ResNet-152 on ImageNet takes 19 days on one node and 25 minutes on 1024, in theory",
        Ruling.HOLDS if beyond <= 1.0 else Ruling.CORRECTED if beyond < 1.1 else Ruling.FAILS,
        RESNET152.implied_speedup,
        f"that is {RESNET152.implied_speedup:.0f} times faster on {RESNET152.workers} nodes; perfect division gives "
        f"{perfect:.1f} minutes, {claimed:g} leave less than nothing for communication, which even takes it to "
        f"{least:.1f} on the best of {len(rows)} networks (90 epochs, 32 pictures a node and step: assumed)",
    )
    return Outcome([verdict], {}, {"nineteen_days": table})
