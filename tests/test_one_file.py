"""One file is the whole change: a package with an entry point adds a compressor, a mechanism, a method and a problem.

Each has some thirty lines, and everything works on them with no other edit. A broken one is listed with its reason.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from laconic.cli import app
from laconic.core.keys import Keys
from laconic.core.registry import Broken, catalogue
from laconic.core.spec import example, parse
from laconic.core.theory import Setting
from laconic.runtime.local import Local

COMPRESSOR = '''"""ScaledSign: one bit per coordinate and one number."""

import math
from dataclasses import dataclass

import torch

from laconic.core import rows
from laconic.core.compressor import Compressor, Contractive, Dense
from laconic.core.entry import Source
from laconic.core.message import Slot
from laconic.wire.coding import Bits


@dataclass(frozen=True)
class ScaledSign(Compressor):
    """C(x) = (||x||_1 / d) sign(x), where sign(0) = 1. Claim: contractive with alpha = 1 / d."""

    name, example = "scaledsign", "scaledsign"
    layout = "one number of full width, then one bit per coordinate, 1 for a negative one"
    source = Source("Karimireddy, Rebjock, Stich, Jaggi", 2019, "Error feedback fixes SignSGD", "1901.09847")

    def claim(self, d, n):
        return Contractive(1.0 / d)

    def schema(self, shape, dtype, keys):
        return Slot(Bits(8 * dtype.itemsize), dtype, 1), Slot(Bits(1), torch.uint8, math.prod(shape))

    def codes(self, v, keys):
        flat = v.reshape(len(v), math.prod(v.shape[1:]))
        return rows.dot(flat.abs(), torch.ones_like(flat)) / flat.shape[1], (flat < 0).view(-1).to(torch.uint8)

    def decode(self, message, shape, dtype, keys):
        signs = 1 - 2 * message.codes[1].view(message.rows, math.prod(shape)).to(dtype)
        return Dense((message.codes[0][:, None] * signs).view(message.rows, *shape))
'''

MECHANISM = '''"""Shifted: workers send what is new since a slowly learned shift."""

from dataclasses import dataclass
from typing import Annotated

import torch

from laconic.core.compressor import Compressor
from laconic.core.entry import Interval, Source
from laconic.core.mechanism import Mechanism
from laconic.core.state import Server, Worker


@dataclass
class Memory:
    shift: Worker  # (local, *shape)
    mean: Server  # (*shape)


@dataclass(frozen=True)
class Shifted(Mechanism):
    """g = h + mean C(v_i - h_i), then h_i <- h_i + rate C(v_i - h_i). No theorem is claimed."""

    compressor: Compressor
    rate: Annotated[float, Interval(0.0, 1.0)] = 0.25

    name, example = "shifted", "shifted(natural)"
    source = Source("Mishchenko, Gorbunov, Takac, Richtarik", 2019, "Distributed learning", "1901.09269")

    async def init(self, v, link, probe=None):
        return await self.exchange(v, Memory(torch.zeros_like(v), torch.zeros(v.shape[1:], dtype=v.dtype)), link)

    async def exchange(self, v, memory, link, probe=None):
        sent = await link.uplink(self.compressor, v - memory.shift)
        estimate = memory.mean.clone()
        sent.mean.add_to(estimate)
        sent.own.add_to(memory.shift, self.rate)
        sent.mean.add_to(memory.mean, self.rate)
        return estimate, memory
'''

METHOD = '''"""Heavy ball: gradient descent with Polyak's momentum, uncompressed."""

from dataclasses import dataclass, replace
from typing import Annotated

from laconic.core.entry import Interval, Source, Stepsize
from laconic.core.method import Method, resolve
from laconic.core.state import Server
from laconic.core.theory import NoTheorem


@dataclass
class State:
    x: Server  # (*shape)
    before: Server  # (*shape), the x of one iteration ago


