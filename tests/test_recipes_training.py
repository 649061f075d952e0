"""Training recipes: networks and data are what they claim, and a run that goes on equals one that was never stopped."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import lzma
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import laconic.training.recipes.text as texts
import worlds
from laconic.cli import app
from laconic.training.outputs import read_steps
from laconic.training.recipes import images, launch, networks, schedules
from laconic.training.recipes.baselines import Dense, HalfPrecision, Nothing, TorchPowerSGD, baseline_of, ring_bytes
from laconic.training.recipes.bigram import bigram_loss, discount
from laconic.training.recipes.images import augmented, digits, held_out, moved
from laconic.training.recipes.language import SIZES, gpt2
from laconic.training.recipes.randomness import generator_at
from laconic.training.recipes.shards import Shards, part_of
from laconic.training.recipes.text import Windows, documentation
from laconic.training.recipes.weights import filled

DATA = Path(os.environ.get("LACONIC_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
HAS_BPE = (DATA / "gpt2-bpe" / "encoder.json.xz").is_file()
needs_bpe = pytest.mark.skipif(not HAS_BPE, reason="LACONIC_DATA names no folder with gpt2-bpe/")


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---- networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (networks.resnet8, 78_042),
        (lambda: networks.resnet8(8), 19_954),
        (networks.resnet18, 11_173_962),
        (networks.vgg11, 9_228_362),  # 9,231,114 with the convolutions' biases, one for each of 2,752 channels
        (networks.vgg16, 14_724_042),
        (networks.vgg19, 20_035_018),
        (networks.DigitsNet, 9_930),
    ],
)
def test_the_networks_have_the_published_numbers_of_parameters(build: Any, parameters: int) -> None:
    with torch.device("meta"):
        assert count(build()) == parameters


@pytest.mark.parametrize("build", [networks.resnet8, lambda: networks.resnet18(8), networks.vgg11])
def test_images_become_ten_logits(build: Any) -> None:
    network = filled(build, generator_at(0))
    with torch.no_grad():
        logits = network(torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, 10) and bool(torch.isfinite(logits).all())


def test_weights_come_from_the_seed_and_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (filled(networks.resnet8, generator_at(seed)).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["stem.0.weight"], other["stem.0.weight"])
    weight = one["blocks.2.conv2.weight"]  # He: variance 2 / fan_out
    assert float(weight.var()) == pytest.approx(2 / (64 * 9), rel=0.05)
    with pytest.raises(ValueError, match="no rule fills the layer '', a Bilinear"):
        filled(lambda: nn.Bilinear(2, 2, 2), generator_at(0))


def test_sizes_of_gpt2_have_the_parameters_that_the_table_says() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    for size, vocabulary, parameters in (("nano", 256, 366_432), ("nano", 50_257, 5_166_528)):
        network = gpt2(SIZES[size], vocabulary, seed=0)
        assert count(network) == SIZES[size].parameters(vocabulary) == parameters
    assert SIZES["small"].parameters(50_257) == 124_439_808  # GPT-2's smallest
    assert [(size.layers, size.heads, size.width, size.context) for size in SIZES.values()] == [
        (3, 4, 96, 64), (4, 4, 128, 128), (6, 8, 256, 256), (12, 12, 768, 1024),
    ]  # fmt: skip
    small = gpt2(SIZES["nano"], 256, seed=0)
    assert small.lm_head.weight is small.transformer.wte.weight  # type: ignore[union-attr]
    with torch.no_grad():
        tokens = torch.arange(64)[None]
        logits = small(input_ids=tokens).logits
        changed = small(input_ids=tokens.clone().index_fill_(1, torch.tensor([40]), 7)).logits
    assert torch.equal(logits[:, :40], changed[:, :40]) and not torch.equal(logits[:, 40:], changed[:, 40:])
    assert float(nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:])) == pytest.approx(math.log(256), abs=0.3)


# ---- data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "batch", "world"), [(24, 3, 2), (25, 2, 4), (7, 7, 1)])
def test_an_epoch_shows_every_sample_once(samples: int, batch: int, world: int) -> None:
    shards = Shards(samples, batch, world, seed=5)
    epochs = []
    for epoch in range(2):
        steps = range(epoch * shards.steps_per_epoch, (epoch + 1) * shards.steps_per_epoch)
        parts = [shards.samples(step, rank) for step in steps for rank in range(world)]
        assert all(len(part) == batch for part in parts)
        seen = np.concatenate(parts)
        assert len(set(seen.tolist())) == len(seen) == samples - samples % (batch * world)
        assert set(seen.tolist()) <= set(range(samples))
        epochs.append(seen.tolist())
    assert epochs[0] != epochs[1]
    assert [part_of(samples, rank, world).stop for rank in range(world)][-1] == samples
    pieces = [list(range(samples))[part_of(samples, rank, world)] for rank in range(world)]
    assert list(itertools.chain(*pieces)) == list(range(samples))


def test_more_processes_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"--batch 4 : with 3 processes a step takes 12 of 10 samples.*from 1 to 3"):
        Shards(10, 4, 3, seed=0)


def test_augmentation_moves_and_mirrors_and_does_nothing_else() -> None:
    levels = torch.arange(1, 1 + 5 * 3 * 32 * 32, dtype=torch.int32).view(5, 3, 32, 32)
    centre, no = torch.full((5,), 4), torch.zeros(5, dtype=torch.bool)
    assert torch.equal(moved(levels, centre, centre, no), levels)
    assert torch.equal(moved(levels, centre, centre, ~no), levels.flip(3))
    down = moved(levels, torch.zeros(5, dtype=torch.int64), torch.full((5,), 7), no)
    assert torch.equal(down[:, :, 4:, :29], levels[:, :, :28, 3:])
    assert int(down[:, :, :4].sum()) == 0 and int(down[:, :, :, 29:].sum()) == 0
    one, same = (augmented(levels, generator_at(3, step)) for step in (1, 1))
    assert torch.equal(one, same) and not torch.equal(one, augmented(levels, generator_at(3, 2)))
    many = augmented(levels[:1].expand(400, -1, -1, -1), generator_at(0))
    seen = {int(image[0, 16, 16]) for image in many}  # column 12 to 20, or mirrored 11 to 19, in rows 12 to 20
    assert seen <= {1 + 32 * row + column for row in range(12, 21) for column in range(11, 21)} and len(seen) > 80


@pytest.mark.parametrize("part", ["cifar-10", "cifar-10-batches-bin", "."])
def test_cifar_is_read_plain_or_packed(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "PER_FILE", 3)
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / part
    folder.mkdir(exist_ok=True)
    content = [np.random.default_rng(seed).integers(0, 256, (3, images.RECORD), dtype=np.uint8) for seed in range(6)]
    packing = (("", bytes), (".xz", lzma.compress), (".gz", gzip.compress), (".bz2", bz2.compress), ("", bytes))
    for place, (name, rows) in enumerate(zip((*images.TRAIN_FILES, *images.TEST_FILES), content, strict=True)):
        rows[:, 0] = (place, 9, 0)  # labels
        suffix, pack = packing[place % len(packing)]
        (folder / f"{name}{suffix}").write_bytes(pack(rows.tobytes()))
    train, test = images.cifar10(tmp_path)
    assert train.labels.tolist() == [label for place in range(5) for label in (place, 9, 0)]
    assert test.labels.tolist() == [5, 9, 0] and train.levels.shape == (15, 3, 32, 32)
    assert np.array_equal(train.levels.reshape(15, -1), np.concatenate(content[:5])[:, 1:])
    (folder / "data_batch_2.bin.xz").write_bytes(lzma.compress(bytes(images.RECORD)))
    with pytest.raises(ValueError, match=r"data_batch_2.bin.xz : it does not hold 10,000 records"):
        images.cifar10(tmp_path)
    (folder / "data_batch_4.bin.bz2").unlink()
    with pytest.raises(ValueError, match=r"there is no cifar-10/data_batch_4.bin, plain or packed"):
        images.cifar10(tmp_path)


def test_digits_are_dealt_and_some_can_be_held_out() -> None:
    train, test = digits()
    assert (len(train), len(test)) == (1500, 297)
    whole = train.normalised(torch.from_numpy(train.levels))
    assert abs(float(whole.mean())) < 1e-3 and float(whole.std()) == pytest.approx(1.0, abs=1e-3)
    rest, held = held_out(train, 300, seed=1)
    again, _ = held_out(train, 300, seed=1)
    assert (len(rest), len(held)) == (1200, 300) and np.array_equal(rest.levels, again.levels)
    both = np.concatenate([rest.levels, held.levels]).reshape(1500, -1)
    assert sorted(map(bytes, both)) == sorted(map(bytes, train.levels.reshape(1500, -1)))
    with pytest.raises(ValueError, match="--validation 1500 : give an integer from 1 to 1499"):
        held_out(train, 1500, seed=0)


def test_windows_follow_one_another() -> None:
    windows = Windows(np.arange(20, dtype=np.uint8), context=6)
    assert len(windows) == 3
    assert windows.at(np.array([0, 2])).tolist() == [list(range(7)), list(range(12, 19))]
    assert windows.spread(0).tolist() == [0, 1, 2] and windows.spread(12).tolist() == [0, 1]
    text = documentation()
    assert len(text.train) > 9 * 4096 and 0.05 < len(text.validation) / len(text.train) < 0.15
    assert b"statement" in bytes(text.train)


@needs_bpe
def test_gpt2s_encoding_is_gpt2s_and_goes_back_and_forth() -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    encoding = texts.gpt2_encoding(DATA)
    assert encoding.encode("Hello world").ids == [15496, 995]
    assert encoding.encode("Hello, my dog is cute").ids == [15496, 11, 616, 3290, 318, 13779]
    assert encoding.get_vocab_size() == texts.GPT2_VOCABULARY == 50_257
    for text in (" = Valkyria <unk> @-@ III = \n \n  two", "naïve – 東京 🙂\t\r\n", "".join(map(chr, range(1, 300)))):
        assert encoding.decode(encoding.encode(text).ids) == text


def test_a_language_models_package_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"pip install 'laconic\[models\]' \(No module named 'laconic_absent'\)"):
        texts.needed("laconic_absent")


def test_the_bigram_model_is_kneser_and_neys() -> None:
    text = [0, 1, 2, 0, 1, 3, 0, 2, 2, 0, 1, 2, 4, 0, 3, 1, 0, 1, 2, 0, 4, 4]
    V = 6  # 5 is never seen
    pairs = list(itertools.pairwise(text))
    counts = {pair: pairs.count(pair) for pair in set(pairs)}
    D = discount(np.array(list(counts.values())))
    before_of = {w: sum(1 for pair in counts if pair[1] == w) for w in range(V)}
    E = discount(np.array(list(before_of.values())))
    assert 0 < D < 1 and 0 < E <= 1

    def alone(w: int) -> float:
        seen = sum(1 for count in before_of.values() if count)
        return max(before_of[w] - E, 0) / len(counts) + E * seen / len(counts) / V

    def p(w: int, v: int) -> float:
        total = sum(count for pair, count in counts.items() if pair[0] == v)
        if total == 0:
            return alone(w)
        different = sum(1 for pair in counts if pair[0] == v)
        return max(counts.get((v, w), 0) - D, 0) / total + D * different / total * alone(w)

    asked = [(v, w) for v in range(V) for w in range(V)]
    for v in range(V):
        assert sum(p(w, v) for w in range(V)) == pytest.approx(1.0, abs=1e-12)
    train = np.array(text, dtype=np.uint16)
    for v, w in asked:
        found = bigram_loss(train, V, np.array([v]), np.array([w]))
        assert found == pytest.approx(-math.log(p(w, v)), rel=1e-12), (v, w)
    mean = bigram_loss(train, V, np.array([v for v, _ in asked]), np.array([w for _, w in asked]))
    assert mean == pytest.approx(-sum(math.log(p(w, v)) for v, w in asked) / len(asked), rel=1e-12)


# ---- baselines and schedules -------------------------------------------------------------------------------------


def test_the_baselines_bytes_are_those_of_their_definitions() -> None:
    with torch.device("meta"):
        shapes = [tuple(parameter.shape) for parameter in networks.resnet18().parameters()]
    assert Dense().said(shapes, 0) == 4 * 11_173_962 and HalfPrecision().said(shapes, 0) == 2 * 11_173_962
    assert Nothing().said(shapes, 0) == 0
    rank1 = TorchPowerSGD(1)
    assert rank1.said(shapes, 1) == 4 * 11_173_962  # two steps are dense
    # a 3 x 3 convolution of c into o channels is an o x 9c matrix; scales, shifts and the head's bias are dense
    convolutions = [(64, 3, 3)] + [(64, 64, 3)] * 4 + [(128, 64, 3)] + [(128, 128, 3)] * 3 + [(256, 128, 3)]
    convolutions += [(256, 256, 3)] * 3 + [(512, 256, 3)] + [(512, 512, 3)] * 3
    convolutions += [(128, 64, 1), (256, 128, 1), (512, 256, 1)]
    factors = sum(o + c * k * k for o, c, k in convolutions) + 10 + 512
    assert rank1.said(shapes, 2) == 4 * (factors + 9_600 + 10)
    assert rank1.said([(4, 4)], 2) == 64  # 2 (4 + 4) is not below 16: not worth it
    assert [ring_bytes(1200, n) for n in (1, 2, 3, 4)] == [0, 1200, 1600, 1800]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("powersgd-0", "give an integer >= 1 as the rank"),
        ("powersgd", "give an integer >= 1 as the rank"),
        ("dense-2", "dense has no parameter"),
        ("ring", "give dense, fp16, powersgd-RANK or none"),
    ],
)
def test_baselines_that_there_are_not_are_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        baseline_of(text)


def test_schedules_begin_and_end_where_they_should() -> None:
    assert [schedules.factor(schedules.step, step, 8, 0) for step in (0, 3, 4, 6)] == [1.0, 1.0, 0.1, 0.1**2]
    cosine = [schedules.factor(schedules.cosine, step, 110, 10) for step in range(110)]
    assert cosine[:10] == [pytest.approx((i + 1) / 10) for i in range(10)]
    assert cosine[10] == 1.0 and cosine[60] == pytest.approx(0.5) and 0 < cosine[-1] < 1e-3
    assert schedules.factor(schedules.constant, 7, 8, 2) == 1.0


# ---- runs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", ["ef14(topk(k=0.05) | natural)", "dense"])
def test_a_run_that_goes_on_equals_one_that_was_never_stopped(tmp_path: Path, exchange: str) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected = worlds.pool().results("recipe", 2, exchange=exchange, out=str(whole), steps=12)
    broken = worlds.pool().results("recipe", 2, exchange=exchange, out=str(stopped), steps=12, stop_after=9)
    assert [rank["x"] for rank in broken] == [None, None]
    found = worlds.pool().results("recipe", 2, exchange=exchange, out=str(stopped), steps=12, resume=True)
    assert found[0]["x"] == found[1]["x"] == expected[0]["x"] == expected[1]["x"]
    assert found[0]["up"] == expected[0]["up"] > 0
    for name, lines in (("steps", 12), ("evaluations", 4)):
        one, other = ((out / f"{name}.jsonl").read_text().splitlines() for out in (whole, stopped))
        assert len(one) == len(other) == lines
        for left, right in zip(map(json.loads, one), map(json.loads, other), strict=True):
            for key in {
                "step",
                "up",
                "down",
                "loss",
                "epoch",
                "test_loss",
                "test_accuracy",
                "train_loss",
            } & left.keys():
                assert left[key] == right[key], (name, key)
    assert list(read_steps(stopped / "steps.jsonl").index) == list(range(12))
    assert sorted(path.name for path in whole.glob("checkpoint*")) == [
        "checkpoint-00000012-rank0.pt", "checkpoint-00000012-rank1.pt",
    ]  # fmt: skip
    document = json.loads((whole / "run.json").read_text())
    assert document["smoke"] and document["identity"]["exchange"] == exchange
    assert document["parameters"]["all"] == 9_930 and document["result"]["steps"] == 12
    other = worlds.pool().run("recipe", 2, exchange=exchange, out=str(stopped), steps=13, resume=True)
    assert all("has steps 12, and this one 13" in reply["message"] for reply in other)


def test_pytorchs_powersgd_cannot_go_on_and_says_so(tmp_path: Path) -> None:
    (reply,) = worlds.pool().run("recipe", 1, exchange="powersgd-1", out=str(tmp_path), steps=3, resume=True)
    assert "--resume : powersgd-1 keeps its errors by DDP's bucket numbers" in reply["message"]


def test_pytorchs_powersgd_trains_and_its_bytes_fall_after_two_steps(tmp_path: Path) -> None:
    found = worlds.pool().results("recipe", 2, exchange="powersgd-1", out=str(tmp_path), steps=4)
    assert found[0]["x"] == found[1]["x"]
    # compressed: 16 x 9, 32 x 144 and 10 x 512; dense: three shifts
    assert found[0]["up"] == 4 * (2 * 9_930 + 2 * (25 + 176 + 522 + 58))
    ratios = read_steps(tmp_path / "steps.jsonl")["ratio"]
    assert ratios.iloc[1] == 1.0 and ratios.iloc[2] < 0.1


def test_processes_that_do_not_speak_learn_apart(tmp_path: Path) -> None:
    found = worlds.pool().results("recipe", 2, exchange="none", out=str(tmp_path), steps=3)
    assert found[0]["x"] != found[1]["x"] and found[0]["up"] == 0


# ---- the command line --------------------------------------------------------------------------------------------


def test_the_command_trains_alone_and_says_what_it_cost(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = CliRunner().invoke(app, ["train", "digits", "--steps", "4", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "test accuracy" in done.output and "39,720 bytes up per step" in done.output and "smoke" in done.output
    with pytest.raises(ValueError, match="it holds a run already; name another directory, or go on with --resume"):
        invoke("digits", "--steps", "4", "--out", str(out))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("digits", "--mechanism", "topk(k=0.1)"), "it is a compressor; give a mechanism"),
        (("digits", "--mechanism", "ef14(topk(k=0.1))", "--baseline", "dense"), "not both"),
        (("digits", "--width", "8"), "--width : digits has no such option; it has --batch, "),
        (("digits", "--lr", "-1"), "--lr -1.0 : give a finite number >= 0"),
        (("digits", "--schedule", "linear"), "give one of constant, cosine, step"),
        (("digits", "--steps", "0"), "--steps 0 : give an integer >= 1"),
        (("gpt2", "--size", "huge"), "--size huge : give one of nano, micro, mini, small"),
        (("resnet50",), "give one of digits, resnet8, resnet18, vgg11, vgg16, vgg19, gpt2"),
        (("resnet8", "--data-dir", "/nowhere"), "there is no cifar-10/data_batch_1.bin, plain.*laconic train digits"),
        (("resnet8",), "name the folder that has it with --data-dir or LACONIC_DATA.*laconic train digits"),
        (("digits", "--resume"), "name the run's directory with --out"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    arguments: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LACONIC_DATA", raising=False)
    with pytest.raises(ValueError, match=says) as caught:
        invoke(*arguments)
    assert "\n" not in str(caught.value)


def invoke(*arguments: str) -> None:
    CliRunner().invoke(app, ["train", *arguments], catch_exceptions=False)


@pytest.mark.parametrize(("rank", "left"), [(None, []), ("1", [0])])
def test_only_one_process_of_several_leaves_without_the_interpreters_end(
    rank: str | None, left: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    launch.leave()
    assert codes == left
