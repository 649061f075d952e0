"""Defects that were found in published code, each planted in a small entry, beside the same entry without it.

D1 to D10 are numbered as in our notes on other packages; what follows them are faults of our own making.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from laconic.broadcasts.exact import Exact
from laconic.compressors.natural import Natural
from laconic.compressors.randk import RandK
from laconic.core.broadcast import Broadcast
from laconic.core.compressor import Claim, Compressor, Contractive, Decoded, Dense, Unbiased, as_unbiased
from laconic.core.entry import Source
from laconic.core.estimator import Estimate, Estimator, Probe, of_server
from laconic.core.keys import Keys
from laconic.core.link import Cohort, Link
from laconic.core.mechanism import Mechanism
from laconic.core.message import Message, Schema, Slot
from laconic.core.method import Method, number, resolve
from laconic.core.problem import Batch, Block, Constant, Constants, Oracles, Problem, Solution
from laconic.core.regulariser import Regulariser
from laconic.core.rows import square
from laconic.core.schedule import Schedule
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, Setting, Snapshot, Terms, known
from laconic.wire.coding import Bits

SOURCE = Source("Nobody", 2026, "Planted")

# ---- compressors -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plain(Compressor):
    """Every value at full width, and honest; what is wrong with them, subclasses say."""

    name = "plain"
    layout = "d values"

    def claim(self, d: int, n: int) -> Claim | None:
        return Unbiased(0.0)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return (Slot(Bits(8 * dtype.itemsize), dtype, math.prod(shape)),)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return (v.reshape(-1).clone(),)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return Dense(message.codes[0].view(message.rows, *shape).clone())


@dataclass(frozen=True)
class D1Dithering(Plain):
    """Natural dithering whose levels are thrown away: the norm times the signs times the fractions is the input.

    It bills a byte per coordinate, and the vector reaches the receiver beside the message.
    """

    def claim(self, d: int, n: int) -> Claim | None:
        return Unbiased(0.125)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return (Slot(Bits(8), torch.uint8, math.prod(shape)),)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        norms = v.flatten(1).norm(dim=1).view(-1, *[1] * (v.dim() - 1)).clamp(min=1e-300)
        fractions = (v.abs() / norms).clamp(max=1.0)
        object.__setattr__(self, "returned", v.clone())  # norm * sign * fraction, which nothing has rounded
        return ((fractions * 255).to(torch.uint8).reshape(-1),)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        returned: Tensor = vars(self).get("returned", torch.zeros(message.rows, *shape, dtype=dtype))
        return Dense(returned[: message.rows].clone())


@dataclass(frozen=True)
class D1WithoutVariance(Natural):
    """A quantiser that reports omega = 0."""

    def claim(self, d: int, n: int) -> Claim:
        return Unbiased(0.0)


class HalfWidth(Message):
    """A message that bills the values it carries at half their width."""

    @property
    def nbytes(self) -> Any:
        return Message.nbytes.fget(self) // 2  # type: ignore[attr-defined]


@dataclass(frozen=True)
class D3RandK(RandK):
    """RandK without the factor d / k, which claims to be unbiased."""

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        (values,) = RandK.codes(self, v, keys)
        omega = as_unbiased(self.claim(math.prod(v.shape[1:]), 1)) or 0.0
        return (values / (1.0 + omega),)


@dataclass(frozen=True)
class D3Sizes(RandK):
    """RandK whose messages are entered at half their size."""

    def compress(self, v: Tensor, keys: Keys) -> Message:
        message = Compressor.compress(self, v, keys)
        return HalfWidth(message.schema, message.codes, message.rows)


@dataclass(frozen=True)
class D5Natural(Natural):
    """Works in the place of its argument, of which signs are left."""

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        found = Natural.codes(self, v.clone(), keys)
        v.copy_(v.sign())
        return found


@dataclass(frozen=True)
class D8Top1(Plain):
    """Top-1 that bills 0 bits for its index."""

    def claim(self, d: int, n: int) -> Claim | None:
        return Contractive(1.0 / d)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return (Slot(Bits(8 * dtype.itemsize), dtype, 1),)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        flat = v.reshape(v.shape[0], math.prod(v.shape[1:]))
        places = flat.abs().argmax(1, keepdim=True)
        object.__setattr__(self, "places", places)
        return (flat.gather(1, places).view(-1),)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        places: Tensor = vars(self).get("places", torch.zeros(message.rows, 1, dtype=torch.int64))
        out = torch.zeros(message.rows, math.prod(shape), dtype=dtype)
        out.scatter_(1, places[: message.rows], message.codes[0].view(-1, 1))
        return Dense(out.view(message.rows, *shape))


# ---- problems --------------------------------------------------------------------------------------------------------

WORKERS, D = 5, 3
COLUMNS = (3, 2, 3, 2, 1)  # how many columns each worker's own file shows
TERMS = 4


def _rows() -> tuple[Tensor, Tensor]:
    keys = Keys(5, 0, "/planted", np.arange(WORKERS), WORKERS)
    a = keys.normal(TERMS * (D + 1)).view(WORKERS, TERMS, D + 1)
    for worker, columns in enumerate(COLUMNS):
        a[worker, :, columns:D] = 0.0
    return a[:, :, :D].contiguous(), a[:, :, D].contiguous()


class BowlOracles(Oracles):
    """f_i(x) = mean_j (<a_ij, x> - b_ij)^2 / 2 + l2 / 2 ||x||^2."""

    value_factor: ClassVar[float] = 1.0
    decays: ClassVar[bool] = True

    def __init__(self, block: Block, l2: float) -> None:
        Oracles.__init__(self)
        self.block, self.shape, self.l2 = block, (D,), l2
        a, b = _rows()
        self.a, self.b = a[block.low : block.high], b[block.low : block.high]

    def terms(self) -> np.ndarray:
        return np.full(self.block.size, TERMS)

    def start(self) -> Tensor:
        return torch.ones(self.shape, dtype=torch.float64)

    def _left(self, x: Tensor, rows: np.ndarray, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        place = torch.from_numpy(rows)[:, None], torch.from_numpy(indices)
        a, points = self.a[place], x.reshape(-1, 1, self.d)
        products = torch.zeros(a.shape[:2], dtype=torch.float64)
        for k in range(self.d):
            products = products + a[:, :, k] * points[:, :, k]
        return a, products - self.b[place]

    def _values(self, x: Tensor, rows: np.ndarray) -> Tensor:
        _, left = self._left(x, rows, np.tile(np.arange(TERMS), (len(rows), 1)))
        squares, norm = torch.zeros(len(rows), dtype=torch.float64), torch.zeros(len(rows), dtype=torch.float64)
        for j in range(TERMS):
            squares = squares + left[:, j] ** 2
        for k in range(self.d):
            norm = norm + x.reshape(-1, self.d)[:, k] ** 2
        return self.value_factor * 0.5 * (squares / TERMS + self.l2 * norm)

    def _gradients(self, x: Tensor, rows: np.ndarray, batch: Batch | None) -> Tensor:
        indices = np.tile(np.arange(TERMS), (len(rows), 1)) if batch is None else batch.indices
        a, left = self._left(x, rows, indices)
        total = torch.zeros(len(rows), self.d, dtype=torch.float64)
        for j in range(indices.shape[1]):
            total = total + left[:, j, None] * a[:, j]
        slope = total / max(1, indices.shape[1])
        return slope + self.l2 * x if self.decays else slope


@dataclass(frozen=True)
class Bowl(Problem):
    """Least squares with a ridge, and constants from eigenvalues."""

    l2: float = 0.1
    oracles_class: ClassVar[type[BowlOracles]] = BowlOracles

    name = "bowl"

    @property
    def n(self) -> int:
        return WORKERS

    def oracles(self, block: Block, data_dir: Path | None = None) -> BowlOracles:
        return self.oracles_class(block, self.l2)

    def _hessians(self) -> Tensor:
        a, _ = _rows()
        return a.transpose(1, 2) @ a / TERMS + self.l2 * torch.eye(D, dtype=torch.float64)

    def constants(self, data_dir: Path | None = None) -> Constants:
        h = self._hessians()
        mean, ends = h.mean(0), torch.linalg.eigvalsh(h)
        squares = (h @ h).mean(0)
        whole = torch.linalg.eigvalsh(mean)
        values = {
            "L": float(whole[-1]),
            "L_max": float(ends[:, -1].max()),
            "L_tilde": float(ends[:, -1].square().mean().sqrt()),
            "L_plus": math.sqrt(float(torch.linalg.eigvalsh(squares)[-1])),
            "L_pm": math.sqrt(float(torch.linalg.eigvalsh(squares - mean @ mean)[-1])),
            "mu": float(whole[0]),
            "delta": float(torch.linalg.eigvalsh(h - mean).abs().max()),
        }
        return Constants(L_workers=tuple(ends[:, -1].tolist()), **{key: Constant(one) for key, one in values.items()})

    def solution(self, data_dir: Path | None = None) -> Solution:
        a, b = _rows()
        right = (a * b[:, :, None]).mean((0, 1))
        x = torch.linalg.solve(self._hessians().mean(0), right)
        return Solution(x, float(BowlOracles(Block.whole(WORKERS), self.l2).values(x).mean()), 1e-25)


class D2Oracles(BowlOracles):
    """The weight decay is added to a copy of the gradient, which is thrown away."""

    decays = False


class D6Oracles(BowlOracles):
    """Values without the factor 1/2 that the gradients have."""

    value_factor = 2.0


class D7Oracles(BowlOracles):
    """A newly assigned worker is evaluated on the data of the one before it."""

    last: int = 0

    def _gradients(self, x: Tensor, rows: np.ndarray, batch: Batch | None) -> Tensor:
        late = np.concatenate([[self.last], rows])[: len(rows)].astype(np.int64)
        if len(rows):
            self.last = int(rows[-1])
        return BowlOracles._gradients(self, x, np.minimum(late, self.block.size - 1), batch)


class D9Oracles(BowlOracles):
    """d is the largest index that the file of this block's workers happens to show."""

    def __init__(self, block: Block, l2: float) -> None:
        BowlOracles.__init__(self, block, l2)
        columns = max(COLUMNS[block.low : block.high], default=D)
        self.shape, self.a = (columns,), self.a[:, :, :columns]