@dataclass(frozen=True)
class HeavyBall(Method):
    """x <- x - step grad f(x) + momentum (x - x_before). The default step is GD's 1 / L."""

    momentum: Annotated[float, Interval(0.0, 1.0, open="high")] = 0.5
    step: Stepsize = None

    name, example = "heavyball", "heavyball(momentum=0.6)"
    source = Source("Polyak", 1964, "Some methods of speeding up the convergence of iteration methods")

    def settled(self, setting):
        return replace(self, step=resolve(self.step, lambda: 1.0 / setting.constants.L.value))

    def guarantee(self, setting):
        raise NoTheorem("heavyball's rate is not stated here")

    async def init(self, oracles, link):
        return State(oracles.start(), oracles.start())

    async def iterate(self, state, oracles, link):
        x = await link.broadcast(state.x)
        sent = await link.uplink(None, oracles.gradients(x))
        return State(state.x - self.step * sent.mean.dense() + self.momentum * (state.x - state.before), state.x)

    def point(self, state):
        return state.x
'''

PROBLEM = '''"""Bowls: f_i(x) = ||x - i||^2 / 2, whose mean is minimal at the mean of 0..n-1."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch

from laconic.core.entry import Count
from laconic.core.problem import Constant, Constants, Oracles, Problem, Solution


class BowlOracles(Oracles):
    def __init__(self, d, block):
        super().__init__()
        self.shape, self.block, self.centres = (d,), block, torch.arange(block.low, block.high).double()[:, None]

    def terms(self):
        return np.ones(self.block.size, dtype=np.int64)

    def _values(self, x, rows):
        return (x - self.centres[rows]).square().sum(1) / 2

    def _gradients(self, x, rows, batch):
        return x - self.centres[rows]


@dataclass(frozen=True)
class Bowl(Problem):
    """n bowls in d dimensions, each one unit from the next in every coordinate."""

    d: Annotated[int, Count()] = 4
    workers: Annotated[int, Count()] = 3
    name, example = "bowl", "bowl(d=5)"

    @property
    def n(self):
        return self.workers

    def oracles(self, block, data_dir=None):
        return BowlOracles(self.d, block)

    def constants(self, data_dir=None):
        one, none = Constant(1.0), Constant(0.0)
        return Constants(one, (1.0,) * self.n, one, one, one, none, mu=one, mu_workers=one)

    def solution(self, data_dir=None):
        middle = (self.n - 1) / 2
        return Solution(torch.full((self.d,), middle).double(), self.d * (self.n**2 - 1) / 24, 0.0)
'''

FILES = {"scaledsign": COMPRESSOR, "shifted": MECHANISM, "heavyball": METHOD, "bowl": PROBLEM}
BROKEN = '"""Needs what is not there."""\nimport a_library_that_nobody_has\n'
RUN = ["run", "--problem", "bowl(d=5)", "--method", "heavyball", "--method", "gd(shifted(scaledsign), step=0.25)"]
Laconic = Callable[..., str]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Installs the package into a folder on the path, as pip would, and takes it away again."""
    site = tmp_path_factory.mktemp("site")
    (site / "laconic_extra").mkdir()
    (site / "laconic_extra" / "__init__.py").write_text('"""Entries of somebody else."""\n')
    for name, text in {**FILES, "broken": BROKEN}.items():
        (site / "laconic_extra" / f"{name}.py").write_text(text)
    about = site / "laconic_extra-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: laconic-extra\nVersion: 1.0\n")
    points = [f"{name} = laconic_extra.{name}" for name in (*FILES, "broken")]
    (about / "entry_points.txt").write_text("\n".join(["[laconic.entries]", *points, ""]))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        catalogue.cache_clear()
        yield site
    catalogue.cache_clear()
    for module in [module for module in sys.modules if module.startswith("laconic_extra")]:
        del sys.modules[module]


