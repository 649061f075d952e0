"""`make fuzz`: every decoder on bytes that coverage leads to, for a time; without atheris on bytes of hypothesis.

    NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=... python tests/fuzz_decoders.py [SECONDS]

Kernels check every index. The plain reader's branches are what atheris follows: they are those of the format. An input
is two bytes for the subject (which compressor, shape and dtype), one for what to do, and the bytes of the message.
"""

from __future__ import annotations

import collections
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

try:
    import atheris
except ImportError:  # there are wheels for Linux and some versions of Python only
    atheris = None

with atheris.instrument_imports(include=["plain_reader"]) if atheris else contextlib.nullcontext():
    import plain_reader as plain_reader  # and nothing of laconic: numba compiles no instrumented code

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import fuzzing

SUBJECTS: list[fuzzing.Subject] = (
    [
        fuzzing.Vectors(spec, shape, dtype, rows)
        for spec in fuzzing.specs()
        for shape in fuzzing.SHAPES
        for dtype in fuzzing.DTYPES
        for rows in (1, 2)
    ]
    + [
        fuzzing.Fields(size, most, rows)
        for size in (2, 3, 4, 5, 15, 16, 255, 256, 257, 1001, 65535)
        for most in (1, 6, 40, 700)
        for rows in (1, 2)
    ]
    + [fuzzing.Row(size, n) for size in (2, 3, 4, 5, 15, 16, 255, 256, 257, 1001, 65535) for n in (1, 4, 31, 500)]
)
RAW = len(fuzzing.DAMAGES)  # what to do: a damage, or from here on nothing but the bytes themselves
VERDICTS: collections.Counter[str] = collections.Counter()


def run(data: bytes) -> None:
    """One execution. Raises where the two readers differ, and where anything but a refusal is raised."""
    data += bytes(max(0, 3 - len(data)))
    subject = SUBJECTS[int.from_bytes(data[:2], "little") % len(SUBJECTS)]
    what, rest = data[2] % (2 * RAW), data[3:]
    if what >= RAW:
        rows = subject.rows
        parts = [len(rest) * (row + 1) // rows - len(rest) * row // rows for row in range(rows)]
        given_bytes = rest, tuple(parts)
    else:
        rng = np.random.default_rng(int.from_bytes(rest, "little"))
        first, other = rng.integers(6), 6 + rng.integers(5)
        given_bytes = fuzzing.DAMAGES[what](
            fuzzing.honest(subject, int(first)), fuzzing.honest(subject, int(other)), rng
        )
    try:
        said = fuzzing.judge(subject, *given_bytes)
    except BaseException:
        print(f"\n{subject}\n  on {given_bytes[0].hex()!r}, rows of {given_bytes[1]} bytes", file=sys.stderr)
        raise
    VERDICTS["read" if not said else "refused in decode" if said.startswith("decode") else "refused"] += 1


def valid_inputs() -> list[bytes]:
    """A valid message of every subject, as an input."""
    return [
        number.to_bytes(2, "little") + bytes([RAW]) + b"".join(fuzzing.honest(subject, number % 6))
        for number, subject in enumerate(SUBJECTS)
    ]


def compiled() -> None:
    """Compiles what is needed before the clock runs."""
    began = time.monotonic()
    for data in valid_inputs():
        run(data)
        run(data[:2] + bytes([fuzzing.DAMAGES.index(fuzzing.flipped)]) + data[3:])
    print(f"{len(SUBJECTS)} subjects, compiled with checks of bounds in {time.monotonic() - began:.0f} s", flush=True)
    VERDICTS.clear()


def with_atheris(seconds: int) -> None:
    """Ends the process."""
    folder = Path(tempfile.mkdtemp(prefix="laconic-fuzz-"))
    for number, data in enumerate(valid_inputs()):
        (folder / str(number)).write_bytes(data)
    print(f"atheris, {seconds} s", flush=True)
    options = [
        f"-max_total_time={seconds}",
        "-max_len=4096",
        "-rss_limit_mb=4096",
        "-timeout=20",
        "-print_final_stats=1",
    ]
    where = f"-artifact_prefix={os.environ.get('LACONIC_FUZZ_OUT', '.')}/"
    atheris.Setup([sys.argv[0], *options, where, str(folder)], _counted(run, seconds))
    atheris.Fuzz()


def _counted(one: Callable[[bytes], None], seconds: int) -> Callable[[bytes], None]:
    """Says now and then what the verdicts were: libFuzzer ends the process itself."""
    began, last = time.monotonic(), [0.0]

    def wrapper(data: bytes) -> None:
        one(data)
        now = time.monotonic() - began
        if now > min(last[0] + 10, max(seconds - 1, last[0])):
            last[0] = now + (10 if now >= seconds - 1 else 0)
            print(f"{now:.0f} s, {sum(VERDICTS.values())} executions: {dict(VERDICTS)}", flush=True)

    return wrapper


def with_hypothesis(seconds: int) -> None:
    print(f"atheris is not installed on this Python: hypothesis without coverage instead, {seconds} s", flush=True)
    turns = settings(max_examples=500, deadline=None, database=None, phases=(Phase.generate, Phase.shrink))
    began, turn = time.monotonic(), 0
    number, rest = st.integers(0, len(SUBJECTS) - 1), st.binary(max_size=400)

    def attempt(number: int, what: int, rest: bytes) -> None:
        run(number.to_bytes(2, "little") + bytes([what]) + rest)

    while time.monotonic() - began < seconds:
        test = given(number, st.integers(0, 2 * RAW - 1), rest)(attempt)
        seed(turn)(settings(turns, suppress_health_check=list(HealthCheck))(test))()
        turn += 1
    print(f"{time.monotonic() - began:.0f} s, {sum(VERDICTS.values())} executions: {dict(VERDICTS)}, no finding")


if __name__ == "__main__":
    if os.environ.get("NUMBA_BOUNDSCHECK") != "1":
        sys.exit("set NUMBA_BOUNDSCHECK=1, and NUMBA_CACHE_DIR to a folder of its own: `make fuzz` does")
    duration = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    compiled()
    with_atheris(duration) if atheris else with_hypothesis(duration)
