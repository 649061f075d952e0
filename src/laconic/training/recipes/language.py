"""GPT-2 from a configuration with fresh weights, and the table of its sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from laconic.training.recipes.randomness import generator_at
from laconic.training.recipes.text import needed
from laconic.training.recipes.weights import unfilled


@dataclass(frozen=True)
class Size:
    """A row of the table. A step of one process reads `sequences` windows of `context` tokens."""

    layers: int
    heads: int
    width: int
    context: int
    sequences: int
    lr: float

    @property
    def tokens(self) -> int:
        """Tokens of one process in one step."""
        return self.sequences * self.context

    def parameters(self, vocabulary: int) -> int:
        """How many there are: token and position embeddings (the head is the former), blocks, and the last norm."""
        block = 12 * self.width**2 + 13 * self.width
        return (vocabulary + self.context) * self.width + self.layers * block + 2 * self.width


SIZES = {
    "nano": Size(layers=3, heads=4, width=96, context=64, sequences=8, lr=3e-3),
    "micro": Size(layers=4, heads=4, width=128, context=128, sequences=8, lr=2e-3),
    "mini": Size(layers=6, heads=8, width=256, context=256, sequences=8, lr=1e-3),
    "small": Size(layers=12, heads=12, width=768, context=1024, sequences=8, lr=6e-4),
}


def size_of(name: str) -> Size:
    """A size by name. Raises ValueError with the table's names."""
    if name not in SIZES:
        raise ValueError(f"--size {name} : give one of {', '.join(SIZES)}")
    return SIZES[name]


def gpt2(size: Size, vocabulary: int, seed: int) -> nn.Module:
    """GPT-2 (Radford et al. 2019) as `transformers` has it, of that size, with tied embeddings and fresh weights.

    Weights are drawn from N(0, 0.02^2), those at the ends of residual branches from that over the square root of
    twice the number of layers (section 2.3 there); scales are 1, shifts and biases 0. Deviation: no dropout, which
    would draw from torch's global generator. With 50,257 tokens the embedding is most of a small network: 4,824,672
    of nano's 5,166,528 parameters.

    Raises
    ------
    ValueError : the package `transformers` is not installed.
    """
    transformers = needed("transformers")
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_positions=size.context, n_embd=size.width, n_layer=size.layers, n_head=size.heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    module = unfilled(lambda: transformers.GPT2LMHeadModel(config))
    module.tie_weights()  # type: ignore[operator]
    generator = generator_at(seed, "weights")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                shrink = math.sqrt(2 * size.layers) if name.endswith("c_proj.weight") else 1.0
                parameter.normal_(0.0, 0.02 / shrink, generator=generator)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    return module