@pytest.fixture(scope="module")
def laconic(package: Path) -> Laconic:
    """Calls the command line and gives what it printed."""

    def call(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"}, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return call


def test_the_files_are_short() -> None:
    assert max(len([line for line in text.splitlines() if line.strip()]) for text in FILES.values()) < 40


@pytest.mark.parametrize("name", FILES)
def test_each_is_listed_and_shown(laconic: Laconic, name: str) -> None:
    cls = catalogue().entries[name]
    assert name in laconic("list") and name in laconic("list", cls.kind)
    listed = json.loads(laconic("list", cls.kind, "--json"))
    assert name in json.dumps(listed)
    shown = laconic("show", name)
    assert example(cls) in shown
    if cls.source is not None:
        assert str(cls.source.year) in shown and str(cls.source.year) in laconic("show", name, "--bibtex")


def test_each_is_parsed_and_checked(package: Path) -> None:
    for name in FILES:
        entry = parse(example(catalogue().entries[name]))
        assert entry.name == name and parse(str(entry)) == entry
    with pytest.raises(ValueError, match=r"^Shifted\(rate=2\) : rate must be a number in \[0, 1\]$"):
        parse("shifted(natural, rate=2)")
    with pytest.raises(ValueError, match="did you mean 'shifted'"):
        parse("shifte(natural)")


def test_a_broken_one_is_listed_with_its_reason(laconic: Laconic) -> None:
    reason = "ModuleNotFoundError: No module named 'a_library_that_nobody_has'"
    assert catalogue().broken == (Broken("laconic_extra.broken", reason),)
    listed = laconic("list")
    assert "laconic_extra.broken" in listed and "a_library_that_nobody_has" in listed
    assert reason in json.dumps(json.loads(laconic("list", "--json")))


def test_they_run_and_are_reported(laconic: Laconic, tmp_path: Path) -> None:
    out = tmp_path / "run"
    laconic(*RUN, "--rounds", "60", "--out", str(out))
    record = json.loads((out / "run.json").read_text())
    assert [one["method"] for one in record["results"]] == [RUN[4], RUN[6]]
    assert all(one["rounds"] == 60 and one["gap"] < 1e-2 for one in record["results"])
    assert [one["uplink_bytes"] for one in record["results"]] == [60 * 5 * 8, 60 * (8 + 1)]
    laconic("report", str(out))
    page = next(out.rglob("report.html")).read_text(encoding="utf-8")
    assert "heavyball" in page and "shifted(scaledsign)" in page


@pytest.mark.parametrize("text", ["heavyball", "gd(shifted(scaledsign), step=0.25)"])
def test_they_do_what_they_say_in_every_runtime(package: Path, text: str) -> None:
    problem: Any = parse("bowl(d=5, workers=3)")
    solution = problem.solution().x
    entry: Any = parse(text)
    method = entry.settled(Setting(problem.constants(), 3, (5,)))
    ends = []
    for runtime in (Local(3), Local(3, parts=2), Local(3, encoded=True), Local.debug(3)):
        oracles = [problem.oracles(link.block) for link in runtime.links]
        states = runtime.drive(*[method.init(o, link) for o, link in zip(oracles, runtime.links, strict=True)])
        for iteration in range(1, 161):
            texts = []
            for o, link, state in zip(oracles, runtime.links, states, strict=True):
                link.begin(iteration)
                texts.append(method.iterate(state, o, link))
            states = runtime.drive(*texts)
        ends.append((method.point(states[0]), runtime.ledger.uplink.tolist(), runtime.ledger.downlink.tolist()))
    for x, uplink, downlink in ends:
        torch.testing.assert_close(x, solution, rtol=0, atol=1e-6)
        assert torch.equal(x, ends[0][0]) and uplink == ends[0][1] and downlink == ends[0][2]


def test_the_compressor_keeps_its_claim_and_its_size(package: Path) -> None:
    compressor: Any = parse("scaledsign")
    keys = Keys(0, 0, "test", np.arange(4), 4)
    v = keys.normal(13)
    message = compressor.compress(v, keys)
    decoded = compressor.decode(message, (13,), v.dtype, keys).dense()
    assert message.nbytes.tolist() == [8 + 2] * 4
    assert bool(((decoded - v).square().sum(1) <= (1 - 1 / 13) * v.square().sum(1)).all())
