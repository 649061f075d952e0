"""Problems on pictures of digits: the linear autoencoder and its dial, the network, who holds what, MNIST's files."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import laconic
from by_hand import RUNTIMES, equal, problem_of, start
from laconic.core.keys import Keys
from laconic.core.problem import Batch, Block, Kind
from laconic.problems import _bilinear, _images, _split
from laconic.problems import autoencoder as autoencoders
from laconic.problems.autoencoder import Autoencoder
from laconic.problems.network import Network


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    flat = Keys(seed, 0, "test", np.arange(1), 1).normal(math.prod(shape))[0]
    return scale * flat.reshape(shape)


def pictures(problem: Autoencoder, worker: int) -> Tensor:
    """A worker's pictures in [0, 1]."""
    samples = problem.samples()
    return torch.from_numpy(samples.part(worker) * samples.images.scale)


def reference(problem: Autoencoder, x: Tensor, worker: int, rows: Any = slice(None)) -> Tensor:
    """f_i as the paper writes it."""
    a, d = pictures(problem, worker)[rows], len(x) // 2
    decode, encode = x[:d], x[d:].T
    errors = a @ encode.T @ decode.T - a
    distance = decode @ encode - torch.eye(d, dtype=torch.float64)
    return (errors**2).sum(dim=1).mean() + problem.penalty * (distance**2).sum()


AUTOENCODERS = {
    "grams": Autoencoder(features=3, workers=5, penalty=0.1, homogeneity=0.3),  # 250 pictures each
    "samples": Autoencoder(features=3, workers=60, penalty=0.1, split="sorted"),  # 24
    "one feature": Autoencoder(features=1, workers=2),
}


@pytest.fixture(params=list(AUTOENCODERS))
def problem(request) -> Autoencoder:
    """Through stored matrices, through samples, and the smallest."""
    return AUTOENCODERS[request.param]


# ---- the autoencoder -------------------------------------------------------------------------------------------------


def test_values_gradients_and_products_are_the_papers(problem) -> None:
    oracles, x = problem.oracles(Block.whole(problem.n)), normal(128, problem.features, scale=0.2)
    v = normal(problem.n, 128, problem.features, seed=1)
    values, gradients, products = oracles.values(x), oracles.gradients(x), oracles.products(x, v)
    for worker in (0, problem.n - 1):

        def f(at: Tensor, worker: int = worker) -> Tensor:
            return reference(problem, at, worker)

        assert torch.allclose(values[worker], f(x), rtol=1e-12)
        slope = torch.func.grad(f)
        assert torch.allclose(gradients[worker], slope(x), rtol=1e-11, atol=1e-13)
        expected = torch.func.grad(lambda at, worker=worker, slope=slope: (slope(at) * v[worker]).sum())(x)
        assert torch.allclose(products[worker], expected, rtol=1e-10, atol=1e-12)
    assert torch.allclose(oracles.products(x, v[0])[0], products[0], rtol=1e-12)


def test_minibatches_are_of_single_pictures(problem) -> None:
    oracles, x = problem.oracles(Block.whole(problem.n)), normal(128, problem.features, scale=0.2)
    rows = np.array([1, 0])
    batch = Batch(rows, np.array([[3, 0, 3], [1, 2, 5]]))
    for got, worker, terms in zip(oracles.gradients(x, rows, batch), rows, batch.indices, strict=True):
        expected = torch.func.grad(lambda at, worker=worker, terms=terms: reference(problem, at, worker, terms))(x)
        assert torch.allclose(got, expected, rtol=1e-11, atol=1e-13)
    count = int(oracles.terms()[0])
    whole = oracles.gradients(x, np.array([0]), Batch(np.array([0]), np.arange(count)[None]))
    assert torch.allclose(whole, oracles.gradients(x, np.array([0])), rtol=1e-11, atol=1e-13)


