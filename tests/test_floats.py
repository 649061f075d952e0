"""Dtypes of vectors, and whether all their numbers are finite."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.core.floats import WIDE, finite, wide


def test_a_dtype_that_vectors_cannot_have_is_refused() -> None:
    assert wide(torch.bfloat16) is torch.float32 and wide(torch.float64) is torch.float64
    with pytest.raises(ValueError, match=r"float16 : its dtype must be one of .*bfloat16; convert"):
        wide(torch.float16)


@pytest.mark.parametrize("dtype", list(WIDE))
@pytest.mark.parametrize("largest", [1.0, math.inf])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_finite_sees_every_place(dtype: torch.dtype, largest: float, bad: float) -> None:
    """Also among numbers whose sum leaves the range."""
    v = torch.full((2, 40_000), min(largest, torch.finfo(dtype).max), dtype=dtype)
    assert finite(v) and finite(v[:, ::2]) and finite(v[:0])
    for place in (0, 16_384, 39_999):
        v[1, place] = bad
        assert not finite(v)
        v[1, place] = -0.0


@given(st.lists(st.floats(width=32), max_size=40))
def test_finite_is_what_each_number_says(numbers: list[float]) -> None:
    """Infinities of both signs, and sums that cancel, among them."""
    assert finite(torch.tensor(numbers, dtype=torch.float32)) == all(map(math.isfinite, numbers))


def test_numbers_that_ask_for_gradients_are_looked_at_without_a_word(recwarn: pytest.WarningsRecorder) -> None:
    assert finite(torch.ones(3, requires_grad=True)) and not recwarn.list