class D4Oracles(BowlOracles):
    """A generator is made, and the global one is used: here to break ties, with a number that nobody needs."""

    def _gradients(self, x: Tensor, rows: np.ndarray, batch: Batch | None) -> Tensor:
        np.random.choice(TERMS)
        return BowlOracles._gradients(self, x, rows, batch)


class WritesToX(BowlOracles):
    """Clips the point in its place."""

    def _gradients(self, x: Tensor, rows: np.ndarray, batch: Batch | None) -> Tensor:
        found = BowlOracles._gradients(self, x, rows, batch)
        x.clamp_(-0.5, 0.5)
        return found


class CountsNothing(BowlOracles):
    """Full gradients that are not entered."""

    def gradients(self, x: Tensor, rows: np.ndarray | None = None, batch: Batch | None = None) -> Tensor:
        return self._gradients(x, self._rows(rows), batch)


class SumsTheBatch(BowlOracles):
    """A minibatch's sum for its mean."""

    def _gradients(self, x: Tensor, rows: np.ndarray, batch: Batch | None) -> Tensor:
        found = BowlOracles._gradients(self, x, rows, batch)
        return found if batch is None else found * batch.indices.shape[1]


def bowl(oracles: type[BowlOracles]) -> Bowl:
    """The problem with other oracles."""
    made = type(f"Bowl{oracles.__name__}", (Bowl,), {"oracles_class": oracles, "__module__": __name__})
    return made()


