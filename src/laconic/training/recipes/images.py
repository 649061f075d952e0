"""Images and their classes: CIFAR-10 from its binary files, scikit-learn's digits embedded; augmentation in a batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from laconic.core.files import content
from laconic.training.recipes.files import files_of, kept
from laconic.training.recipes.randomness import generator_at

PLACES = ("cifar-10", "cifar-10-batches-bin")  # the second is what the published archive holds
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILES = ("test_batch.bin",)
PER_FILE = 10_000
RECORD = 1 + 3 * 32 * 32  # a label, and the planes of red, green and blue
PAD = 4
HELD_DIGITS = 297  # of the 1,797 embedded digits, the last: other people wrote them
ABSENT = (
    "CIFAR-10 in its binary form (cs.toronto.edu/~kriz/cifar.html): data_batch_1.bin ... 5 and test_batch.bin, plain "
    "or packed with xz, bzip2 or gzip, in the folder cifar-10 or cifar-10-batches-bin; `laconic train digits` needs no "
    "files"
)


@dataclass(frozen=True, eq=False)
class Images:
    """Levels (count, channels, height, width), uint8, and classes (count,), int64.

    `mean` and `deviation` are per channel, of levels divided by `top`.
    """

    levels: np.ndarray
    labels: np.ndarray
    top: float
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, samples: np.ndarray | slice) -> Images:
        """Some of the images."""
        return Images(self.levels[samples], self.labels[samples], self.top, self.mean, self.deviation)

    def normalised(self, levels: Tensor) -> Tensor:
        """Levels as float32 with mean 0 and deviation 1 over the training images."""
        shape = (-1, 1, 1)
        mean = torch.tensor(self.mean).view(shape) * self.top
        deviation = torch.tensor(self.deviation).view(shape) * self.top
        return levels.to(torch.float32).sub_(mean).div_(deviation)


def cifar10(data_dir: Path | None) -> tuple[Images, Images]:
    """The 50,000 training and 10,000 test images of CIFAR-10 (Krizhevsky 2009), with the published mean and deviation.

    Raises
    ------
    ValueError : no such files, in one line that says where to get them; a file of another size.
    """
    *train, test = cifar10_files(data_dir, "It")
    sets = []
    for name, paths in (("cifar10-train", train), ("cifar10-test", [test])):
        records = kept(name, paths, lambda paths=paths: np.concatenate([_records(path) for path in paths]))
        levels = records[:, 1:].reshape(-1, 3, 32, 32)
        mean, deviation = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
        sets.append(Images(levels, records[:, 0].astype(np.int64), 255.0, mean, deviation))
    return sets[0], sets[1]


def cifar10_files(data_dir: Path | None, who: str) -> list[Path]:
    """The five files to learn from and the one to test by. Raises ValueError, which says what `who` takes."""
    return files_of(data_dir, PLACES, (*TRAIN_FILES, *TEST_FILES), f"{who} takes {ABSENT}")


def _records(path: Path) -> np.ndarray:
    values = np.frombuffer(content(path), dtype=np.uint8)
    if values.size != PER_FILE * RECORD or values[::RECORD].max() > 9:
        raise ValueError(f"{path} : it does not hold 10,000 records of a label from 0 to 9 and 3,072 levels")
    return values.reshape(PER_FILE, RECORD)


def digits(data_dir: Path | None = None) -> tuple[Images, Images]:
    """Scikit-learn's 8 x 8 digits with levels from 0 to 16: the first 1,500 to learn from, the last 297 as a test."""
    from sklearn.datasets import load_digits

    rows, targets = load_digits(return_X_y=True)
    levels, labels = np.asarray(rows).astype(np.uint8).reshape(-1, 1, 8, 8), np.asarray(targets).astype(np.int64)
    whole = Images(levels, labels, 16.0, (0.3051,), (0.3750,))
    return whole.at(slice(None, -HELD_DIGITS)), whole.at(slice(-HELD_DIGITS, None))


def held_out(images: Images, count: int, seed: int) -> tuple[Images, Images]:
    """What is left to learn from, and `count` images drawn from the seed to choose hyper-parameters by.

    Raises
    ------
    ValueError : more images than there are.
    """
    if not 0 < count < len(images):
        raise ValueError(f"--validation {count} : give an integer from 1 to {len(images) - 1}, fewer than the images")
    order = torch.randperm(len(images), generator=generator_at(seed, "validation")).numpy()
    return images.at(np.sort(order[count:])), images.at(np.sort(order[:count]))


def augmented(levels: Tensor, generator: Generator) -> Tensor:
    """Each image padded by four black pixels, cut at a random place, and mirrored or not, as He et al. (2015) do.

    Parameters
    ----------
    levels : (batch, channels, height, width), any dtype.

    Examples
    --------
    >>> augmented(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), generator_at(0)).shape
    torch.Size([2, 3, 32, 32])
    """
    batch = len(levels)
    corners = torch.randint(0, 2 * PAD + 1, (2, batch), generator=generator)
    mirrored = torch.randint(0, 2, (batch,), generator=generator, dtype=torch.bool)
    return moved(levels, corners[0], corners[1], mirrored)


def moved(levels: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
    """Padded images cut at (top, left), each from 0 to 8, then mirrored or not; (4, 4) is the image itself."""
    batch, channels, height, width = levels.shape
    padded = torch.nn.functional.pad(levels, (PAD,) * 4)
    across = torch.arange(width)
    columns = left[:, None] + torch.where(mirrored[:, None], across.flip(0), across)
    rows = top[:, None] + torch.arange(height)
    at = (torch.arange(batch)[:, None, None, None], torch.arange(channels)[None, :, None, None])
    return padded[(*at, rows[:, None, :, None], columns[:, None, None, :])]
