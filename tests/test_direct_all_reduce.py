"""Direct compression over an all-reduce: the estimate of the server's form, bytes, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from by_hand import RUNTIMES, Course, method_of, problem_of, start
from laconic.core.spec import parse

SMALL = "quadratic(d=40, workers=5, noise=0.4, mu=0.05)"


@pytest.mark.parametrize("runtime", list(RUNTIMES))
@pytest.mark.parametrize("compressor", ["shared_randk(k=4)", "shared_randk(k=0.5)", "identity"])
def test_it_keeps_what_the_masks_keep(compressor: str, runtime: str) -> None:
    """One step from known gradients: k coordinates of the mean, times d / k, and 8 k bytes for each worker."""
    problem = problem_of(SMALL)
    method = method_of(f"gd(direct_all_reduce({compressor}))", problem)
    course = Course(method, problem, RUNTIMES[runtime](problem.n, 0))
    before = course.x
    gradient = problem.oracles(course.runtime.links[0].block.whole(5)).gradients(before).mean(0)
    estimate = course.state.estimate
    kept = estimate != 0
    k = {"shared_randk(k=4)": 4, "shared_randk(k=0.5)": 20, "identity": 40}[compressor]
    assert int(kept.sum()) <= k
    assert torch.allclose(estimate[kept], gradient[kept] * (40 / k), rtol=1e-12)
    assert (course.runtime.ledger.uplink == 8 * k).all() and (course.runtime.ledger.downlink == 8 * k).all()


def test_over_the_server_it_is_direct_in_law_and_has_its_theorem() -> None:
    """Many steps reach x*: a shared support leaves no plateau; the step is that of direct."""
    problem = problem_of(SMALL)
    course = start("direct_all_reduce(shared_randk(k=8))", problem)
    assert course.method.step == method_of("direct(shared_randk(k=8))", problem).step  # type: ignore[attr-defined]
    solution = problem.solution()
    assert solution is not None
    first = float((course.x - solution.x).norm())
    rate = course.guarantee().rate
    assert rate is not None
    course.go(2000)
    assert float((course.x - solution.x).norm()) < max(1e-12, 3 * first * np.sqrt(rate) ** 2000)


@pytest.mark.parametrize("compressor", ["randk(k=4)", "topk(k=4)", "natural", "permk", "qsgd(levels=4)"])
def test_private_supports_and_scales_are_refused(compressor: str) -> None:
    with pytest.raises(ValueError, match="an all-reduce needs the same support") as caught:
        parse(f"direct_all_reduce({compressor})")
    assert "\n" not in str(caught.value)
