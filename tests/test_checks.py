"""The conformance kit: it passes the catalogue, and catches what is planted."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from laconic.checks import NotConforming, check, conform
from laconic.checks import compressors as efforts
from laconic.checks.statistics import outcomes
from laconic.checks.vectors import DTYPES, cases, extremes
from laconic.compressors.dithering import QSGD, LinfDithering
from laconic.compressors.identity import Identity
from laconic.compressors.natural import Natural
from laconic.compressors.permk import PermK
from laconic.compressors.randk import RandK, SharedRandK
from laconic.compressors.topk import TopK
from laconic.core.compressor import AB, Claim, Compressor, Contractive, Decoded, Dense, Unbiased
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.core.registry import catalogue
from laconic.core.spec import example
from laconic.wire.coding import Bits, Malformed
from planted import RoundRobin
from planted_defects import Plain

EXAMPLES = [example(entry) for entry in catalogue().of_kind("compressor")]


@pytest.mark.parametrize("spec", EXAMPLES)
def test_every_compressor_of_the_catalogue_conforms(spec: str) -> None:
    conform(spec)


def found(compressor: Compressor) -> dict[str, str]:
    """The failures of a planted compressor: what the first one of each check says."""
    verdict = check(compressor)
    assert not verdict.passed
    return {failure.check: failure.what for failure in reversed(verdict.failures)}


# ---- claims that are 5% too good ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Boasting(Compressor):
    """Another compressor with a claim of its own."""

    inner: Compressor
    factor: float

    name = "boasting"
    layout = "as the inner one's"

    def claim(self, d: int, n: int) -> Claim | None:
        claim = self.inner.claim(d, n)
        if isinstance(claim, Contractive):
            return Contractive(min(1.0, claim.alpha * self.factor))
        if isinstance(claim, AB):
            return AB(claim.A * self.factor, claim.B, claim.omega)
        assert isinstance(claim, Unbiased)
        return Unbiased(claim.omega * self.factor)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return self.inner.schema(shape, dtype, keys)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return self.inner.codes(v, keys)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return self.inner.decode(message, shape, dtype, keys)


VARIANCE, TOGETHER = "unbiased, variance, contraction", "constants of n workers together"
BOASTS = [
    (TopK(k=0.05), 1.05, VARIANCE),
    (RandK(k=0.05), 0.95, VARIANCE),
    (RandK(k=0.5), 0.95, VARIANCE),
    (Natural(), 0.119 / 0.125, VARIANCE),
    (QSGD(levels=4), 0.95, VARIANCE),
    (QSGD(levels=1), 0.95, VARIANCE),
    (LinfDithering(levels=1), 0.95, VARIANCE),
    (PermK(), 0.95, TOGETHER),
]


@pytest.mark.parametrize(("inner", "factor", "by"), BOASTS, ids=[f"{inner}-{by}" for inner, _, by in BOASTS])
def test_a_claim_that_is_5_percent_too_good_is_caught(
    inner: Compressor, factor: float, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # by the rounds and draws of a quick check, however slow the processor is
    quick = efforts.QUICK
    patient = dataclasses.replace(quick, seconds=10.0, draws=dataclasses.replace(quick.draws, seconds=10.0))
    monkeypatch.setattr(efforts, "QUICK", patient)
    assert by in found(Boasting(inner, factor))


def test_an_omega_of_a_joint_claim_that_is_5_percent_too_small_is_caught() -> None:
    @dataclass(frozen=True)
    class Shy(Boasting):
        def claim(self, d: int, n: int) -> Claim | None:
            claim = self.inner.claim(d, n)
            assert isinstance(claim, AB)
            return dataclasses.replace(claim, omega=claim.omega * self.factor)

    assert VARIANCE in found(Shy(SharedRandK(k=0.25), 0.95))
    assert VARIANCE in found(Shy(PermK(), 0.95))


@dataclass(frozen=True)
class PowersOfThree(Compressor):
    """Rounds magnitudes to the nearest power of 3; the worst number is 2, which no list of usual suspects has."""

    factor: float

    name = "powers_of_three"
    layout = "d values"

    def claim(self, d: int, n: int) -> Claim | None:
        return Contractive(0.75 * self.factor)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return (Slot(Bits(8 * dtype.itemsize), dtype, math.prod(shape)),)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        x = v.reshape(-1).double()
        low = 3.0 ** torch.floor(torch.log(x.abs()) / math.log(3.0))
        nearest = torch.where(x.abs() < 2 * low, low, 3 * low)
        return (torch.where(x == 0, 0.0, x.sign() * nearest).to(v.dtype),)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return Dense(message.codes[0].view(message.rows, *shape).clone())


def test_ascent_finds_what_the_usual_vectors_do_not() -> None:
    """A claim 5% too large: attained where every coordinate is 2 times a power of 3."""
    assert "claims on vectors found by ascent" in found(PowersOfThree(1.05))
    ascent = "claims on vectors found by ascent"
    assert ascent not in {failure.check for failure in check(PowersOfThree(1.0)).failures}


def test_what_all_workers_share_is_not_independent() -> None:
    @dataclass(frozen=True)
    class Alone(Boasting):
        def claim(self, d: int, n: int) -> Claim | None:
            claim = self.inner.claim(d, n)
            assert isinstance(claim, AB)
            return Unbiased(claim.omega)

    assert set(found(Alone(SharedRandK(k=0.5), 1.0))) == {TOGETHER}


# ---- planted faults ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReturnsItsInput(Plain):
    """A dithering that never rounds."""

    def claim(self, d: int, n: int) -> Claim | None:
        return Unbiased(math.sqrt(d))


@dataclass(frozen=True)
class Unscaled(RandK):
    """RandK that forgets d / k."""

    name = "unscaled"

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        (values,) = super().codes(v, keys)
        return (values / (self.claim(math.prod(v.shape[1:]), 1).omega + 1.0),)


@dataclass(frozen=True)
class WritesToItsArgument(Plain):
    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        out = v.reshape(-1).clone()
        v.view(-1).zero_() if v.is_contiguous() else v.zero_()
        return (out,)


@dataclass(frozen=True)
class BorrowsItsArgument(Plain):
    """What it decodes without a trip through bytes is the vector's own memory."""

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return (v.reshape(-1),)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        message.codes[0].mul_(1.0 if message.rows else 1.0).add_(1e-3)
        return Dense(message.codes[0].view(message.rows, *shape))


