"""What all tests share: deterministic hypothesis, a cache of their own, the data directory, and watched generators."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Generator, Iterator
from pathlib import Path

# Before torch and NumPy read it: the testers share the cores already, and threads that wait for each other there burn
# several times what they compute. Tests of threads set their number; `make check-full` runs all on two.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

os.environ["MPLBACKEND"] = "Agg"  # before anything imports pyplot: no test opens a window

# By default the same examples on every run, so that a failure in CI is a failure at the desk. `make check-full`
# explores.
settings.register_profile("default", derandomize=True, deadline=None, database=None, max_examples=50)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays: looking for garbage in it takes seconds, now and all along the tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file with the slowest start comes first: in the middle two testers would share it and both start slowly."""
    items.sort(key=lambda item: item.path.name != "test_fuzz.py")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Reference solutions and constants are computed by the code under test, never read from the user's cache.

    The testers of one run share them, as processes of one machine do.
    """
    base = tmp_path_factory.getbasetemp()  # of one tester
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LACONIC_CACHE", str(folder))
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of LIBSVM files: LACONIC_DATA, else `shared/data/libsvm` beside the checkout; skips without one."""
    given = os.environ.get("LACONIC_DATA")
    folder = Path(given) if given else ROOT.parent / "shared" / "data" / "libsvm"
    if not folder.is_dir():
        pytest.skip(f"no LIBSVM files: {folder} is no folder; set LACONIC_DATA to one that holds a9a, w8a, ...")
    return folder


@pytest.fixture
def untouched_generators() -> Iterator[None]:
    """Fails a test that moves a global random generator of Python, NumPy or torch."""
    before = random.getstate(), _numpy_state(), torch.random.get_rng_state()
    yield
    assert random.getstate() == before[0], "Python's global generator was used"
    assert _numpy_state() == before[1], "NumPy's global generator was used"
    assert torch.equal(torch.random.get_rng_state(), before[2]), "torch's global generator was used"


def _numpy_state() -> tuple:
    state = np.random.get_state(legacy=False)
    words, place = state["state"]["key"], state["state"]["pos"]
    return words.tobytes(), place, state["has_gauss"], state["gauss"]


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Runs a test on two torch threads, whatever the machine has, and puts the number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