def test_a_row_has_the_same_bits_in_every_block_and_on_every_number_of_threads(
    problem, two_threads, monkeypatch
) -> None:
    n, shape = problem.n, (128, problem.features)
    oracles = problem.host(Block.whole(n))
    for x in (normal(*shape, scale=0.2), normal(n, *shape, scale=0.2, seed=1)):
        values, gradients = oracles.values(x), oracles.gradients(x)
        for block in [*Block.deal(n, 3), Block(0, 0, n), Block(0, 1, n)]:
            mine = x if x.ndim == 2 else x[block.low : block.high]
            part = problem.host(block)
            assert equal(part.values(mine), values[block.low : block.high])
            assert equal(part.gradients(mine), gradients[block.low : block.high])
        monkeypatch.setattr("laconic.kernels.threads.SMALL", 0)
        assert equal(oracles.gradients(x), gradients) and equal(oracles.values(x), values)
        monkeypatch.undo()
        rows = np.array([1, 0])
        assert equal(oracles.gradients(x if x.ndim == 2 else x[rows], rows), gradients[rows])


def test_stored_matrices_and_samples_are_the_same_function() -> None:
    problem = AUTOENCODERS["grams"]
    samples, begin = problem.samples(), problem.oracles(Block.whole(5)).start()
    both = [_bilinear.BilinearOracles(samples, 0.1, begin, grams, Block.whole(5)) for grams in (True, False)]
    x = normal(128, 3, scale=0.2)
    assert torch.allclose(both[0].gradients(x), both[1].gradients(x), rtol=1e-11, atol=1e-13)
    assert len(both[0]._data[4]) == 5 and len(both[1]._data[4]) == 0
    assert len(autoencoders._oracles(AUTOENCODERS["samples"], Block.whole(60), None)._data[4]) == 0


@pytest.mark.parametrize("homogeneity", [0.0, 0.5, 0.9, 1.0])
def test_the_dial_replaces_by_the_matching_held_out_picture(homogeneity) -> None:
    problem = Autoencoder(workers=9, homogeneity=homogeneity, split="contiguous")
    samples, size = problem.samples(), 150  # 1500 pictures in 10 parts
    assert samples.starts.tolist() == [size * worker for worker in range(10)]
    chosen, place = samples.chosen.reshape(9, size), np.arange(size)
    own = place + size * np.arange(1, 10)[:, None]
    assert ((chosen == place) | (chosen == own)).all()
    share = float((chosen == place).mean())
    assert share == pytest.approx(homogeneity, abs=4 * math.sqrt(0.25 / chosen.size) if 0 < homogeneity < 1 else 0)
    oracles = problem.oracles(Block.whole(9))
    gradients = oracles.gradients(oracles.start())
    assert (homogeneity == 1.0) == bool((gradients == gradients[0]).all())
    if homogeneity == 0.0:
        assert len(np.unique(chosen)) == chosen.size
    apart = [
        (o := Autoencoder(workers=9, homogeneity=h).oracles(Block.whole(9))).gradients(o.start()) for h in (0, 0.9)
    ]
    spread = [float(((g - g.mean(0)) ** 2).sum()) for g in apart]
    assert spread[1] < 0.3 * spread[0]


def test_splits_of_the_autoencoder() -> None:
    labels = _images.load("digits").labels
    of = {split: Autoencoder(workers=9, split=split).samples().chosen.reshape(9, -1) for split in autoencoders.SPLITS}
    assert all(len(np.unique(labels[part])) <= 3 for part in of["sorted"])
    assert all(len(np.unique(labels[part])) == 10 for part in of["shuffled"])
    assert (of["contiguous"].reshape(-1) == np.arange(150, 1500)).all()


def test_smoothness_is_estimated_around_the_start_and_theory_says_so() -> None:
    problem = Autoencoder(features=2, workers=3)
    c = problem.constants()
    oracles: Any = problem.oracles(Block.whole(3))
    x = oracles.start()
    basis = torch.eye(oracles.d, dtype=torch.float64).view(-1, *oracles.shape)
    hessians = torch.stack([oracles.products(x, e) for e in basis], dim=1).view(3, oracles.d, oracles.d)
    norms = torch.linalg.eigvalsh(hessians).abs().amax(dim=1)
    assert all(constant.kind is Kind.ESTIMATE for constant in c.named().values()) and c.mu is None
    assert (torch.tensor(c.L_workers) >= norms * 0.99).all() and c.L_max.value < 2.0 * float(norms.max())
    assert problem.solution() is None and not oracles.convex
    promise = start("ef21(topk(k=5))", problem).guarantee()
    assert promise.leans_on and promise.rate is None
    with pytest.raises(ValueError, match="no reference solution"):
        laconic.run(problem, "gd", until=1e-3)