@dataclass(frozen=True)
class IndicesBesideTheMessage(Plain):
    """Top-1 whose index travels in an attribute of the sender."""

    def claim(self, d: int, n: int) -> Claim | None:
        return Contractive(1.0 / d)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return (Slot(Bits(8 * dtype.itemsize), dtype, 1),)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        flat = v.reshape(v.shape[0], math.prod(v.shape[1:]))
        places = flat.abs().argmax(1, keepdim=True)
        self._keep(places, keys)
        return (flat.gather(1, places).view(-1),)

    def _keep(self, places: Tensor, keys: Keys) -> None:
        object.__setattr__(self, "places", places)

    def _kept(self, keys: Keys) -> Tensor:
        return self.places  # type: ignore[attr-defined]

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        out = torch.zeros(message.rows, math.prod(shape), dtype=dtype)
        out.scatter_(1, self._kept(keys)[: message.rows], message.codes[0].view(-1, 1))
        return Dense(out.view(message.rows, *shape))


BESIDE: dict[Any, Tensor] = {}


@dataclass(frozen=True)
class IndicesInAGlobal(IndicesBesideTheMessage):
    """... in a dictionary of the module, by the address of the draw."""

    def _keep(self, places: Tensor, keys: Keys) -> None:
        for worker, place in zip(keys.workers.tolist(), places, strict=True):
            BESIDE[keys.stream, keys.step, worker, keys.n] = place

    def _kept(self, keys: Keys) -> Tensor:
        found = [BESIDE[keys.stream, keys.step, worker, keys.n] for worker in keys.workers.tolist()]
        return torch.stack(found) if found else torch.zeros(0, 1, dtype=torch.int64)


