"""Local updates of real models do what the papers' pseudo-code says, which this file simulates in one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import worlds
from laconic.core.link import Link
from laconic.core.problem import Block
from laconic.core.spec import parse
from laconic.runtime.local import Local
from laconic.training.diloco import deal
from laconic.training.policy import setting_of
from local_jobs import NETWORKS, inner_of

Named = dict[str, Tensor]
DENSE = "direct_all_reduce"
SGD = {"lr": 0.2}
MOMENTUM = {"lr": 0.1, "momentum": 0.9}
ADAMW = {"name": "AdamW", "lr": 0.05, "weight_decay": 0.1, "eps": 1e-3}  # BatchNorm leaves a gradient of pure rounding


# ---- the references: all workers in this process ------------------------------------------------------------------


class Mean:
    """The simulator's average of one tensor per worker, by a mechanism, with its memory."""

    def __init__(self, n: int, spec: str = DENSE) -> None:
        self.runtime, self.mechanism, self.memory, self.steps = Local(n), parse(spec), {}, 0

    def __call__(self, vectors: Mapping[str, list[Tensor]]) -> Named:
        link, found = self.runtime.links[0], {}
        link.begin(self.steps)
        self.steps += 1
        for name, rows in vectors.items():
            v, scope = torch.stack(rows), link.scope(name)
            mechanism: Any = self.mechanism
            mechanism = mechanism.settled(setting_of(len(rows), tuple(v.shape[1:])))
            text = mechanism.exchange(v, self.memory[name], scope) if name in self.memory else mechanism.init(v, scope)
            ((estimate, self.memory[name]),) = self.runtime.drive(text)
            found[name] = estimate.clone()
        return found


class Workers:
    """n networks with an optimizer each, all from rank 0's start."""

    def __init__(self, n: int, inner: dict[str, Any], network: str = "normed") -> None:
        start = NETWORKS[network](10)
        self.models = [NETWORKS[network](10) for _ in range(n)]
        self.optimizers = [inner_of(model, inner) for model in self.models]
        self.names = [name for name, p in start.named_parameters() if p.requires_grad]
        self.sizes = {name: p.numel() for name, p in start.named_parameters() if p.requires_grad}
        self.start = {name: p.detach().clone() for name, p in start.named_parameters()}

    def of(self, rank: int) -> Named:
        return {name: p.data for name, p in self.models[rank].named_parameters() if p.requires_grad}

    def all(self, name: str) -> list[Tensor]:
        return [self.of(rank)[name] for rank in range(len(self.models))]

    def gradients(self, step: int) -> None:
        for rank, model in enumerate(self.models):
            model.zero_grad()
            model.loss(rank, step).backward()

    def step(self, step: int) -> None:
        self.gradients(step)
        for optimizer in self.optimizers:
            optimizer.step()

    def average_buffers(self, names: tuple[str, ...] = ("norm.running_mean", "norm.running_var")) -> None:
        for name in names:
            buffers = [dict(model.named_buffers())[name] for model in self.models if dict(model.named_buffers())]
            for buffer, mean in zip(buffers, [sum(buffers) / len(buffers)] * len(buffers), strict=True):
                buffer.copy_(mean)

    def seen(self) -> list[dict[str, list[float]]]:
        return [
            {name: t.detach().flatten().tolist() for name, t in (*model.named_parameters(), *model.named_buffers())}
            for model in self.models
        ]


def local_sgd(n: int, steps: int, every: int, inner: dict[str, Any], spec: str = DENSE) -> tuple[Workers, Mean]:
    workers, mean = Workers(n, inner), Mean(n, spec)
    x = {name: workers.start[name].clone() for name in workers.names}
    for t in range(1, steps + 1):
        workers.step(t - 1)
        if t % every == 0:
            changes = mean({name: [y - x[name] for y in workers.all(name)] for name in x})
            for name in x:
                x[name] = x[name] + changes[name]
                for y in workers.all(name):
                    y.copy_(x[name])
            workers.average_buffers()
    return workers, mean