@pytest.mark.parametrize("spec", ["ef21(rank(rank=1))", "marina(permk)", "powersgd(rank=1)"])
def test_methods_go_downhill_on_matrices_and_the_same_way_everywhere(spec) -> None:
    problem = Autoencoder(features=2, workers=4)
    entry = f"gd({spec}, step=0.002)"
    plain = start(entry, problem)
    oracles = problem.oracles(Block.whole(4))
    first = float(oracles.values(plain.x).mean())
    plain.go(15)
    assert float(oracles.values(plain.x).mean()) < 0.97 * first and plain.x.shape == (128, 2)
    for name in ("three parts", "encoded", "star"):
        assert name in RUNTIMES and equal(start(entry, problem, runtime=name).go(15).x, plain.x)


def test_fingerprints_see_the_dial_the_split_and_the_start() -> None:
    ones = [Autoencoder(), Autoencoder(homogeneity=0.5), Autoencoder(split="sorted"), Autoencoder(seed=1),
            Autoencoder(penalty=0.1), Autoencoder(features=3), Autoencoder(workers=9)]  # fmt: skip
    assert len({one.fingerprint() for one in ones}) == len(ones)
    assert Autoencoder(workers=9).fingerprint() == Autoencoder(workers=9).fingerprint()


# ---- the network -----------------------------------------------------------------------------------------------------


def plain_network(problem: Network, x: Tensor, worker: int) -> Tensor:
    """Cross-entropy in a few lines, from the layers."""
    modules, (first, bias, last) = problem.modules(), problem.layers
    w, b, v = torch.split(x.reshape(-1), list(problem.sizes))
    logits = torch.tanh(modules.inputs[worker] @ w.view(first) + b.view(bias)) @ v.view(last).T
    picked = logits[torch.arange(len(logits)), modules.targets[worker]]
    return (torch.logsumexp(logits, dim=1) - picked).mean() + 0.5 * problem.l2 * (x * x).sum()


def test_the_network_is_what_its_layers_say() -> None:
    problem = Network(hidden=5, workers=4, l2=0.01, split="sorted")
    oracles = problem.oracles(Block.whole(4))
    x = oracles.start() + normal(*oracles.shape, scale=0.1)
    assert oracles.shape == (75, 5) and problem.layers == ((64, 5), (5,), (10, 5)) and problem.sizes == (320, 5, 50)
    for worker in (0, 3):
        assert torch.allclose(oracles.values(x)[worker], plain_network(problem, x, worker), rtol=1e-12)
        slope = torch.func.grad(lambda at, worker=worker: plain_network(problem, at, worker))(x)
        assert torch.allclose(oracles.gradients(x)[worker], slope, rtol=1e-10, atol=1e-13)
    v, h = normal(4, *oracles.shape, seed=1), 1e-5
    moved = (oracles.gradients(x + h * v) - oracles.gradients(x - h * v)) / (2 * h)  # x per row
    assert torch.allclose(oracles.products(x, v), moved, rtol=1e-5, atol=1e-7)  # type: ignore[attr-defined]


def test_the_network_has_the_same_bits_in_every_block() -> None:
    problem = Network(hidden=7, workers=5, split="dirichlet")
    oracles = problem.host(Block.whole(5))
    for x in (oracles.start(), oracles.start() + normal(5, *oracles.shape, scale=0.1)):
        values, gradients = oracles.values(x), oracles.gradients(x)
        for block in [*Block.deal(5, 3), Block(0, 0, 5)]:
            mine = x if x.ndim == 2 else x[block.low : block.high]
            part = problem.host(block)
            assert equal(part.values(mine), values[block.low : block.high])
            assert equal(part.gradients(mine), gradients[block.low : block.high])
        odd = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].copy_(x.reshape(-1)).view(x.shape)  # elsewhere in memory
        assert equal(oracles.gradients(odd), gradients)