class TooShort(Message):
    """A message that counts its values and not its first field."""

    @property
    def nbytes(self) -> Any:
        return super().nbytes - 1


@dataclass(frozen=True)
class CountsLess(Plain):
    def compress(self, v: Tensor, keys: Keys) -> Message:
        message = super().compress(v, keys)
        return TooShort(message.schema, message.codes, message.rows)


@dataclass(frozen=True)
class SeedsTorch(Plain):
    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        torch.manual_seed(7)
        return super().codes(v, keys)


@dataclass(frozen=True)
class DrawsFromTorch(Plain):
    """Bernoulli sparsification by the global generator."""

    def claim(self, d: int, n: int) -> Claim | None:
        return Unbiased(1.0)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return (2.0 * v.reshape(-1) * (torch.rand(v.numel()) < 0.5),)


@dataclass(frozen=True)
class NormalisesTheBatch(Plain):
    """One scale for all rows: int8 with somebody else's maximum."""

    def claim(self, d: int, n: int) -> Claim | None:
        return None

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        scale = v.abs().max().clamp(min=torch.finfo(v.dtype).tiny) if v.numel() else torch.ones((), dtype=v.dtype)
        return ((v / scale * 127).round().reshape(-1) / 127 * scale,)


@dataclass(frozen=True)
class FailsOnScalars(Plain):
    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        if v.dim() == 2 and v.shape[1] == 1:
            raise IndexError("no second coordinate")
        return super().codes(v, keys)


@dataclass(frozen=True)
class WrongInBFloat16(Plain):
    """Drops two more bits of bfloat16's eight."""

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        (out,) = super().codes(v, keys)
        return ((out.view(torch.int16) & ~3).view(torch.bfloat16),) if v.dtype == torch.bfloat16 else (out,)


@dataclass(frozen=True)
class TakesAnything(Plain):
    """Compresses NaN."""

    def compress(self, v: Tensor, keys: Keys) -> Message:
        return Message(self.schema(tuple(v.shape[1:]), v.dtype, keys), self.codes(v, keys), v.shape[0])


@dataclass(frozen=True)
class DependsOnThreads(Plain):
    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return (v.reshape(-1) * (1.0 + 1e-6 * torch.get_num_threads()),)

    def claim(self, d: int, n: int) -> Claim | None:
        return None


@dataclass(frozen=True)
class OverflowsInTheNorm(Plain):
    """Scales by a norm whose squares overflow and vanish."""

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        flat = v.reshape(v.shape[0], math.prod(v.shape[1:]))
        norms = flat.square().sum(1, keepdim=True).sqrt()
        return ((torch.where(norms > 0, flat / norms, 0.0) * norms).reshape(-1),)

    def claim(self, d: int, n: int) -> Claim | None:
        return Contractive(1.0 - 1e-6)


FAULTS: list[tuple[Compressor, str]] = [
    (ReturnsItsInput(), "something is compressed"),
    (Unscaled(k=0.5), VARIANCE),
    (WritesToItsArgument(), "vectors are not written to"),
    (BorrowsItsArgument(), "vectors are not written to"),
    (IndicesBesideTheMessage(), "sizes, and bytes decode to the same bits"),
    (IndicesInAGlobal(), "sizes, and bytes decode to the same bits"),
    (CountsLess(), "sizes, and bytes decode to the same bits"),
    (SeedsTorch(), "sizes, and bytes decode to the same bits"),
    (DrawsFromTorch(), "the same alone and in company"),
    (NormalisesTheBatch(), "the same alone and in company"),
    (FailsOnScalars(), "sizes, and bytes decode to the same bits"),
    (WrongInBFloat16(), f"{VARIANCE} in bfloat16"),
    (TakesAnything(), "NaN and infinities are refused"),
    (DependsOnThreads(), "the same on one thread and two"),
    (OverflowsInTheNorm(), "denormals and near overflow"),
]


def test_the_planted_ones_are_honest_but_for_their_fault() -> None:
    assert check(Plain()).failures == ()
    assert check(Boasting(QSGD(levels=4), 1.0)).failures == ()


