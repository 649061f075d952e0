"""Text as tokens: WikiText-2 under GPT-2's byte-pair encoding, and Python's own documentation as bytes."""

from __future__ import annotations

import functools
import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from laconic.core.files import content
from laconic.training.recipes.files import files_of, kept

BPE_FILES = ("encoder.json", "vocab.bpe")
WIKITEXT_FILES = ("wiki.train.tokens", "wiki.valid.tokens")
GPT2_VOCABULARY = 50_257
BLOCK, EVERY = 4096, 10  # bytes of the documentation; each tenth block is held out
INSTEAD = (
    "It takes wikitext-2/wiki.{train,valid}.tokens and gpt2-bpe/{encoder.json,vocab.bpe}, plain or packed with xz, "
    "bzip2 or gzip; `laconic train gpt2` without --data-dir needs no files"
)
MISSING = "GPT-2 needs the packages transformers and tokenizers: pip install 'laconic[models]'"


@dataclass(frozen=True, eq=False)
class Text:
    """Tokens to learn from and to judge by, each (count,) of an unsigned integer type, all below `vocabulary`."""

    name: str
    train: np.ndarray
    validation: np.ndarray
    vocabulary: int


def needed(package: str) -> Any:
    """A module of the extra `models`. Raises ValueError, one line, where it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"{MISSING} ({error})") from None


@functools.cache
def documentation() -> Text:
    """The topics of Python's `help()`, by name, as bytes (some 465,000): every tenth block of 4,096 is for validation.

    The text depends on Python's version; a run records its hash.
    """
    from pydoc_data.topics import topics

    whole = np.frombuffer("\n".join(topics[name] for name in sorted(topics)).encode(), dtype=np.uint8)
    held = np.arange(len(whole)) // BLOCK % EVERY == EVERY - 1
    return Text("the bytes of Python's documentation", whole[~held], whole[held], 256)


def gpt2_encoding(data_dir: Path | None) -> Any:
    """GPT-2's byte-level BPE (Radford et al. 2019) as a `tokenizers.Tokenizer`, from its vocabulary and merges."""
    tokenizers = needed("tokenizers")
    vocabulary, merges = map(content, _encoding_files(data_dir))
    lines = merges.decode("utf-8").split("\n")[1:]  # the first is a comment
    pairs = [tuple(line.split(" ")) for line in lines if line]
    encoding = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=json.loads(vocabulary), merges=pairs))
    encoding.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoding.decoder = tokenizers.decoders.ByteLevel()
    return encoding


def _encoding_files(data_dir: Path | None) -> list[Path]:
    return files_of(data_dir, ("gpt2-bpe",), BPE_FILES, INSTEAD)


def wikitext_files(data_dir: Path | None) -> list[Path]:
    """WikiText-2's training and validation text. Raises ValueError, one line, where they are not there."""
    return files_of(data_dir, ("wikitext-2",), WIKITEXT_FILES, INSTEAD)


def wikitext(data_dir: Path | None) -> Text:
    """WikiText-2 (Merity et al. 2016, arXiv:1609.07843), each file as one text; its tokens, uint16, are cached."""
    paths, codes = wikitext_files(data_dir), _encoding_files(data_dir)
    train, validation = (
        kept(name.removesuffix(".tokens"), [path, *codes], functools.partial(_tokens, path, data_dir))
        for name, path in zip(WIKITEXT_FILES, paths, strict=True)
    )
    return Text("WikiText-2, GPT-2's byte-pair encoding", train, validation, GPT2_VOCABULARY)


def _tokens(path: Path, data_dir: Path | None) -> np.ndarray:
    text = content(path).decode("utf-8")
    encoding = gpt2_encoding(data_dir)
    tokens = np.asarray(encoding.encode(text).ids, dtype=np.uint16)
    if encoding.decode(tokens.tolist(), skip_special_tokens=False) != text:
        raise ValueError(f"{path} : its tokens do not decode to the text; are vocabulary and merges GPT-2's?")
    return tokens


@dataclass(frozen=True)
class Windows:
    """Pieces of `context` tokens with the token after each: window i begins at i * context, and none overlap."""

    tokens: np.ndarray
    context: int

    def __post_init__(self) -> None:
        if len(self) < 1:
            raise ValueError(f"the text has {len(self.tokens)} tokens, and a window takes {self.context + 1}")

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.context

    def at(self, windows: np.ndarray) -> np.ndarray:
        """(count, context + 1), int64: what is read is [:, :-1], and what is to be said [:, 1:]."""
        places = windows[:, None] * self.context + np.arange(self.context + 1)
        return self.tokens[places].astype(np.int64)

    def spread(self, tokens: int) -> np.ndarray:
        """The windows, evenly spread, that hold about so many tokens; all of them where 0 is asked for."""
        count = len(self) if tokens == 0 else min(len(self), max(1, tokens // self.context))
        return np.arange(count) * len(self) // count