def average_gradients(workers: Workers) -> None:
    for name in workers.names:
        gradients = [dict(model.named_parameters())[name].grad for model in workers.models]
        mean = sum(gradients) / len(gradients)  # type: ignore[arg-type]
        for gradient in gradients:
            gradient.copy_(mean)  # type: ignore[union-attr]


def post_local(n: int, steps: int, every: int, start: int, inner: dict[str, Any]) -> Workers:
    workers = Workers(n, inner)
    for t in range(1, steps + 1):
        workers.gradients(t - 1)
        if t <= start:
            average_gradients(workers)
            workers.average_buffers()
        for optimizer in workers.optimizers:
            optimizer.step()
        if t > start and (t - start) % every == 0:
            for name in workers.names:
                mean = sum(workers.all(name)) / n
                for y in workers.all(name):
                    y.copy_(mean)
            workers.average_buffers()
    return workers


DEALT = {  # by hand: the sizes are 88, 8, 8, 8, 24, 3, and the middle of the second is at 92 of 139
    1: [["first.weight", "first.bias", "norm.weight", "norm.bias", "head.weight", "head.bias"]],
    2: [["first.weight"], ["first.bias", "norm.weight", "norm.bias", "head.weight", "head.bias"]],
    3: [["first.weight"], ["first.bias"], ["norm.weight", "norm.bias", "head.weight", "head.bias"]],
}


@dataclass
class Outer:
    """Nesterov's momentum on one fragment, as the paper writes it."""

    x: Named
    lr: float
    m: float
    b: Named = field(default_factory=dict)

    def step(self, change: Named) -> None:
        for name, delta in change.items():
            self.b[name] = self.m * self.b[name] + delta if name in self.b else delta
            self.x[name] = self.x[name] - self.lr * (delta + self.m * self.b[name])