def test_learning_is_seen_in_the_accuracy(untouched_generators) -> None:
    problem = Network(hidden=16, workers=4)
    course = start("gd(ef21(topk(k=0.1)), step=0.5)", problem)
    before = problem.accuracy(course.x)
    assert before < 0.3 and problem.accuracy(course.go(120).x) > 0.75
    images = _images.load("digits")
    assert len(images.labels) == 1500 and len(images.held_labels) == 297
    ones = torch.zeros(75, 16, dtype=torch.float64)
    ones[64] = 1.0  # all hidden units are tanh(1)
    ones[65 + 4] = 1.0  # so everything is a 4
    assert problem.accuracy(ones) == float((images.held_labels == 4).mean())


def test_compressors_per_layer_and_of_matrices_take_the_network() -> None:
    problem = Network(hidden=4, workers=3)
    entry = f"gd(ef21(per_tensor(topk(k=0.2), sizes={problem.sizes})), step=0.2)"
    course = start(entry, problem)
    first = float(problem.oracles(Block.whole(3)).values(course.x).mean())
    assert float(problem.oracles(Block.whole(3)).values(course.go(10).x).mean()) < first
    sent = int(start("powersgd(rank=1)".join(["gd(", ", step=0.2)"]), problem).go(1).runtime.ledger.uplink[0])
    assert 0 < sent < 8 * 75 * 4  # factors of 75 + 4 values, not 300


def test_splits_of_the_network() -> None:
    of = {
        split: Network(split=split, concentration=0.3, seed=2).modules()
        for split in ("shuffled", "sorted", "dirichlet")
    }
    labels = np.sort(_images.load("digits").labels)
    for modules in of.values():
        assert {len(part) for part in modules.targets} == {150}
        assert (np.sort(torch.cat(modules.targets).numpy()) == labels).all()
    kinds = {name: [len(np.unique(part.numpy())) for part in modules.targets] for name, modules in of.items()}
    assert max(kinds["sorted"]) <= 3 and min(kinds["shuffled"]) == 10


@pytest.mark.parametrize("concentration", [1e-3, 0.5, 1e4])
def test_dirichlet_proportions_of_many_classes(concentration) -> None:
    targets = np.repeat(np.arange(4), [400, 300, 200, 100])
    split = _split.DirichletClasses(concentration)
    drawn = split._proportions(np.array([0.4, 0.3, 0.2, 0.1]), 4000, 5)
    assert np.allclose(drawn.sum(axis=1), 1.0) and (drawn >= 0.0).all()
    shares = np.array([0.4, 0.3, 0.2, 0.1])  # mean p, variance p (1 - p) / (concentration + 1)
    deviation = np.sqrt(shares * (1 - shares) / (concentration + 1))
    assert (np.abs(drawn.mean(axis=0) - shares) < 5 * deviation / math.sqrt(4000)).all()
    assert np.allclose(drawn.std(axis=0), deviation, rtol=0.1, atol=1e-4)
    for workers, drop_last in ((7, False), (8, True), (1, False)):
        starts = _split.ends(1000, workers, drop_last)
        order = split.order(targets, starts, seed=1)
        assert (np.sort(order) == np.arange(1000)).all()
    counts = [
        np.bincount(targets[part], minlength=4)
        for part in np.split(split.order(targets, _split.ends(1000, 5, False), 1), 5)
    ]
    if concentration >= 1e4:
        assert np.abs(np.array(counts) - 200 * shares).max() <= 15
    if concentration <= 1e-3:
        assert max(counts[0]) >= 199  # one class, but for what rounding leaves


# ---- MNIST's files ---------------------------------------------------------------------------------------------------


