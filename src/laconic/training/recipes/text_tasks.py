"""The task on text: GPT-2 on WikiText-2, or byte by byte on Python's own documentation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Optimizer

from laconic.core.files import data_folder
from laconic.training.recipes.bigram import bigram_loss
from laconic.training.recipes.files import hash_of
from laconic.training.recipes.language import Size, gpt2, size_of
from laconic.training.recipes.shards import Shards, part_of
from laconic.training.recipes.tasks import Course, Task, judging
from laconic.training.recipes.text import (
    GPT2_VOCABULARY,
    Text,
    Windows,
    documentation,
    needed,
    wikitext,
    wikitext_files,
)

AT_ONCE = 8  # windows in one pass of an evaluation


class TextCourse(Course):
    """A text dealt to the processes in windows; `facts` holds the bigram model's loss on what it is judged by."""

    def __init__(self, text: Text, size: Size, batch: int, judged: int, seed: int, rank: int, world: int) -> None:
        self.rank, self._world = rank, world
        self._train, validation = Windows(text.train, size.context), Windows(text.validation, size.context)
        self._judged = validation.at(validation.spread(judged))
        self._shards = Shards(len(self._train), batch, world, seed)
        self.steps_per_epoch = self._shards.steps_per_epoch
        self.data_sha256 = hash_of(text.train, text.validation)
        self.facts: dict[str, Any] = {"text": text.name, "tokens": len(text.train), "judged_tokens": 0}
        self.facts["judged_tokens"] = self._judged[:, 1:].size
        if rank == 0:
            loss = bigram_loss(text.train, text.vocabulary, self._judged[:, :-1], self._judged[:, 1:])
            self.facts |= {"bigram_validation_loss": loss, "bigram": "interpolated Kneser-Ney, nats per token"}

    def batch_loss(self, model: nn.Module, step: int, rank: int) -> Tensor:
        """Nats per token over a process' windows."""
        return _nats(model, torch.from_numpy(self._train.at(self._shards.samples(step, rank))))

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """`validation_loss`, nats per token; every token of a window counts, also those with little before them."""
        mine = torch.from_numpy(self._judged[part_of(len(self._judged), self.rank, self._world)])
        total = torch.zeros(1, dtype=torch.float64)
        with judging(module):
            for windows in mine.split(AT_ONCE):
                total += _nats(module, windows).double() * len(windows)
        dist.all_reduce(total)
        return {"validation_loss": float(total) / len(self._judged)}


def _nats(model: nn.Module, windows: Tensor) -> Tensor:
    logits = model(input_ids=windows[:, :-1]).logits
    return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


@dataclass(frozen=True, kw_only=True)
class GPT2(Task):
    """GPT-2, trained by AdamW with clipped gradients, on WikiText-2 where a data directory is named.

    Without one: byte by byte (256 tokens) on Python's own documentation.

    Parameters
    ----------
    size : a row of the table: "nano", "micro", "mini" or "small" (GPT-2's smallest, 124 million parameters).
    epochs : 0 is one of WikiText-2, or three of the documentation.
    batch : windows of one process in one step; 0 is the table's.
    lr : 0 is the table's.
    weight_decay : AdamW's, of tensors with two dimensions.
    clip : the largest norm of the averaged gradient.
    judge : tokens of the validation text, in evenly spread windows, by which the run is judged; 0 is all.
    """

    epochs: float = 0.0
    batch: int = 0
    lr: float = 0.0
    weight_decay: float = 0.1
    warm_up: int = 50
    size: str = "nano"
    clip: float = 1.0
    judge: int = 32_768

    name: ClassVar[str] = "gpt2"
    SMOKE: ClassVar[float] = 0.5

    def __post_init__(self) -> None:
        row = size_of(self.size)
        for field, value in {"batch": row.sequences, "lr": row.lr, "epochs": 1.0 if self._encoded else 3.0}.items():
            object.__setattr__(self, field, getattr(self, field) or value)
        super().__post_init__()
        if not self.clip > 0.0 or self.judge < 0:
            raise ValueError(f"--clip {self.clip} --judge {self.judge} : clip must be > 0 and judge >= 0")

    @property
    def _encoded(self) -> bool:
        return data_folder(self.data_dir) is not None

    def check(self) -> None:
        """The packages, and the files where a folder is named."""
        needed("transformers")
        if self._encoded:
            wikitext_files(self.data_dir)
            needed("tokenizers")

    def module(self, seed: int) -> nn.Module:
        """The network, the same on every process."""
        return gpt2(size_of(self.size), GPT2_VOCABULARY if self._encoded else 256, seed)

    def open(self, seed: int, rank: int, world: int) -> Course:
        """Reads and encodes the text."""
        text = wikitext(self.data_dir) if self._encoded else documentation()
        return TextCourse(text, size_of(self.size), self.batch, self.judge, seed, rank, world)

    def optimizer(self, module: nn.Module) -> Optimizer:
        """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101) with betas 0.9 and 0.95."""
        matrices = [parameter for parameter in module.parameters() if parameter.dim() > 1]
        others = [parameter for parameter in module.parameters() if parameter.dim() <= 1]
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        return AdamW(groups, lr=self.lr, betas=(0.9, 0.95), weight_decay=self.weight_decay, fused=True)

    def prepare_step(self, module: nn.Module) -> None:
        """Clips the averaged gradient."""
        nn.utils.clip_grad_norm_(module.parameters(), self.clip)

    def record(self) -> dict[str, Any]:
        """Name, options and the row of the table."""
        return {**super().record(), "table": dataclasses.asdict(size_of(self.size))}
