"""Vectors on which claims tend to break, and vectors at the ends of the numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from laconic.core.keys import Keys

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def normal(shape: tuple[int, ...], rows: int, name: str) -> Tensor:
    """Standard normal numbers, the same ones every time, (rows, *shape)."""
    keys = Keys(1, math.prod(shape), f"/vectors/{name}", torch.arange(rows).numpy(), max(1, rows))
    return keys.normal(math.prod(shape)).view(rows, *shape)


def cases(shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Vectors (*shape), float64, by what they are: where the field's claims are attained, and random ones."""
    d = math.prod(shape)
    j, one = torch.arange(d, dtype=torch.float64), torch.ones(d, dtype=torch.float64)
    signs = torch.where(j % 2 == 0, one, -one)
    g = normal((d,), 4, "cases")
    first = torch.zeros(d, dtype=torch.float64)
    first[0] = -7.0
    found = {
        "normal numbers": g[0],
        "positive numbers": g[1].abs() + 0.1,
        "heavy tails": g[1] / g[2].abs().clamp(min=1e-3),
        "half of them zero": g[3] * (g[2] > 0),
        "equal magnitudes": signs,
        "all equal": -0.3 * one,
        "one spike": first,
        "one spike at the end": -first.flip(0),
        "mantissas of 4/3": signs * 4 / 3,
        "powers of two": signs * 2.0 ** -(j % 40),
        "a geometric decay": 0.9 ** (j % 400),
        "ties": torch.where(j % 3 == 0, 1.0, torch.where(j % 3 == 1, -1.0, 0.5)),
        "half-integers": (j % 3) + 0.5,
    }
    for u in (0.7, 0.5, 1 / math.sqrt(d), 0.5 / math.sqrt(d), 0.05):
        found[f"(1, u, ..., u) with u = {u:.3g}"] = torch.where(j == 0, 1.0, u)
    shaped = {name: values.to(torch.float64).reshape(shape) for name, values in found.items()}
    return shaped | (_matrices(shape) if len(shape) == 2 else {})


def _matrices(shape: tuple[int, ...]) -> dict[str, Tensor]:
    m, square = normal(shape, 2, "matrices")[0], min(shape)
    eye = torch.eye(*shape, dtype=torch.float64)
    q = _reflected(eye)
    spectrum = eye * 0.5 ** torch.arange(shape[1], dtype=torch.float64)
    found = {"the identity": eye, "an orthogonal matrix": q, "rank one": m[:, :1] * m[:1]}
    found["a geometric spectrum"] = spectrum if shape[0] != shape[1] else q @ spectrum @ q
    if shape[0] == shape[1]:
        found |= {"a symmetric matrix": m + m.T, "a flat spectrum of both signs": q * (-1.0) ** torch.arange(square)}
    return found


def _reflected(eye: Tensor) -> Tensor:
    """I - 2 u u', orthogonal without a decomposition."""
    u = torch.arange(1.0, eye.shape[0] + 1, dtype=torch.float64)
    u = u / u.norm()
    return eye - 2 * u[:, None] * (u @ eye)


def batch(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[list[str], Tensor]:
    """All cases of a shape as one batch, with their names."""
    found = cases(shape)
    return list(found), torch.stack(list(found.values())).to(dtype)


def extremes(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """Vectors (*shape) of zeros of both signs, of the smallest numbers, and of the largest."""
    d, info = math.prod(shape), torch.finfo(dtype)
    signs = torch.where(torch.arange(d) % 2 == 0, 1.0, -1.0).to(dtype)
    g = normal((d,), 1, "extremes")[0]
    least = torch.nextafter(torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype))
    small = (g.clamp(-3, 3) / 4 * info.tiny).to(dtype)
    largest = (signs * info.max).to(dtype)
    spike = torch.zeros(d, dtype=dtype)
    spike[-1] = info.max
    found = {
        "zeros": torch.zeros(d, dtype=dtype),
        "zeros of both signs": signs * 0.0,
        "the least denormal": signs * least,
        "denormals": small,
        "normal and denormal numbers": torch.where(torch.arange(d) % 2 == 0, small * 64, small),
        "the largest number": largest,
        "one of the largest": spike,
        "largest and least": torch.where(torch.arange(d) % 2 == 0, largest, least),
    }
    return {name: values.reshape(shape) for name, values in found.items()}
