"""The trace: one row per recorded iteration of every curve, its columns and how they become a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

RUNNING = "running"  # every row of a curve but its last
DONE = "done"  # a limit was reached: rounds, iterations or bytes
REACHED = "reached"  # the target gap was reached
DIVERGED = "diverged"


@dataclass(frozen=True)
class Row:
    """One recorded iteration of one curve. Everything is cumulative since x^0; NaN where something is not known.

    uplink, downlink : mean bytes per worker; the `_max` columns are the worker's who sent or received most.
    messages : both directions, all workers.
    gradients, hessians, products : full passes over the data per worker (one full gradient of every worker is 1); a
        product of the Hessian with a vector is a pass of its own.
    server_gradients, server_hessians : the same for the server's own oracle, whose products are among its gradients.
    compute_seconds : measured, all of this process' workers one after the other, without evaluation and compilation.
    virtual_seconds : the virtual time of an asynchronous method's queue; of others, where the run has delays, what
        their workers take for gradients and products, the slowest one in each round (see `laconic.lab.virtual`).
    flights, peak : flights, and the sum over flights of the largest message in bytes: what any network of equal lines
        needs to price the run.
    f, gap, grad_norm2, distance2 : f(x), f(x) - f*, ||grad f(x)||^2, ||x - x*||^2.
    gap_average : f - f* at the weighted average of the iterates, where the method's theorem is about one.
    lyapunov, bound : the theorem's Lyapunov function, and its bound on the gap.
    """

    method: str
    seed: int
    iteration: int
    rounds: int
    uplink: float
    uplink_max: int
    downlink: float
    downlink_max: int
    messages: int
    gradients: float
    hessians: float
    products: float
    server_gradients: float
    server_hessians: float
    compute_seconds: float
    virtual_seconds: float
    flights: int
    peak: int
    f: float
    gap: float
    gap_average: float
    grad_norm2: float
    distance2: float
    lyapunov: float
    bound: float
    status: str = RUNNING


_TYPES = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
# columns that runs of older versions lack, where nothing is known of them
ADDED = ("gap_average", "products", "server_hessians", "virtual_seconds")
COLUMNS = {field.name: _TYPES[str(field.type)] for field in dataclasses.fields(Row)}


def seconds_column(network: str) -> str:
    """The name of the column of simulated seconds on a network: its flights plus `compute_seconds`."""
    return f"seconds[{network}]"


def schema(networks: Sequence[str]) -> pa.Schema:
    """The columns of a trace, seconds on each network just before f."""
    fields = []
    for name, kind in COLUMNS.items():
        if name == "f":
            fields += [(seconds_column(network), pa.float64()) for network in networks]
        fields.append((name, kind))
    return pa.schema(fields)


class Trace:
    """The rows of a run, in the order in which they were recorded; each (method, seed, iteration) once."""

    def __init__(self, networks: Sequence[str]) -> None:
        self.schema = schema(networks)
        self.networks = tuple(networks)
        self._columns: dict[str, list] = {name: [] for name in self.schema.names}

    def __len__(self) -> int:
        return len(self._columns["method"])

    def add(self, row: Row, seconds: Sequence[float]) -> None:
        """Appends a row with its seconds on each network."""
        for name, value in vars(row).items():
            self._columns[name].append(value)
        for network, value in zip(self.networks, seconds, strict=True):
            self._columns[seconds_column(network)].append(value)

    def finish(self, status: str) -> None:
        """Marks the last row as its curve's end."""
        self._columns["status"][-1] = status

    def table(self) -> pa.Table:
        return pa.table(self._columns, schema=self.schema)

    def frame(self) -> pd.DataFrame:
        return self.table().to_pandas()

    @staticmethod
    def of(table: pa.Table, networks: Sequence[str]) -> Trace:
        """The trace that a table holds. Raises ValueError where its columns are not a trace's."""
        trace = Trace(networks)
        for name in ADDED:
            if name not in table.column_names:
                table = table.append_column(name, pa.array([math.nan] * len(table), pa.float64()))
        missing = [name for name in trace.schema.names if name not in table.column_names]
        if missing:
            raise ValueError(f"the trace has no column {missing[0]!r}; it was written by another version")
        for name in trace.schema.names:
            trace._columns[name] = table.column(name).to_pylist()
        return trace

    def keep(self, finished: Iterable[tuple[str, int]], current: tuple[str, int, int] | None) -> None:
        """Drops what a resumed run will record again: all but finished curves, and `current` up to its iteration."""
        whole = set(finished)
        columns = self._columns
        keys = zip(columns["method"], columns["seed"], columns["iteration"], strict=True)
        kept = [
            place
            for place, (method, seed, iteration) in enumerate(keys)
            if (method, seed) in whole
            or (current is not None and (method, seed) == current[:2] and iteration <= current[2])
        ]
        self._columns = {name: [values[place] for place in kept] for name, values in columns.items()}


def numbers(frame: pd.DataFrame, name: str) -> np.ndarray:
    """A column as float64."""
    return np.asarray(frame[name], dtype=np.float64)


def curves(frame: pd.DataFrame) -> list[tuple[str, list[pd.DataFrame]]]:
    """Every method with its curves, one per seed by iteration, in the order in which they were given."""
    found = []
    for method, group in frame.groupby("method", sort=False):
        seeds = [seed.sort_values("iteration") for _, seed in group.groupby("seed", sort=False)]
        found.append((str(method), seeds))
    return found


def finite(value: float | None) -> float | None:
    """The value for JSON, which has neither NaN nor infinity."""
    return value if value is not None and math.isfinite(value) else None
