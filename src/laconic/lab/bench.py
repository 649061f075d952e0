"""How fast compressors are, and how much they save: each figure beside a copy of the vector and plain torch.

Machines are noisy, so no figure stands alone: every repetition times a one-pass `copy_` of the same vector,
ours and the plain torch expression one after another, and medians of their ratios are reported.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laconic.core.compressor import AB, Claim, Compressor, Contractive, Unbiased
from laconic.core.keys import Keys
from laconic.core.message import Message
from laconic.core.registry import catalogue
from laconic.core.spec import example, parse

RESNET50 = 25_557_032  # parameters: the vector that the speeds are about
SIZES = 1 << 20  # coordinates of the vector that the sizes are about
_TOSSES = 200  # steps that say how often a compressor is silent

Action = Callable[[], object]


@dataclass(frozen=True)
class Speed:
    """One line: what was timed, its median seconds, and medians over the repetitions of what others took beside it."""

    what: str
    seconds: float
    copies: float  # ours / a copy of the vector
    torch: str  # the plain torch expression, "" where there is none
    torch_seconds: float
    gain: float  # plain torch / ours
    first: float  # seconds of the first call: compiling, or loading what was compiled


@dataclass(frozen=True)
class Size:
    """One line: a compressor's claim beside the bytes it saves on a Gaussian vector."""

    spec: str
    claim: str
    needed: float  # 1 + omega, or 1 / alpha: by so much more rounds than without it, at worst
    saving: float  # dense bytes / message bytes, beta
    bits: float  # per coordinate
    compress: float  # seconds, packing included
    decode: float  # seconds, unpacking included


def _keys(step: int = 0) -> Keys:
    return Keys(0, step, "/bench", np.zeros(1, dtype=np.int64), 1)