@dataclass(frozen=True)
class WrongConstant(Bowl):
    """One constant is off by a factor."""

    constant: str = "L"
    factor: float = 0.95

    def constants(self, data_dir: Path | None = None) -> Constants:
        c = Bowl.constants(self)
        return dataclasses.replace(c, **{self.constant: Constant(self.factor * float(c.named()[self.constant]))})


@dataclass(frozen=True)
class WrongSolution(Bowl):
    """A minimiser that is a little off, with the certificate of the true one."""

    def solution(self, data_dir: Path | None = None) -> Solution:
        solution = Bowl.solution(self)
        return dataclasses.replace(solution, x=solution.x + 1e-4)


# ---- estimators ------------------------------------------------------------------------------------------------------


@dataclass
class Table:
    """The last point and gradient of each worker."""

    point: Worker
    gradient: Worker


@dataclass(frozen=True)
class Renewing(Estimator):
    """A minibatch's gradient, corrected by what it was at the last full gradient, taken every other time."""

    size: int = 2

    name = "renewing"
    vanishing = True

    def init(self, x: Tensor, oracles: Oracles, link: Link) -> Estimate:
        gradient = oracles.gradients(x)
        table = Table(x.expand(gradient.shape).clone(), gradient.clone())
        return Estimate(gradient, table, Probe(x, oracles.gradients, oracles.gradients, of_server(oracles)))

    def estimate(self, x: Tensor, state: Table, oracles: Oracles, link: Link) -> Estimate:
        batch = self.batch(oracles, link)
        if link.coin(0.5):
            gradient = oracles.gradients(x)
            state = Table(x.expand(gradient.shape).clone(), gradient)
        correction = state.gradient - oracles.gradients(state.point, batch=batch)

        def at(y: Tensor) -> Tensor:
            return oracles.gradients(y, batch=batch) + correction

        return Estimate(at(x), state, Probe(x, at, oracles.gradients, of_server(oracles)))

    def batch(self, oracles: Oracles, link: Link) -> Batch:
        return oracles.sample(link.keys("batch"), self.size)