def write_mnist(folder: Path, count: int = 60, side: int = 28) -> None:
    """Files in MNIST's format, of random pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    words = Keys(0, 0, "test/mnist", np.arange(1), 1).words(count * side * side)[0]
    levels, labels = (words % np.uint64(256)).astype(np.uint8), (np.arange(count) % 10).astype(np.uint8)
    for stem, some in (("train", count), ("t10k", count // 2)):
        header = b"\x00\x00\x08\x03" + np.array([some, side, side], dtype=">u4").tobytes()
        with gzip.open(folder / f"{stem}-images-idx3-ubyte.gz", "wb") as file:
            file.write(header + levels[: some * side * side].tobytes())
        with gzip.open(folder / f"{stem}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(b"\x00\x00\x08\x01" + np.array([some], dtype=">u4").tobytes() + labels[:some].tobytes())


def test_mnist_is_found_in_and_beside_the_data_directory(tmp_path, monkeypatch) -> None:
    write_mnist(tmp_path / "mnist")
    (tmp_path / "libsvm").mkdir()
    for folder in (tmp_path, tmp_path / "libsvm", tmp_path / "mnist"):
        images = _images.load("mnist", folder)
        assert images.levels.shape == (60, 784) and images.held_labels.tolist() == [k % 10 for k in range(30)]
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path))
    problem = Network(data="mnist", hidden=3, workers=2)
    oracles = problem.oracles(Block.whole(2))
    assert oracles.shape == (795, 3) == (sum(shape[0] for shape in problem.layers[::2]) + 1, 3)
    assert 0.0 <= problem.accuracy(oracles.start()) <= 1.0
    assert torch.isfinite(oracles.gradients(oracles.start())).all()
    auto = Autoencoder(data="mnist", features=2, workers=5)
    assert auto.oracles(Block.whole(5)).shape == (1568, 2) and auto.samples().starts[1] == 10


def test_absent_and_broken_pictures_are_refused_in_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("LACONIC_DATA", raising=False)

    def said(problem: Any, folder: Path | None) -> str:
        with pytest.raises(ValueError) as caught:
            problem.oracles(Block.whole(problem.n), folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    mnist = Autoencoder(data="mnist", workers=2)
    assert "no data directory is given" in said(mnist, None) and "use data='digits'" in said(mnist, tmp_path)
    write_mnist(tmp_path / "mnist")
    assert "60 pictures are dealt in workers + 1 parts" in said(Autoencoder(data="mnist", workers=60), tmp_path)
    assert "there are only 60 rows" in said(Network(data="mnist", workers=61), tmp_path)
    for number, damage in enumerate(
        (b"", b"\x00\x00\x08\x03\x00", b"\x00\x00\x0d\x03" + bytes(12), b"\x00\x00\x08\x01\x00\x00\x00\x02\x01")
    ):
        broken = tmp_path / str(number)
        write_mnist(broken)
        (broken / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(damage))
        assert "this is no whole IDX file of bytes" in said(mnist, broken)
    (tmp_path / "0" / "train-images-idx3-ubyte.gz").write_bytes(b"not gzip")
    assert "cannot be read" in said(Autoencoder(data="mnist", workers=3), tmp_path / "0")
    (tmp_path / "0" / "train-images-idx3-ubyte").write_bytes(b"not packed")  # a plain file comes first
    assert "this is no whole IDX file of bytes" in said(Autoencoder(data="mnist", workers=3), tmp_path / "0")
    write_mnist(tmp_path / "uneven")
    write_mnist(tmp_path / "more", count=70)
    (tmp_path / "more" / "t10k-labels-idx1-ubyte.gz").replace(tmp_path / "uneven" / "t10k-labels-idx1-ubyte.gz")
    assert "30 pictures and 35 labels" in said(Network(data="mnist"), tmp_path / "uneven")


def test_real_mnist(data_dir: Path) -> None:
    try:
        images = _images.load("mnist", data_dir)
    except ValueError as absent:
        pytest.skip(str(absent))
    assert images.levels.shape == (60000, 784) and images.held_levels.shape == (10000, 784)
    assert np.bincount(images.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


@pytest.mark.parametrize(
    "text",
    [
        "autoencoder(homogeneity=1.5)", "autoencoder(data='cifar')", "autoencoder(split='dirichlet')",
        "network(hidden=0)", "network(split='other')", "network(concentration=0.0)", "network(data='letters')",
    ],
)  # fmt: skip
def test_wrong_values_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=" must be "):
        problem_of(text)