@pytest.mark.parametrize(("compressor", "by"), FAULTS, ids=[type(one).__name__ for one, _ in FAULTS])
def test_a_planted_fault_is_caught(compressor: Compressor, by: str) -> None:
    before = torch.random.get_rng_state()
    try:
        assert by in found(compressor)
    finally:
        torch.random.set_rng_state(before)


@pytest.mark.parametrize("compressor", [SeedsTorch(), DrawsFromTorch()], ids=["seeds", "draws"])
def test_a_moved_generator_is_named(compressor: Compressor) -> None:
    before = torch.random.get_rng_state()
    try:
        assert any("torch's global random generator" in failure.what for failure in check(compressor).failures)
    finally:
        torch.random.set_rng_state(before)


def test_equal_bytes_that_mean_different_things_are_caught() -> None:
    assert "equal bytes mean the same" in found(IndicesBesideTheMessage())


# ---- what it says ------------------------------------------------------------------------------------------------


def test_a_verdict_says_what_was_claimed_and_measured() -> None:
    verdict = check("topk(k=0.25)")
    assert verdict.passed and verdict == check(TopK(k=0.25))  # the same seeds, the same verdict; seconds do not count
    (alpha,) = verdict.constants
    assert alpha.claimed == (0.25,)
    assert (alpha.measured, alpha.tightness) == pytest.approx((0.25, 1.0), rel=1e-12)
    assert verdict.line().startswith("topk(k=0.25)   alpha 0.25 claimed, 0.25 worst measured   ok (")
    assert [constant.name for constant in check("permk").constants] == ["omega", "A, B"]


def test_conform_raises_with_the_failures() -> None:
    conform(Identity())
    with pytest.raises(NotConforming, match=r"(?s)unscaled\(k=0.5\) does not conform:.*unbiased is claimed") as raised:
        conform(Unscaled(k=0.5))
    assert isinstance(raised.value, AssertionError) and raised.value.failures


@dataclass(frozen=True)
class Careful(RoundRobin):
    """... that looks at the index that came."""

    name = "careful_round_robin"

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        if bool(((message.codes[0] < 0) | (message.codes[0] >= math.prod(shape))).any()):
            raise Malformed("an index is out of range")
        return super().decode(message, shape, dtype, keys)


@dataclass(frozen=True)
class Forgetful(Careful):
    """... that moves on by itself, in its own state."""

    name = "forgetful_round_robin"

    def advance(self, v: Tensor, keys: Keys, state: Any) -> tuple[tuple[Tensor, ...], Any]:
        codes, renewed = super().advance(v, keys, state)
        state.next.copy_(renewed.next)
        return codes, state


def test_a_compressor_with_a_state_is_carried_on() -> None:
    verdict = check(Careful())
    assert verdict.passed and "the state is carried on" in verdict.checks
    assert "the state is carried on" in found(Forgetful())


def test_what_is_no_entry_is_said() -> None:
    with pytest.raises(ValueError, match="did you mean"):
        check("topkk")


def test_vectors_are_what_they_are_called() -> None:
    for shape in ((1,), (2,), (7,), (8, 8), (6, 5)):
        for name, x in cases(shape).items():
            assert x.shape == shape and x.dtype == torch.float64 and bool(torch.isfinite(x).all()), name
        for dtype in DTYPES:
            for name, x in extremes(shape, dtype).items():
                assert x.shape == shape and x.dtype == dtype and bool(torch.isfinite(x).all()), name
    for name in ("the identity", "an orthogonal matrix"):
        q = cases((8, 8))[name]
        assert torch.allclose(q @ q.T, torch.eye(8, dtype=torch.float64), atol=1e-14)
    assert bool((extremes((7,), torch.float32)["denormals"].abs() < torch.finfo(torch.float32).tiny).all())


def test_shared_draws_are_told_from_independent_ones() -> None:
    x = torch.stack(list(cases((16,)).values()))
    assert outcomes(RandK(k=4), x, 32, 8).independent == 32 * 8
    assert outcomes(SharedRandK(k=4), x, 32, 8).independent == 32