def _seconds(action: Action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _compare(
    what: str, ours: Action, copy: Action, plain: tuple[str, Action] | None, repeats: int, slow: int = 3
) -> Speed:
    """Times ours, a copy and plain torch in turn; plain torch, often much slower, in the first `slow` turns alone."""
    first = _seconds(ours)
    copy()
    mine, copies, theirs = [], [], []
    for turn in range(repeats):
        copies.append(_seconds(copy))
        mine.append(_seconds(ours))
        if plain and turn < slow:
            theirs.append(_seconds(plain[1]))
    ratios = [one / other for one, other in zip(mine, copies, strict=True)]
    gains = [one / other for one, other in zip(theirs, mine, strict=False)]
    return Speed(
        what,
        statistics.median(mine),
        statistics.median(ratios),
        plain[0] if plain else "",
        statistics.median(theirs) if theirs else math.nan,
        statistics.median(gains) if gains else math.nan,
        first,
    )


# ---- speed -----------------------------------------------------------------------------------------------------------


class _Trip:
    """A compressor's way there and back for one vector: made, packed, unpacked and decoded."""

    def __init__(self, spec: str, v: Tensor) -> None:
        compressor = parse(spec)
        assert isinstance(compressor, Compressor)
        self.compressor, self.v, self.shape = compressor, v, tuple(v.shape)
        self.pack()

    def pack(self) -> None:
        self.message = self.compressor.message(self.v[None], _keys())
        self.packed = self.message.pack()

    def unpack(self) -> None:
        schema = self.compressor.schema(self.shape, self.v.dtype, _keys())
        heard = Message.unpack(self.packed, np.array([len(self.packed)]), schema)
        self.decoded = self.compressor.decode(heard, self.shape, self.v.dtype, _keys()).dense()

    def both(self) -> None:
        self.pack()
        self.unpack()


def _gaussian(d: int, name: str) -> Tensor:
    """d standard normal numbers in float32, drawn in rows so that their float64 forms stay small together."""
    rows = 1 + d // (1 << 16)
    keys = [Keys(0, 0, f"/bench/{name}", np.array([row]), rows) for row in range(rows)]
    return torch.cat([one.normal(-(-d // rows))[0].float() for one in keys])[:d]


def _vectors(d: int) -> dict[str, Tensor]:
    gaussian = _gaussian(d, "gaussian")
    return {
        "Gaussian": gaussian,
        "all equal": torch.full((d,), -0.5),
        "three values": (1.4 * gaussian).round().clamp(-1, 1),
        "heavy tails": gaussian / _gaussian(d, "other"),  # Cauchy
        "sorted": gaussian.sort().values,
    }


def _selection(vectors: dict[str, Tensor], copy: Action, repeats: int) -> Iterator[Speed]:
    gaussian = vectors["Gaussian"]
    d = len(gaussian)

    def top(v: Tensor, k: int) -> Action:
        compressor = parse(f"topk(k={k})")
        assert isinstance(compressor, Compressor)
        return lambda: compressor.codes(v[None], _keys())

    k = max(1, d // 100)
    plain = "torch.topk(x.abs(), k)", lambda: torch.topk(gaussian.abs(), k)
    yield _compare("topk 1%, Gaussian", top(gaussian, k), copy, plain, repeats)
    for name, v in vectors.items():
        if v is not gaussian:
            yield _compare(f"topk 1%, {name}", top(v, k), copy, None, repeats)
    for label, count in (("k = 1", 1), ("0.1%", max(1, d // 1000)), ("10%", max(1, d // 10))):
        other = "torch.topk(x.abs(), k)", lambda count=count: torch.topk(gaussian.abs(), count)
        yield _compare(f"topk {label}, Gaussian", top(gaussian, count), copy, other, repeats, slow=1)


def _chain(gradient: Tensor, copy: Action, repeats: int) -> Speed:
    """Error feedback of one message: add, select, update the memory, encode, decode and accumulate at the server."""
    d, k = len(gradient), max(1, len(gradient) // 100)
    compressor = parse(f"topk(k={k})")
    assert isinstance(compressor, Compressor)
    error, model = torch.zeros(1, d), torch.zeros(d)
    schema = compressor.schema((d,), gradient.dtype, _keys())

    def ours() -> None:
        error.add_(gradient)
        message = compressor.message(error, _keys())
        compressor.decode(message, (d,), gradient.dtype, _keys()).scatter(error, np.zeros(1, dtype=np.int64), -1.0)
        packed = message.pack()
        heard = Message.unpack(packed, np.array([len(packed)]), schema)
        compressor.decode(heard, (d,), gradient.dtype, _keys()).fold(model, 1.0)

    memory, other = torch.zeros(d), torch.zeros(d)

    def plain() -> None:
        memory.add_(gradient)
        _, places = torch.topk(memory.abs(), k)
        values = memory[places]
        memory[places] = 0.0
        other.index_add_(0, places, values)

    return _compare("chain of EF14 + topk 1%", ours, copy, ("the same in torch, int64 indices", plain), repeats)


_drawn = torch.Generator()  # torch's own numbers for its expressions, without touching its global generator


def _uniform(x: Tensor) -> Tensor:
    return torch.empty_like(x).uniform_(generator=_drawn)


def _quantisers(x: Tensor, copy: Action, repeats: int) -> Iterator[Speed]:
    trip = _Trip("scaled_sign", x)
    expression = "x.sign() * x.abs().mean()", lambda: x.sign() * x.abs().mean()
    yield _compare("scaled_sign pack + unpack", trip.both, copy, expression, repeats)

    def natural() -> Tensor:
        mantissa, exponent = torch.frexp(x)
        up = _uniform(x) < 2.0 * mantissa.abs() - 1.0
        return torch.ldexp(x.sign(), exponent - 1 + up.int())

    trip = _Trip("natural", x)
    expression = "frexp, uniform_, ldexp", natural
    yield _compare("natural pack", trip.pack, copy, expression, repeats)
    yield _compare("natural pack + unpack", trip.both, copy, expression, repeats)

    def qsgd() -> Tensor:
        norm = x.norm()
        y = x.abs() * (7.0 / norm)
        level = y.floor()
        return x.sign() * (level + (_uniform(y) < y - level)) * (norm / 7.0)

    expression = "norm, floor, uniform_", qsgd
    for spec in ("qsgd(levels=7)", "qsgd(levels=7, bucket=512)"):
        trip = _Trip(spec, x)
        yield _compare(f"{spec} pack", trip.pack, copy, expression, repeats)
        yield _compare(f"{spec} unpack", trip.unpack, copy, None, repeats)


def speeds(d: int = RESNET50, repeats: int = 9) -> Iterator[Speed]:
    """The speeds of the kernels that matter, on vectors of d float32, one line after another."""
    vectors = _vectors(d)
    gaussian, target = vectors["Gaussian"], torch.empty(d)
    copy = lambda: target.copy_(gaussian)  # noqa: E731
    yield from _selection(vectors, copy, repeats)
    yield _chain(gaussian, copy, repeats)
    yield from _quantisers(gaussian, copy, repeats)


_MEMORY = """
import numpy as np, torch
from pathlib import Path
from laconic.core.keys import Keys
from laconic.core.spec import parse

def resident(which):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(which))

keys = Keys(0, 0, "/bench", np.zeros(1, dtype=np.int64), 1)
topk = parse("topk(k=0.01)")
topk.compress(torch.randn(1, 1 << 19), keys).pack()
x = torch.randn(1, {d})
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmHWM")
topk.compress(x, keys).pack()
print((resident("VmHWM") - before) / (4 * {d}))
"""


def peak_memory(d: int = RESNET50) -> float:
    """The most memory that TopK at 1% takes beyond its warm inputs, in a fresh process, in sizes of the vector.

    NaN where the system does not tell (it is read from Linux's /proc).
    """
    if not Path("/proc/self/clear_refs").exists():
        return math.nan
    done = subprocess.run([sys.executable, "-c", _MEMORY.format(d=d)], capture_output=True, text=True, check=True)
    return max(0.0, float(done.stdout))  # the system's count is some pages off


# ---- sizes -----------------------------------------------------------------------------------------------------------


def _needed(claim: Claim | None) -> tuple[str, float]:
    if isinstance(claim, Contractive):
        return f"alpha = {claim.alpha:.4g}", 1.0 / claim.alpha
    if isinstance(claim, Unbiased):
        return f"omega = {claim.omega:.4g}", 1.0 + claim.omega
    if isinstance(claim, AB):
        return f"omega = {claim.omega:.4g}, A = {claim.A:.3g}, B = {claim.B:.3g}", 1.0 + claim.omega
    return "none", math.nan


def _spoken(compressor: Compressor, n: int) -> tuple[int, float]:
    """The first step whose message is not empty, and the share of such steps: with some compressors a coin decides."""
    v, steps = _gaussian(64, "size").view(1, 8, 8), range(_TOSSES)

    def speaks(step: int) -> bool:
        keys = Keys(0, step, "/bench", np.zeros(1, dtype=np.int64), n)
        codes, _ = compressor.advance(v, keys, compressor.start((8, 8), v.dtype, keys))
        return len(Message(compressor.schema((8, 8), v.dtype, keys), codes, 1).pack()) > 0

    spoken = [step for step in steps if speaks(step)]
    return (spoken[0], len(spoken) / len(steps)) if spoken else (0, 1.0)


def size_of(spec: str, d: int = SIZES, n: int = 10) -> Size:
    """The claim of a compressor for d coordinates and n workers, and what a Gaussian vector of float32 costs with it.

    The vector is a square matrix where d is a square, so that low rank has something to work on. Where a coin decides
    whether anything is sent, bits and saving are on average over the coin, and the times are of a message.
    """
    compressor = parse(spec)
    if not isinstance(compressor, Compressor):
        raise ValueError(f"{spec!r} is a {compressor.kind}; sizes are those of compressors")
    side = math.isqrt(d)
    shape = (side, side) if side * side == d else (d,)
    v = _gaussian(d, "size").view(1, *shape)
    step, share = _spoken(compressor, n)
    keys = Keys(0, step, "/bench", np.zeros(1, dtype=np.int64), n)
    state = compressor.start(shape, v.dtype, keys)

    def encode() -> tuple[Message, np.ndarray]:
        codes, _ = compressor.advance(v, keys, state)
        made = Message(compressor.schema(shape, v.dtype, keys), codes, 1)
        return made, made.pack()

    def decode() -> None:
        heard = Message.unpack(packed, made.nbytes, compressor.schema(shape, v.dtype, keys))
        compressor.decode(heard, shape, v.dtype, keys).dense()

    made, packed = encode()
    decode()
    text, needed = _needed(compressor.claim(d, n))
    bits = 8 * len(packed) / d * share
    saving = 32 / bits if bits else math.inf
    return Size(str(compressor), text, needed, saving, bits, _seconds(encode), _seconds(decode))


def sizes(d: int = SIZES, n: int = 10) -> Iterator[Size]:
    """`size_of` the example of every compressor there is."""
    for entry in catalogue().of_kind("compressor"):
        yield size_of(example(entry), d, n)


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def as_json(speeds: list[Speed], sizes: list[Size], memory: float, d: int) -> str:
    """Everything as one JSON document."""
    document = {
        "machine": machine(),
        "d": d,
        "speed": [vars(line) for line in speeds],
        "topk_peak_memory_in_vectors": memory,
        "sizes": [vars(line) for line in sizes],
    }
    return json.dumps(_plain(document), indent=2)


def _plain(value: Any) -> Any:
    """Not-a-numbers as null, which JSON has."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