def diloco(
    n: int, steps: int, every: int, inner: dict[str, Any], parts: int = 1, delay: int = 0, alpha: float = 0.0,
    spec: str = DENSE, lr: float = 0.7, m: float = 0.9,
) -> tuple[Workers, dict[str, Any], Mean]:  # fmt: skip
    workers, mean = Workers(n, inner), Mean(n, spec)
    outers = [Outer({name: workers.start[name].clone() for name in names}, lr, m) for names in DEALT[parts]]
    buffers: dict[int, list[Named]] = {}
    sent: dict[int, Named] = {}
    for t in range(1, steps + 1):
        workers.step(t - 1)
        for p, outer in enumerate(outers):
            offset = ((p + 1) * every // parts) % every
            if t >= delay and (t - delay) % every == offset and p in sent:
                outer.step(sent.pop(p))
                merge(workers, outer, alpha)
                put_buffers(workers, buffers.pop(p, None))
            if t % every == offset:
                sent[p] = mean({name: [outer.x[name] - y for y in workers.all(name)] for name in outer.x})
                if p == parts - 1:
                    models = workers.models
                    every_one = [dict(model.named_buffers()) for model in models]
                    names = ("norm.running_mean", "norm.running_var")
                    buffers[p] = [{name: sum(b[name] for b in every_one) / n for name in names}]
                if delay == 0:
                    outer.step(sent.pop(p))
                    merge(workers, outer, alpha)
                    put_buffers(workers, buffers.pop(p, None))
    anchor = {name: x.flatten().tolist() for outer in outers for name, x in outer.x.items()}
    return workers, anchor, mean


def merge(workers: Workers, outer: Outer, alpha: float) -> None:
    for name, x in outer.x.items():
        for y in workers.all(name):
            y.copy_(alpha * y + (1 - alpha) * x)


def put_buffers(workers: Workers, values: list[Named] | None) -> None:
    for value in values or []:
        for model in workers.models:
            for name, buffer in model.named_buffers():
                if name in value:
                    buffer.copy_(value[name])


def proxskip(
    n: int, steps: int, p: float, lr: float, decay: float = 0.0, network: str = "normed", seed: int = 0
) -> tuple[Workers, list[Named], int]:
    workers, coins, averages = Workers(n, SGD, network), Link(Block(0, n, n), seed), 0
    h = [{name: torch.zeros_like(x) for name, x in workers.of(i).items()} for i in range(n)]
    for t in range(1, steps + 1):
        workers.gradients(t - 1)
        for i, model in enumerate(workers.models):
            for name, x in model.named_parameters():
                if name in h[i]:
                    x.data -= lr * (x.grad + decay * x.data - h[i][name])
        coins.begin(t)
        if coins.coin(p):
            averages += 1
            for name in workers.names:
                mean = sum(workers.all(name)) / n
                for i, x in enumerate(workers.all(name)):
                    h[i][name] += p / lr * (mean - x)
                    x.copy_(mean)
            workers.average_buffers() if network == "normed" else None
    return workers, h, averages


def scaffold(
    n: int, steps: int, every: int, rates: list[float], server: float = 1.0, spec: str = DENSE, network: str = "normed"
) -> tuple[Workers, list[Named], Named, Mean]:
    workers, mean = Workers(n, SGD, network), Mean(n, spec)
    x = {name: workers.start[name].clone() for name in workers.names}
    c = {name: torch.zeros_like(v) for name, v in x.items()}
    ci = [{name: torch.zeros_like(v) for name, v in x.items()} for _ in range(n)]
    walked = 0.0
    for t in range(1, steps + 1):
        lr = rates[(t - 1) % len(rates)]
        walked += lr
        workers.gradients(t - 1)
        for i, model in enumerate(workers.models):
            for name, y in model.named_parameters():
                if name in x:
                    y.data -= lr * (y.grad - ci[i][name] + c[name])
        if t % every == 0:
            new = [{name: ci[i][name] - c[name] + (x[name] - y) / walked for name, y in workers.of(i).items()}
                   for i in range(n)]  # fmt: skip
            told = {name: [y - x[name] for y in workers.all(name)] for name in x}
            told |= {f"{name}.control": [new[i][name] - ci[i][name] for i in range(n)] for name in x}
            change = mean(told)
            for name in x:
                x[name] = x[name] + server * change[name]
                c[name] = c[name] + change[f"{name}.control"]
                for y in workers.all(name):
                    y.copy_(x[name])
            ci, walked = new, 0.0
            workers.average_buffers() if network == "normed" else None
    return workers, ci, c, mean


# ---- comparing ---------------------------------------------------------------------------------------------------


def run(method: str, n: int, steps: int, inner: dict[str, Any], options: dict[str, Any], **more: Any) -> list[Any]:
    found = worlds.pool().results("local", n, method=method, steps=steps, inner=inner, options=options, **more)
    for rank in found:
        assert rank["hooks"] == 0 and rank["threads"] == []  # nothing is left after the block
    return found


def agree(found: list[Any], expected: list[Any], tolerance: float = 1e-12, key: str = "values") -> None:
    assert len(found) == len(expected)
    for rank, reference in zip(found, expected, strict=True):
        mine = rank[key] if key == "values" else rank["kept"][key]
        assert mine.keys() >= reference.keys()
        for name, values in reference.items():
            assert mine[name] == pytest.approx(values, rel=0.0, abs=tolerance), name


def listed(tensors: Mapping[str, Tensor]) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in tensors.items()}


# ---- LocalSGD ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "every", "inner"), [(3, 1, SGD), (2, 3, MOMENTUM), (3, 4, ADAMW)])
def test_local_sgd_is_its_pseudo_code(n: int, every: int, inner: dict[str, Any]) -> None:
    workers, _ = local_sgd(n, 10, every, inner)
    found = run("LocalSGD", n, 10, inner, {"sync_every": every})
    agree(found, workers.seen())
    differ = found[0]["x"]["head.weight"] != found[1]["x"]["head.weight"]
    assert differ == (10 % every != 0)


def test_dense_averages_cost_what_the_model_weighs() -> None:
    found = run("LocalSGD", 2, 10, SGD, {"sync_every": 3})
    numbers = 88 + 8 + 8 + 8 + 24 + 3 + 16  # the parameters, and BatchNorm's running mean and variance
    flags = 2  # whether all numbers are finite, one per worker
    for rank in found:
        assert rank["exchanges"] == 3
        assert rank["uplink"] == [3 * 8 * (numbers + flags)] * 2


