"""Tasks on images: the digits, and ResNet and VGG on CIFAR-10."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer

from laconic.training.recipes import networks
from laconic.training.recipes.files import hash_of
from laconic.training.recipes.images import (
    Images,
    augmented,
    cifar10,
    cifar10_files,
    digits,
    held_out,
)
from laconic.training.recipes.randomness import generator_at
from laconic.training.recipes.shards import Shards, part_of
from laconic.training.recipes.tasks import Course, Task, judging
from laconic.training.recipes.weights import filled

AT_ONCE = 100  # images in one pass of an evaluation: with 500 a processor takes 1.6 times as long (its caches)


class ImageCourse(Course):
    """Images dealt to the processes; `train` and what is judged by, the test set or a validation split."""

    def __init__(self, task: ImageTask, train: Images, judged: Images, seed: int, rank: int, world: int) -> None:
        self._task, self._train, self._judged = task, train, judged
        self._seed, self.rank, self._world = seed, rank, world
        self._shards = Shards(len(train), task.batch, world, seed)
        self.steps_per_epoch = self._shards.steps_per_epoch
        self.data_sha256 = hash_of(train.levels, train.labels, judged.levels, judged.labels)
        self.facts = {"images": len(train), "judged_by": self._split, "judged_images": len(judged)}

    @property
    def _split(self) -> str:
        return "validation" if self._task.validation else "test"

    def batch_loss(self, model: nn.Module, step: int, rank: int) -> Tensor:
        """Cross-entropy of a batch."""
        samples = self._shards.samples(step, rank)
        levels = torch.from_numpy(self._train.levels[samples])
        if self._task.augments:
            levels = augmented(levels, generator_at(self._seed, "augmentation", step, rank))
        labels = torch.from_numpy(self._train.labels[samples])
        return functional.cross_entropy(model(self._train.normalised(levels)), labels)

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Loss and accuracy, named after what they were measured on: `test_accuracy` or `validation_accuracy`."""
        mine = self._judged.at(part_of(len(self._judged), self.rank, self._world))
        sums = torch.zeros(2, dtype=torch.float64)
        with judging(module):
            for start in range(0, len(mine), AT_ONCE):
                piece = mine.at(slice(start, start + AT_ONCE))
                logits = module(piece.normalised(torch.tensor(piece.levels)))
                labels = torch.from_numpy(piece.labels)
                sums[0] += functional.cross_entropy(logits, labels, reduction="sum").double()
                sums[1] += (logits.argmax(dim=1) == labels).sum()
        dist.all_reduce(sums)
        loss, accuracy = (sums / len(self._judged)).tolist()
        return {f"{self._split}_loss": loss, f"{self._split}_accuracy": accuracy}


@dataclass(frozen=True, kw_only=True)
class ImageTask(Task):
    """Cross-entropy on images by SGD with momentum.

    Parameters
    ----------
    momentum : of SGD; weight decay is added to the gradient of every parameter, as PyTorch's SGD does.
    validation : so many training images, drawn from the seed, are held out, and the run is judged by them, not by the
        test set: for choosing hyper-parameters. 0 is the test set.
    """

    batch: int = 64
    weight_decay: float = 5e-4
    momentum: float = 0.9
    validation: int = 0

    augments: ClassVar[bool] = True
    SMOKE: ClassVar[float] = 5.0

    def check(self) -> None:
        """CIFAR-10 must be there."""
        cifar10_files(self.data_dir, self.name)

    def images(self) -> tuple[Images, Images]:
        """Training and test images."""
        return cifar10(self.data_dir)

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, its weights yet to be drawn."""

    def module(self, seed: int) -> nn.Module:
        """The network, the same on every process."""
        return filled(self.build, generator_at(seed, "weights"))

    def open(self, seed: int, rank: int, world: int) -> Course:
        """Reads the images, and holds some out where `validation` asks for it."""
        train, judged = self.images()
        if self.validation:
            train, judged = held_out(train, self.validation, seed)
        return ImageCourse(self, train, judged, seed, rank, world)

    def optimizer(self, module: nn.Module) -> Optimizer:
        """SGD with momentum."""
        return SGD(module.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def prepare_step(self, module: nn.Module) -> None:
        """Nothing is clipped."""

    def evaluate_every(self, steps: int, steps_per_epoch: int) -> int:
        """Once in an epoch."""
        return steps_per_epoch


@dataclass(frozen=True, kw_only=True)
class Digits(ImageTask):
    """A small network on scikit-learn's digits, which every machine has."""

    epochs: float = 20
    batch: int = 32
    lr: float = 0.1
    augments: ClassVar[bool] = False
    name: ClassVar[str] = "digits"

    def check(self) -> None:
        """Nothing can be missing."""

    def images(self) -> tuple[Images, Images]:
        """The digits."""
        return digits()

    def build(self) -> nn.Module:
        """The small network."""
        return networks.DigitsNet()


@dataclass(frozen=True, kw_only=True)
class ResNet8(ImageTask):
    """ResNet-8 on CIFAR-10; `width`: channels of the first stage."""

    epochs: float = 9
    lr: float = 0.2
    width: int = 16
    name: ClassVar[str] = "resnet8"

    def build(self) -> nn.Module:
        """The network at that width."""
        return networks.resnet8(self.width)


@dataclass(frozen=True, kw_only=True)
class ResNet18(ImageTask):
    """ResNet-18 on CIFAR-10; `width`: channels of the first stage."""

    epochs: float = 30
    lr: float = 0.1
    width: int = 64
    name: ClassVar[str] = "resnet18"

    def build(self) -> nn.Module:
        """The network at that width."""
        return networks.resnet18(self.width)


@dataclass(frozen=True, kw_only=True)
class VGG11(ImageTask):
    """VGG-11 on CIFAR-10."""

    epochs: float = 30
    lr: float = 0.05
    name: ClassVar[str] = "vgg11"

    def build(self) -> nn.Module:
        """Column A."""
        return networks.vgg11()


@dataclass(frozen=True, kw_only=True)
class VGG16(VGG11):
    """VGG-16 on CIFAR-10."""

    name: ClassVar[str] = "vgg16"

    def build(self) -> nn.Module:
        """Column D."""
        return networks.vgg16()


@dataclass(frozen=True, kw_only=True)
class VGG19(VGG11):
    """VGG-19 on CIFAR-10."""

    name: ClassVar[str] = "vgg19"

    def build(self) -> nn.Module:
        """Column E."""
        return networks.vgg19()


IMAGE_TASKS: dict[str, Any] = {task.name: task for task in (Digits, ResNet8, ResNet18, VGG11, VGG16, VGG19)}