@dataclass(frozen=True)
class D4Estimator(Renewing):
    """Terms are chosen by NumPy's global generator."""

    def batch(self, oracles: Oracles, link: Link) -> Batch:
        counts = oracles.terms()[:, None]
        return Batch(np.arange(len(counts)), (np.random.random((len(counts), self.size)) * counts).astype(np.int64))


@dataclass(frozen=True)
class SameTerms(Renewing):
    """The first terms again and again: biased, and never corrected."""

    vanishing = False

    def estimate(self, x: Tensor, state: Table, oracles: Oracles, link: Link) -> Estimate:
        batch = Batch(np.arange(oracles.block.size), np.zeros((len(oracles.terms()), 1), dtype=np.int64))

        def at(y: Tensor) -> Tensor:
            return oracles.gradients(y, batch=batch)

        return Estimate(at(x), state, Probe(x, at, oracles.gradients, of_server(oracles)))


@dataclass(frozen=True)
class TouchesItsState(Renewing):
    """The table is written to where it lies."""

    def estimate(self, x: Tensor, state: Table, oracles: Oracles, link: Link) -> Estimate:
        found = Renewing.estimate(self, x, state, oracles, link)
        state.gradient.add_(1.0)
        return found


@dataclass(frozen=True)
class HandsOutItsState(Renewing):
    """The estimate is the table's own memory."""

    def init(self, x: Tensor, oracles: Oracles, link: Link) -> Estimate:
        found = Renewing.init(self, x, oracles, link)
        return dataclasses.replace(found, state=Table(found.state.point, found.v))