@pytest.mark.parametrize("spec", ["ef14(topk(k=0.2) | natural)", "ef21(topk(k=3))", "ef14_inside(sign)"])
def test_compressed_changes_with_error_feedback(spec: str) -> None:
    workers, mean = local_sgd(2, 14, 3, MOMENTUM, spec)
    found = run("LocalSGD", 2, 14, MOMENTUM, {"sync_every": 3, "mechanism": spec})
    agree(found, workers.seen())
    beside = 4 * 8 * (16 + 2)  # four exchanges: the buffers and the flags
    for rank in found:
        assert rank["uplink"] == [bytes_up + beside for bytes_up in mean.runtime.ledger.uplink.tolist()]


def test_one_local_step_is_ddp() -> None:
    ddp = worlds.pool().results("local_synchronous", 3, steps=6, inner=SGD)
    found = run("LocalSGD", 3, 6, SGD, {"sync_every": 1})
    parameters = DEALT[1][0]
    agree(found, [{name: rank["values"][name] for name in parameters} for rank in ddp])


def test_averaged_momentum_is_another_rule() -> None:
    workers = Workers(2, MOMENTUM)
    for t in range(1, 8):
        workers.step(t - 1)
        if t % 3 == 0:
            for name in workers.names:
                buffers = [o.state[dict(m.named_parameters())[name]]["momentum_buffer"]
                           for o, m in zip(workers.optimizers, workers.models, strict=True)]  # fmt: skip
                for tensors in (workers.all(name), buffers):
                    mean = sum(tensors) / 2
                    for tensor in tensors:
                        tensor.copy_(mean)
            workers.average_buffers()
    found = run("LocalSGD", 2, 7, MOMENTUM, {"sync_every": 3, "average_state": ["momentum_buffer"]})
    agree(found, workers.seen())
    plain = run("LocalSGD", 2, 7, MOMENTUM, {"sync_every": 3})
    assert plain[0]["x"] != found[0]["x"]


# ---- post-local SGD ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "inner"), [(4, MOMENTUM), (0, SGD)])
def test_post_local_sgd_is_its_pseudo_code(start: int, inner: dict[str, Any]) -> None:
    found = run("PostLocalSGD", 3, 12, inner, {"sync_every": 3, "start": start})
    agree(found, post_local(3, 12, 3, start, inner).seen())


def test_its_first_phase_is_ddp_bit_for_bit() -> None:
    ddp = worlds.pool().results("local_synchronous", 2, steps=6, inner=MOMENTUM)
    for spec in (DENSE, "ef21(topk(k=3))"):
        found = run("PostLocalSGD", 2, 6, MOMENTUM, {"sync_every": 2, "start": 6, "mechanism": spec})
        for rank, reference in zip(found, ddp, strict=True):
            for name in DEALT[1][0]:
                assert rank["x"][name] == reference["x"][name]
        assert found[0]["x"] == found[1]["x"]


def test_compression_starts_from_the_model_at_the_switch() -> None:
    spec, workers, mean = "ef14(topk(k=0.3))", post_local(2, 4, 9, 4, SGD), Mean(2, "ef14(topk(k=0.3))")
    mean.steps = 4  # gradients were averaged before
    x = {name: y.clone() for name, y in workers.of(0).items()}
    for t in range(5, 11):
        workers.step(t - 1)
        if t in (6, 8, 10):
            changes = mean({name: [y - x[name] for y in workers.all(name)] for name in x})
            for name in x:
                x[name] = x[name] + changes[name]
                for y in workers.all(name):
                    y.copy_(x[name])
            workers.average_buffers()
    agree(run("PostLocalSGD", 2, 10, SGD, {"sync_every": 2, "start": 4, "mechanism": spec}), workers.seen())


# ---- DiLoCo ------------------------------------------------------------------------------------------------------

