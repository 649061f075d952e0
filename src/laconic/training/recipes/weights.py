"""First weights from a generator of their own: a module is built without numbers, then every layer is filled."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, nn
from torch.nn import init


def filled(build: Callable[[], nn.Module], generator: Generator) -> nn.Module:
    """The module that `build` makes, with PyTorch's or He's initial weights, drawn from `generator` layer by layer.

    Convolutions are drawn from N(0, 2 / fan_out) (He et al. 2015, arXiv:1502.01852, equation 14), linear layers are
    uniform in +-1 / sqrt(fan_in), scales are 1, shifts and convolutions' biases 0.

    Raises
    ------
    ValueError : a layer with parameters that no rule fills.
    """
    module = unfilled(build)
    for name, layer in module.named_modules():
        fill = _RULES.get(type(layer))
        if fill is not None:
            fill(layer, generator)
        elif any(True for _ in layer.parameters(recurse=False)):
            raise ValueError(f"filled : no rule fills the layer {name!r}, a {type(layer).__name__}")
    return module


def unfilled(build: Callable[[], nn.Module]) -> nn.Module:
    """The module that `build` makes, on the CPU, with memory for its numbers and nothing drawn."""
    with torch.device("meta"):
        module = build()
    return module.to_empty(device="cpu")


@torch.no_grad()
def _convolution(layer: nn.Conv2d, generator: Generator) -> None:
    init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    if layer.bias is not None:
        layer.bias.zero_()


@torch.no_grad()
def _linear(layer: nn.Linear, generator: Generator) -> None:
    bound = 1.0 / math.sqrt(layer.in_features)
    for parameter in layer.parameters(recurse=False):
        parameter.uniform_(-bound, bound, generator=generator)


def _normalisation(layer: nn.BatchNorm2d, generator: Generator) -> None:
    layer.reset_parameters()  # ones, zeros, and running statistics of nothing; it draws no number


_RULES: dict[type[nn.Module], Callable] = {
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.BatchNorm2d: _normalisation,
}