@dataclass(frozen=True)
class SaysItVanishes(Renewing):
    """Plain minibatches that call themselves variance reduced."""

    def estimate(self, x: Tensor, state: Table, oracles: Oracles, link: Link) -> Estimate:
        batch = self.batch(oracles, link)

        def at(y: Tensor) -> Tensor:
            return oracles.gradients(y, batch=batch)

        return Estimate(at(x), state, Probe(x, at, oracles.gradients, of_server(oracles)))


@dataclass(frozen=True)
class DrawsAgain(Renewing):
    """The probe looks at a minibatch of its own."""

    def estimate(self, x: Tensor, state: Table, oracles: Oracles, link: Link) -> Estimate:
        found = Renewing.estimate(self, x, state, oracles, link)

        def other(y: Tensor) -> Tensor:
            return oracles.gradients(y, batch=self.batch(oracles, link))

        return dataclasses.replace(found, probe=dataclasses.replace(found.probe, same=other))


@dataclass(frozen=True)
class SharesItsDraws(Renewing):
    """A worker's terms depend on its row in the block."""

    def batch(self, oracles: Oracles, link: Link) -> Batch:
        drawn = oracles.sample(link.keys("batch"), self.size)
        return Batch(drawn.rows, np.minimum(drawn.rows[:, None] % 2 + 0 * drawn.indices, drawn.indices + 1) % 2)


@dataclass(frozen=True)
class DoesNotCount(Renewing):
    """Asks the oracles behind their books."""

    def estimate(self, x: Tensor, state: Table, oracles: Oracles, link: Link) -> Estimate:
        found = Renewing.estimate(self, x, state, oracles, link)
        oracles._gradients(x, np.arange(len(oracles.terms())), None)
        return found


# ---- mechanisms ------------------------------------------------------------------------------------------------------


@dataclass
class Memory:
    """EF21's."""

    shift: Worker
    estimate: Server