FORMS = [(1, 0, 0.0), (1, 2, 0.0), (2, 0, 0.0), (2, 2, 0.5), (3, 0, 0.25), (3, 2, 0.5), (3, 3, 0.0)]


@pytest.mark.parametrize(("parts", "delay", "alpha"), FORMS)
def test_diloco_is_its_pseudo_code(parts: int, delay: int, alpha: float) -> None:
    workers, anchor, _ = diloco(2, 15, 4, ADAMW, parts, delay, alpha)
    options = {"sync_every": 4, "fragments": parts, "delay": delay, "mixing": alpha}
    found = run("DiLoCo", 2, 15, ADAMW, options)
    agree(found, [anchor] * 2, key="anchor")
    if not delay:  # at the end of the block what is in the air is merged
        agree(found, workers.seen())


@pytest.mark.parametrize("parts", [1, 2])
def test_diloco_with_compressed_changes(parts: int) -> None:
    spec = "ef14(topk(k=0.2) | natural)"
    workers, anchor, mean = diloco(3, 13, 4, MOMENTUM, parts, spec=spec)
    found = run("DiLoCo", 3, 13, MOMENTUM, {"sync_every": 4, "fragments": parts, "mechanism": spec})
    agree(found, workers.seen())
    agree(found, [anchor] * 3, key="anchor")
    exchanges = 3 if parts == 1 else 6
    beside = 8 * (3 * 16 + 3 * exchanges)
    assert found[0]["exchanges"] == exchanges
    assert found[0]["uplink"] == [bytes_up + beside for bytes_up in mean.runtime.ledger.uplink.tolist()]


def test_diloco_that_averages_is_local_sgd_and_ddp() -> None:
    averaging = {"lr": 1.0}
    found = run("DiLoCo", 2, 10, MOMENTUM, {"sync_every": 3, "outer": averaging})
    agree(found, local_sgd(2, 10, 3, MOMENTUM)[0].seen())
    ddp = worlds.pool().results("local_synchronous", 2, steps=6, inner=SGD)
    found = run("DiLoCo", 2, 6, SGD, {"sync_every": 1, "outer": averaging})
    agree(found, [{name: rank["values"][name] for name in DEALT[1][0]} for rank in ddp])


@pytest.mark.parametrize(
    ("sizes", "fragments", "delay"),
    [([6, 6], 1, 0), ([6, 6], 1, 1), ([5, 3, 9, 1, 1, 7, 2], 3, 2), ([1, 1, 100, 1], 4, 1), ([100, 1, 1, 1], 3, 0)],
)
def test_every_number_of_every_tensor_is_reduced(sizes: list[int], fragments: int, delay: int) -> None:
    for found in worlds.pool().results("local_sizes", 2, sizes=sizes, fragments=fragments, delay=delay, sync_every=4):
        assert found == [[1.5] * size for size in sizes]  # the mean of 1 and 2, in fragments of any size


def test_fragments_are_a_partition_in_order() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in range(1, 12):
        for fragments in range(1, count + 1):
            sizes = torch.randint(1, 1000, (count,), generator=generator).tolist()
            dealt = deal(sizes, fragments)
            assert [place for run in dealt for place in run] == list(range(count))
            assert len(dealt) == fragments and all(len(run) for run in dealt)
    assert deal([10] * 12, 4) == [range(0, 3), range(3, 6), range(6, 9), range(9, 12)]


def test_training_goes_on_while_a_fragment_is_in_the_air() -> None:
    for rank in worlds.pool().results("local_overlap", 2, delay=2):  # merged after step 6, and only 5 are taken
        assert rank["seconds"] < 0.4
    for rank in worlds.pool().results("local_overlap", 2, delay=0):
        assert rank["seconds"] > 0.5


# ---- control variates --------------------------------------------------------------------------------------------


