"""The page docs/results/compressors.md, from what `laconic bench compressors --json` measures.

    python benchmarks/compressors.py > docs/results/compressors.md

Levels' entropy and the index part of TopK beside log2 C(d, k) are measured here too.
"""

from __future__ import annotations

import laconic  # noqa: F401 - before torch: it asks OpenMP not to spin

# isort: split

import math

import numpy as np
import torch
from scipy.special import gammaln

from laconic.core.compressor import Compressor
from laconic.core.keys import Keys
from laconic.core.spec import parse
from laconic.lab import bench
from laconic.wire.levels import Levels

D = 1_000_000


def table(*rows: tuple[str, ...]) -> str:
    """A table in Markdown; the first row is its head."""
    head, *body = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows)
    return "\n".join([f"| {head} |", "|" + "---|" * len(rows[0]), *(f"| {row} |" for row in body)])


def compressor_of(spec: str) -> Compressor:
    compressor = parse(spec)
    assert isinstance(compressor, Compressor)
    return compressor


def keys(stream: str = "/bench") -> Keys:
    return Keys(0, 0, stream, np.zeros(1, dtype=np.int64), 1)


def gaussian(d: int) -> torch.Tensor:
    return keys("/vector").normal(d)  # not from the words that levels are drawn with


def indices() -> str:
    """What TopK's indices cost beside the number of bits that tell one k-subset from another."""
    x = gaussian(D)
    rows = [("k / d", "bits of the indices", "log2 C(d, k)", "more")]
    for share in (0.1, 0.01, 0.001):
        k = round(share * D)
        bits = int(compressor_of(f"topk(k={k})").compress(x, keys()).bits[0]) - 64 * k
        least = (gammaln(D + 1) - gammaln(k + 1) - gammaln(D - k + 1)) / math.log(2)
        rows.append((f"{share}", f"{bits:,}", f"{least:,.0f}", f"{bits / least - 1:.1%}"))
    return table(*rows)


def levels() -> str:
    """What levels cost beside their empirical entropy and the fixed width."""
    rows = [("compressor", "d", "bits each", "entropy", "fixed width")]
    for spec in ("ternary", "terngrad", "qsgd(levels=7)", "qsgd(levels=7, bucket=512)", "int8", "int4"):
        for d in (1000, D):
            message = compressor_of(spec).compress(gaussian(d), keys())
            scales = 64 * len(message.codes[0])
            counts = np.bincount(message.codes[1].numpy())
            share = counts[counts > 0] / d
            coding = message.schema[1].coding
            assert isinstance(coding, Levels)
            entropy, size = abs(float((share * np.log2(share)).sum())), coding.size
            fixed = 1.6 if size == 3 else (size - 1).bit_length()
            rows.append((f"`{spec}`", f"{d:,}", f"{(message.bits[0] - scales) / d:.4f}", f"{entropy:.4f}", f"{fixed}"))
    return table(*rows)


def main() -> None:
    speeds, memory = list(bench.speeds()), bench.peak_memory()
    fast = [("what", "ms", "copies", "beside plain torch", "plain torch")]
    for line in speeds:
        gain = f"{line.gain:.1f} times as fast" if line.torch else ""
        torchs = f"`{line.torch}`" if line.torch else ""
        fast.append((line.what, f"{1e3 * line.seconds:.1f}", f"{line.copies:.1f}", gain, torchs))
    small = [("compressor", "claim", "1 + omega or 1 / alpha", "beta", "bits each")]
    for size in bench.sizes():
        needed = "" if math.isnan(size.needed) else f"{size.needed:.4g}"
        small.append((f"`{size.spec}`", size.claim, needed, f"{size.saving:.4g}", f"{size.bits:.3f}"))
    print(f"""# Compressors: speed and size

Command: `python benchmarks/compressors.py > docs/results/compressors.md`; `laconic bench compressors` (`--json`)
prints the speeds and the sizes. Machine: two cores of a shared cloud server (Intel Xeon), 24 GiB, Linux, Python 3.11,
torch {torch.__version__}.

## Speed

One vector of {bench.RESNET50:,} float32 (as many as ResNet-50 has parameters), {torch.get_num_threads()} threads,
medians of nine repetitions. A copy is one `copy_` of that vector; each repetition times it, ours and plain torch in
turn.

{table(*fast)}

The chain is error feedback of one message: add, select, update the memory, encode, decode and accumulate. pack makes
the bytes, norm and randomness included. Beyond its warm inputs, TopK at 1% takes {memory:.2f} times the vector of
memory at most, in a fresh process.

## Indices

TopK of a Gaussian vector of {D:,} coordinates. A k-subset cannot be told from the others in fewer than log2 C(d, k)
bits.

{indices()}

## Levels

Of a Gaussian vector, scales not counted. The entropy is that of the message's own levels.

{levels()}

## Sizes beside claims

A Gaussian vector of {bench.SIZES:,} float32 as a square matrix, ten workers. beta is the bytes of the vector by those
of the message. An unbiased compressor may cost up to 1 + omega times the rounds, a contractive one 1 / alpha: where
beta is less than that, the theory alone does not promise that it saves anything. Many claims are of the worst vector,
and a Gaussian one is kinder.

{table(*small)}""")


if __name__ == "__main__":
    main()
