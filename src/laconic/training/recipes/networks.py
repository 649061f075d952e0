"""Networks for small images: the CIFAR forms of ResNet and VGG, and a convolutional network for 8 x 8 digits."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation and a shortcut: a 1 x 1 convolution where the shape changes.

    He, Zhang, Ren, Sun (2015), arXiv:1512.03385, figure 2 and option B of section 3.3.
    """

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        same = stride == 1 and channels == out
        self.shortcut = nn.Identity() if same else nn.Sequential(
            nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, channels, h, w) to (batch, out, h / stride, w / stride)."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """The CIFAR form: a 3 x 3 stem without max pool, stages of basic blocks at widths w, 2w, 4w, ..., global pooling.

    He, Zhang, Ren, Sun (2015), arXiv:1512.03385, section 4.2. Deviation: shortcuts are projections (option B), as in
    the CIFAR forms that are in use, where the paper's CIFAR networks pad with zeros (option A).

    Parameters
    ----------
    blocks : how many blocks each stage has; every stage but the first halves the image.
    width : channels of the first stage.

    Examples
    --------
    >>> sum(parameter.numel() for parameter in ResNet((1, 1, 1), width=16).parameters())
    78042
    """

    def __init__(self, blocks: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        layers: list[nn.Module] = []
        channels = width
        for stage, count in enumerate(blocks):
            for i in range(count):
                out = width << stage
                layers.append(BasicBlock(channels, out, stride=2 if stage and i == 0 else 1))
                channels = out
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 3, 32, 32) to logits (batch, 10)."""
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))


class VGG(nn.Module):
    """The CIFAR form with batch normalisation: 3 x 3 convolutions, max pools, global pooling, one linear layer.

    Simonyan, Zisserman (2014), arXiv:1409.1556, table 1, columns A (11 layers), D (16) and E (19). Deviations:
    normalised convolutions without biases, which the normalisation would take out again, one linear layer for three.

    Parameters
    ----------
    convolutions : how many each of the five stages has, of 64, 128, 256, 512 and 512 channels.

    Examples
    --------
    >>> sum(parameter.numel() for parameter in VGG((1, 1, 2, 2, 2)).parameters())
    9228362
    """

    def __init__(self, convolutions: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage, count in enumerate(convolutions):
            out = min(64 << stage, 512)
            for _ in range(count):
                layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
                channels = out
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 3, 32, 32) to logits (batch, 10)."""
        return self.head(self.layers(x).mean(dim=(2, 3)))


class DigitsNet(nn.Module):
    """Two 3 x 3 convolutions and a linear layer for scikit-learn's 8 x 8 digits: 9,930 parameters, no normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.head = nn.Linear(32 * 4 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 1, 8, 8) to logits (batch, 10)."""
        return self.head(functional.relu(self.conv2(functional.relu(self.conv1(x)))).flatten(1))


def resnet8(width: int = 16) -> ResNet:
    """ResNet-8: three stages of one block (n = 1 in section 4.2 of He et al. 2015)."""
    return ResNet((1, 1, 1), width)


def resnet18(width: int = 64) -> ResNet:
    """ResNet-18 in the CIFAR form: the stages 2, 2, 2, 2 of table 1 of He et al. (2015); 11,173,962 parameters."""
    return ResNet((2, 2, 2, 2), width)


def vgg11() -> VGG:
    """Column A of Simonyan & Zisserman."""
    return VGG((1, 1, 2, 2, 2))


def vgg16() -> VGG:
    """Column D of Simonyan & Zisserman."""
    return VGG((2, 2, 3, 3, 3))


def vgg19() -> VGG:
    """Column E of Simonyan & Zisserman."""
    return VGG((2, 2, 4, 4, 4))