def test_proxskip_is_its_pseudo_code() -> None:
    workers, h, averages = proxskip(3, 14, 0.4, 0.1, decay=0.05)
    found = run("ProxSkip", 3, 14, {"lr": 0.1, "weight_decay": 0.05}, {"probability": 0.4})
    agree(found, workers.seen())
    agree(found, [listed(mine) for mine in h], key="control")
    assert 2 <= averages < 14 and found[0]["exchanges"] == averages
    for name in workers.names:
        total = torch.tensor([rank["kept"]["control"][name] for rank in found], dtype=torch.float64).sum(dim=0)
        assert float(total.abs().max()) < 1e-13


def test_proxskip_that_always_averages_is_ddp() -> None:
    ddp = worlds.pool().results("local_synchronous", 2, steps=6, inner=SGD)
    found = run("ProxSkip", 2, 6, SGD, {"probability": 1.0})
    agree(found, [{name: rank["values"][name] for name in DEALT[1][0]} for rank in ddp])


@pytest.mark.parametrize(("n", "every", "server"), [(3, 4, 1.0), (2, 3, 1.3), (2, 1, 1.0)])
def test_scaffold_is_its_pseudo_code(n: int, every: int, server: float) -> None:
    rates = [0.1, 0.2, 0.15]
    workers, ci, c, _ = scaffold(n, 13, every, rates, server)
    found = run("SCAFFOLD", n, 13, SGD, {"sync_every": every, "server_step": server}, rates=rates)
    agree(found, workers.seen())
    agree(found, [listed(c)] * n, key="mean")
    agree(found, [listed({name: mine[name] - c[name] for name in c}) for mine in ci], key="correction")
    for name in workers.names:  # c is the mean of the c_i
        total = torch.tensor([rank["kept"]["correction"][name] for rank in found], dtype=torch.float64).sum(dim=0)
        assert float(total.abs().max()) < 1e-13


def test_scaffold_with_compressed_vectors() -> None:
    spec = "ef21(topk(k=0.3))"
    workers, _, c, mean = scaffold(2, 12, 3, [0.1], spec=spec)
    found = run("SCAFFOLD", 2, 12, {"lr": 0.1}, {"sync_every": 3, "mechanism": spec})
    agree(found, workers.seen())
    agree(found, [listed(c)] * 2, key="mean")
    beside = 4 * 8 * (16 + 2)
    assert found[0]["uplink"] == [bytes_up + beside for bytes_up in mean.runtime.ledger.uplink.tolist()]


def test_control_variates_reach_the_minimum_and_plain_averages_do_not() -> None:
    curvature, linear = zip(
        *((d.square(), d * b) for d, b in (NETWORKS["quadratic"].data(rank) for rank in range(3))), strict=True
    )
    minimum = sum(linear) / sum(curvature)
    inner = {"lr": 0.3}
    distances = {}
    for method, options in {
        "LocalSGD": {"sync_every": 5},
        "ProxSkip": {"probability": 0.3},
        "SCAFFOLD": {"sync_every": 5},
    }.items():
        found = run(method, 3, 500, inner, options, network="quadratic")
        distances[method] = float((torch.tensor(found[0]["values"]["x"], dtype=torch.float64) - minimum).abs().max())
    assert distances["LocalSGD"] > 1e-2
    assert distances["ProxSkip"] < 1e-12 and distances["SCAFFOLD"] < 1e-12


# ---- what holds for all ------------------------------------------------------------------------------------------

ALL = {
    "LocalSGD": ({"sync_every": 4, "mechanism": "ef14(topk(k=0.2) | natural)"}, MOMENTUM),
    "PostLocalSGD": ({"sync_every": 3, "start": 2, "mechanism": "ef21(topk(k=0.2))"}, MOMENTUM),
    "DiLoCo": ({"sync_every": 5, "fragments": 3, "delay": 3, "mixing": 0.5, "mechanism": "ef21(topk(k=0.2))"}, ADAMW),
    "ProxSkip": ({"probability": 0.4}, SGD),
    "SCAFFOLD": ({"sync_every": 4, "mechanism": "ef14(topk(k=0.2))"}, SGD),
}