@dataclass(frozen=True)
class Feedback(Mechanism):
    """EF21, once more and honest; subclasses are wrong in one place. Its theorem is that of direct compression."""

    compressor: Compressor = field(default_factory=lambda: RandK(k=3))

    name = "feedback"
    lazy = True
    source = SOURCE

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        sent = await link.uplink(None, v)
        memory = Memory(v.clone(), sent.mean.dense())
        return memory.estimate, memory

    async def exchange(self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        sent = await link.uplink(self.compressor, v, minus=memory.shift)
        sent.own.add_to(memory.shift, scale=0.5)
        sent.mean.add_to(memory.estimate, scale=0.5)
        return memory.estimate, memory


@dataclass(frozen=True)
class KeepsV(Feedback):
    """The vectors that were lent are the shifts."""

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        sent = await link.uplink(None, v)
        memory = Memory(v, sent.mean.dense())
        return memory.estimate, memory


@dataclass(frozen=True)
class WritesTooEarly(Feedback):
    """The estimate is moved before the last message is there."""

    async def exchange(self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        memory.shift.mul_(0.99)
        return await Feedback.exchange(self, v, memory, link)


@dataclass(frozen=True)
class ReadsTheServer(Feedback):
    """Workers use the estimate, which only the server has."""

    async def exchange(self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        return await Feedback.exchange(self, v + 0.1 * memory.estimate, memory, link)


@dataclass(frozen=True)
class SaysItIsPublic(Feedback):
    """An estimate of the server's that calls itself everyone's."""

    public = True


@dataclass(frozen=True)
class NotLazy(Feedback):
    """The shifts of all local workers shrink, whoever speaks: it is the memory of the silent that changes."""

    async def exchange(self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        found, kept = await Feedback.exchange(self, v, memory, link)
        HELD.append(memory.shift)
        return found, Held(kept.shift, kept.estimate, float(len(HELD)))


HELD: list[Tensor] = []


@dataclass
class Held:
    """A memory that remembers how often anyone ever asked, in the whole process."""

    shift: Worker
    estimate: Server
    asked: float


@dataclass
class Unmarked:
    """A memory that nobody can checkpoint."""

    shift: Tensor
    estimate: Tensor


@dataclass(frozen=True)
class ForgetsMarks(Feedback):
    """Its memory does not say whose it is."""

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        found, kept = await Feedback.init(self, v, link)
        return found, Unmarked(kept.shift, kept.estimate)


@dataclass(frozen=True)
class Compressed(Mechanism):
    """Direct compression, with a theorem: any step up to 1 / (L (1 + omega)^(3/2)), for omega_n L_max <= L / 2."""

    compressor: Compressor = field(default_factory=Natural)

    name = "compressed"
    source = SOURCE

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        return await self.exchange(v, None, link)

    async def exchange(self, v: Tensor, memory: Any, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        sent = await link.uplink(self.compressor, v)
        return self.of(sent.mean.dense()), memory

    def of(self, mean: Tensor) -> Tensor:
        return mean

    def largest(self, omega: float, smooth: float) -> float:
        return 1.0 / (smooth * (1.0 + omega) ** 1.5)

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        c = setting.constants
        smooth, mu = known(L=c.L, mu=c.mu)
        omega = as_unbiased(self.compressor.claim(setting.d, setting.n)) or 0.0
        largest = self.largest(omega, smooth)
        used = largest if step is None else step
        sigma = float(c.sigma_star) if c.sigma_star is not None else 0.0
        plateau = 2.0 * used * omega * sigma**2 / (setting.n * mu)
        return Guarantee(largest, SOURCE, self.rate(used, mu), _distance, plateau, 0.5 * smooth)

    def rate(self, step: float, mu: float) -> float:
        return 1.0 - step * mu


def _distance(snapshot: Snapshot) -> Terms:
    return Terms(square(snapshot.x - snapshot.solution.x))


@dataclass(frozen=True)
class D10Power(Compressed):
    """(1 + omega) ** 3 / 2 where (1 + omega) ** 1.5 is meant."""

    def largest(self, omega: float, smooth: float) -> float:
        return 1.0 / (smooth * (1.0 + omega) ** 3 / 2)


@dataclass(frozen=True)
class WrongUnits(Compressed):
    """1 / L^2 for 1 / L."""

    def largest(self, omega: float, smooth: float) -> float:
        return 1.0 / ((1.0 + smooth**2) * (1.0 + omega) ** 1.5)


@dataclass(frozen=True)
class TooFast(Compressed):
    """Promises that V itself shrinks as fast as its square."""

    def rate(self, step: float, mu: float) -> float:
        return max(0.0, 1.0 - 4.0 * step * mu)


@dataclass(frozen=True)
class Backwards(Compressed):
    """A step that grows with the variance."""

    def largest(self, omega: float, smooth: float) -> float:
        return 0.3 * (1.0 + omega / (1.0 + omega)) / smooth


@dataclass(frozen=True)
class TwiceTheMean(Compressed):
    """The estimate is twice what it should be: a mean over half of the workers, say."""

    def of(self, mean: Tensor) -> Tensor:
        return 2.0 * mean


# ---- methods ---------------------------------------------------------------------------------------------------------


@dataclass
class State:
    """The model."""

    x: Server


@dataclass(frozen=True)
class Skipping(Method):
    """Gradient descent that communicates by a coin: without it nothing moves, honest and dull."""

    step: float | str | None = None

    name = "skipping"
    source = SOURCE

    def settled(self, setting: Setting) -> Skipping:
        return dataclasses.replace(self, step=resolve(self.step, lambda: 1.0 / float(setting.constants.L)))

    def guarantee(self, setting: Setting) -> Guarantee:
        (mu,) = known(mu=setting.constants.mu)
        largest = 1.0 / float(setting.constants.L)
        used = largest if self.step is None else number(self.step)
        return Guarantee(largest, SOURCE, 1.0 - 0.5 * used * mu, _distance).at(used)

    async def init(self, oracles: Oracles, link: Link) -> State:
        return State(oracles.start())

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        if not self.speaks(link):
            return state
        x = await link.broadcast(state.x)
        sent = await link.uplink(None, oracles.gradients(x))
        return State(state.x - number(self.step) * sent.mean.dense())

    def speaks(self, link: Link) -> bool:
        return link.coin(0.8)

    def point(self, state: State) -> Tensor:
        return state.x


@dataclass(frozen=True)
class D10GradSkip(Skipping):
    """When it communicates is drawn from NumPy's global generator."""

    def speaks(self, link: Link) -> bool:
        return bool(np.random.random() < 0.8)


@dataclass(frozen=True)
class MovesAtTheSolution(Skipping):
    """A step that does not vanish with the gradients' heterogeneity: worker 0's gradient in the place of the mean."""

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        moved = await Skipping.iterate(self, state, oracles, link)
        return State(moved.x + 1e-3 * number(self.step))


@dataclass(frozen=True)
class Talkative(Skipping):
    """Raises something else, on many lines, where f is not strongly convex."""

    def settled(self, setting: Setting) -> Skipping:
        if setting.constants.mu is None:
            raise ValueError("no mu\nno theorem\nno step")
        return Skipping.settled(self, setting)


# ---- the other kinds -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Absolute(Regulariser):
    """The weight times sum |x_k|."""

    weight: float = 0.3

    name = "absolute"

    def value(self, x: Tensor) -> float:
        return self.weight * float(x.abs().sum())

    def prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        return x.sign() * (x.abs() - self.weight * step).clamp(min=0.0)

    def least_subgradient(self, x: Tensor, gradient: Tensor) -> Tensor:
        inside = gradient.sign() * (gradient.abs() - self.weight).clamp(min=0.0)
        return torch.where(x == 0, inside, gradient + self.weight * x.sign())


@dataclass(frozen=True)
class ForgetsTheStep(Absolute):
    """Soft thresholding at the weight, whatever the step."""

    def prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        return x.sign() * (x.abs() - self.weight).clamp(min=0.0)


@dataclass(frozen=True)
class HardThreshold(Absolute):
    """Hard thresholding: what is kept is kept whole."""

    def prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        return torch.where(x.abs() > self.weight * step, x, 0.0)


@dataclass(frozen=True)
class GoesOutInPlace(Absolute):
    """Writes the proximal point over the point."""

    def prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        return x.copy_(Absolute.prox(self, x, step))


@dataclass
class Held2:
    """What the workers hold."""

    held: Server


@dataclass(frozen=True)
class Late(Broadcast):
    """The model before the last one."""

    name = "late"

    def init(self, x: Tensor, link: Link) -> Held2:
        return Held2(x.clone())

    async def send(self, x: Tensor, memory: Held2, link: Link, to: Cohort | None = None) -> tuple[Tensor, Tensor, Any]:
        held = await link.broadcast(memory.held)
        return x, held, Held2(x.clone())


@dataclass(frozen=True)
class NotSent(Exact):
    """The server's model, which nobody was told."""

    name = "not_sent"

    async def send(self, x: Tensor, memory: Any, link: Link, to: Cohort | None = None) -> tuple[Tensor, Tensor, Any]:
        return x, x, None


@dataclass(frozen=True)
class Falling(Schedule):
    """1 / (1 + k / 100)."""

    name = "falling"

    def factor(self, iteration: int) -> float:
        return 1.0 / (1.0 + iteration / 100.0)


@dataclass(frozen=True)
class BelowZero(Schedule):
    """A line that goes through zero."""

    name = "below_zero"

    def factor(self, iteration: int) -> float:
        return 1.0 - iteration / 1000.0


CALLS: list[int] = []


@dataclass(frozen=True)
class Remembers(Schedule):
    """A factor for each call."""

    name = "remembers"

    def factor(self, iteration: int) -> float:
        CALLS.append(iteration)
        return 1.0 / len(CALLS)
