"""Advice: predicted steps side by side, and the one sentence that follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from laconic.training.advice.link import Link
from laconic.training.advice.predict import Compute, Host, Prediction

if TYPE_CHECKING:
    from rich.table import Table

NEAR = 0.05  # of the fastest step's time: nearer than this, steps count as equally fast
ALONE = "there is one process, so there is nothing to communicate and nothing to compress"


def verdict(predicted: Mapping[str, Prediction], dense: str = "dense") -> str:
    """Which candidate to use, by speed alone.

    Candidates stand in the order in which they are preferred: the first one that takes at most 5% longer than the
    fastest, and is as much faster than the dense one, is the one to use. Where dense itself is that near to the
    fastest, nothing is worth compressing. What compression does to the
    quality of a training is not a matter of this sentence.

    >>> steps = {"dense": 1.03, "fp16": 1.02, "diloco-50": 0.975}
    >>> verdict({name: Prediction(seconds, 0.0, 0.0, 0.0, 1e7) for name, seconds in steps.items()})
    'use diloco-50: 0.975 s per step, where dense takes 1.03 s (6% faster)'
    >>> verdict({"dense": Prediction(1.0, 0.0, 0.02, 0.0, 4e7), "fp16": Prediction(1.0, 0.01, 0.0, 0.0, 2e7)})
    'do not compress here: dense is within 1% of the fastest (fp16, 1.01 s per step)'
    """
    fastest = min(predicted, key=lambda name: predicted[name].seconds)
    least = predicted[fastest].seconds
    whole = predicted[dense].seconds if dense in predicted else math.inf
    near = (name for name, one in predicted.items() if one.seconds <= (1.0 + NEAR) * least)
    chosen = next(name for name in near if name == dense or whole > (1.0 + NEAR) * predicted[name].seconds)
    taken = predicted[chosen].seconds
    if chosen == dense:
        if fastest == dense:
            return f"do not compress here: dense is the fastest, {_span(taken)} per step"
        more = max(1, round(100.0 * (taken / least - 1.0)))
        return f"do not compress here: dense is within {more}% of the fastest ({fastest}, {_span(least)} per step)"
    if dense not in predicted:
        return f"use {chosen}: {_span(taken)} per step"
    gain = (
        f"{whole / taken:.1f} times as fast" if whole > 2.0 * taken else f"{100.0 * (whole / taken - 1.0):.0f}% faster"
    )
    return f"use {chosen}: {_span(taken)} per step, where dense takes {_span(whole)} ({gain})"


def _span(seconds: float) -> str:
    least = 5e-9  # what is below is a difference of two sums
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{1e3 * seconds:.3g} ms" if seconds >= least else "0"


@dataclass(frozen=True)
class Advice:
    """What was measured, what follows for each candidate, and which of them to use.

    Attributes
    ----------
    world : processes; where there is one, nothing was measured, and nothing is predicted.
    link, host, compute : as measured; None in a world of one.
    predicted : steps by candidate, in order of preference.
    left_out : candidates that cannot serve this model, with the reason.

    >>> Advice(1, None, None, None, {}).sentence
    'there is one process, so there is nothing to communicate and nothing to compress'
    """

    world: int
    link: Link | None
    host: Host | None
    compute: Compute | None
    predicted: dict[str, Prediction]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """Which to use."""
        return verdict(self.predicted) if self.predicted else ALONE

    @property
    def heading(self) -> str:
        """What was measured, in a line."""
        if self.link is None or self.host is None or self.compute is None:
            return ALONE
        buckets, link = len(self.compute.ready), self.link
        return (
            f"{self.world} processes, {self.host.cores:g} cores each; link {link.rate}, latency "
            f"{_span(link.latency)} (fit within {100.0 * link.error:.0f}%), {100.0 * link.load:.0f}% of a core while "
            f"it carries; a step computes for {_span(self.compute.seconds)}, {buckets} bucket"
            f"{'s' * (buckets > 1)}"
        )

    @property
    def table(self) -> Table:
        """The predictions for `rich`: seconds per step and their parts, bytes of one process, speed against dense."""
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("candidate", overflow="fold")
        for title in ("step", "compute", "codec", "exposed wire", "hidden wire", "bytes/step", "speed"):
            table.add_column(title, justify="right", no_wrap=True)
        dense = self.predicted.get("dense")
        for name, one in self.predicted.items():
            parts = (one.seconds, one.compute, one.codec, one.exposed, one.hidden)
            speed = "" if dense is None else f"{dense.seconds / one.seconds:.2f}x"
            table.add_row(escape(name), *map(_span, parts), f"{one.nbytes:,.0f}", speed)
        return table

    def document(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "world": self.world,
            "link": None if self.link is None else {
                "latency": self.link.latency, "bandwidth": self.link.bandwidth, "error": self.link.error,
                "load": self.link.load,
                "curves": {name: asdict(curve) for name, curve in self.link.curves.items()},
            },
            "host": None if self.host is None else asdict(self.host),
            "compute": None if self.compute is None else {
                "forward": self.compute.forward, "backward": self.compute.backward,
                "optimizer": self.compute.optimizer, "ready": list(self.compute.ready),
            },
            "predicted": {name: {**asdict(one), "seconds": one.seconds} for name, one in self.predicted.items()},
            "left_out": self.left_out,
            "sentence": self.sentence,
        }  # fmt: skip