@pytest.mark.parametrize(("method", "stop", "early"), [(method, stop, stop == 9) for method in ALL for stop in (6, 9)])
def test_an_interrupted_run_goes_on_bit_for_bit(method: str, stop: int, early: bool) -> None:
    options, inner = ALL[method]
    whole = run(method, 2, 15, inner, options)
    resumed = run(method, 2, 15, inner, options, stop=stop, early=early)
    for before, after in zip(whole, resumed, strict=True):
        assert after["x"] == before["x"]
        assert after["kept"] == before["kept"]
        assert after["uplink"] == before["uplink"]
        assert after["exchanges"] == before["exchanges"]
    assert whole[0]["x"] != whole[1]["x"]  # it ends between two averages, so that the workers' own models matter
    if method == "DiLoCo":
        assert resumed[0]["flights"] >= 1  # something was in the air


@pytest.mark.parametrize("method", ALL)
def test_one_worker_trains_as_if_alone(method: str) -> None:
    options, inner = ALL[method]
    options = {key: value for key, value in options.items() if key not in ("mechanism", "delay", "mixing")}
    if method == "DiLoCo":
        options["outer"] = {"lr": 1.0}
    alone = Workers(1, inner)
    for step in range(15):
        alone.step(step)
    agree(run(method, 1, 15, inner, options), alone.seen())


def test_an_error_on_one_rank_takes_everything_out_and_waits_for_nobody() -> None:
    for rank in worlds.pool().results("local_left_by_error", 2):
        assert rank == {"hooks": 0, "threads": []}


def test_a_model_that_is_not_finite_ends_the_run_by_name() -> None:
    for said in worlds.pool().results("local_not_finite", 2):
        assert "'x' of worker 1" in said


def test_settings_that_differ_are_told_on_all_ranks() -> None:
    for rank, said in enumerate(worlds.pool().results("local_differs", 2)):
        assert f"rank {rank} : ranks [1] were given other settings than rank 0" in said
        assert f"'sync_every': {2 + rank}" in said


def test_what_cannot_be_is_refused_in_one_line() -> None:
    (said,) = worlds.pool().results("local_refused", 1)
    expected = {
        "ddp": ("LocalSGD(model)", "DistributedDataParallel", "model.module", "no_sync()"),
        "sync_every": ("LocalSGD(sync_every=0)", "an integer >= 1"),
        "start": ("PostLocalSGD(start=-1)", "an integer >= 0"),
        "delay": ("DiLoCo(delay=4, sync_every=4)", "merged before its next exchange"),
        "mixing": ("DiLoCo(mixing=1.0)", "[0, 1)"),
        "fragments": ("DiLoCo(fragments=7)", "6 parameters"),
        "fragments and steps": ("DiLoCo(fragments=5)", "sync_every is 4"),
        "warm-up": ("DiLoCo(fragments=2)", "without warm_up"),
        "missing": ("LocalSGD(optimizer)", "'first.weight'", "'norm.bias'", "freeze them"),
        "stranger": ("LocalSGD(optimizer)", "1 of its tensors"),
        "second": ("LocalSGD(optimizer)", "close() those first"),
        "needs": ("marina", "full gradients", "LocalSGD"),
        "adam": ("SCAFFOLD(optimizer)", "Adam", "torch.optim.SGD"),
        "momentum": ("ProxSkip(optimizer)", "momentum=0.9"),
        "maximize": ("ProxSkip(optimizer)", "maximize"),
        "probability": ("ProxSkip(probability=0.0)", "> 0 and <= 1"),
        "server_step": ("SCAFFOLD(server_step=0.0)", "must be > 0"),
        "no optimizer": ("LocalSGD(optimizer)", "Normed", "torch.optim.Optimizer"),
        "closure": ("PostLocalSGD(start=2)", "closure"),
        "no entry": ("'momentum_buffer'", "'first.weight'"),
        "other state": ("sync_every 4 (here 5)",),
        "other model": ("another model", "first.weight", "x"),
    }
    assert said.keys() == expected.keys()
    for name, pieces in expected.items():
        assert all(piece in said[name] for piece in pieces), said[name]
        assert "\n" not in said[name]
