"""What the methods of Basis Learn share: their paper, their promise, and a server that keeps every worker's numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from laconic.core.compressor import Sent
from laconic.core.entry import Source
from laconic.core.link import Cohort, Link
from laconic.core.method import Method
from laconic.core.theory import Guarantee, Setting
from laconic.methods._hessian_learning import local

QIAN = Source(
    "Qian, Islamov, Safaryan, Richtarik",
    2021,
    "Basis matters: better communication-efficient second order methods for federated learning",
    "2111.01847",
)


def basis_learn(where: str) -> Source:
    """A place in the paper on Basis Learn."""
    return dataclasses.replace(QIAN, where=where)


def near(setting: Setting, where: str) -> Guarantee:
    """What the paper promises of all its methods."""
    close = "local: x^0 close to x* and the first Hessians to those there; then linear, in the end superlinear"
    return local(setting, basis_learn(where), close)


def few_of(method: Method, cohort: int, setting: Setting) -> None:
    """Raises ValueError where a cohort is larger than the problem."""
    if cohort > setting.n:
        name = type(method).__name__
        raise ValueError(f"{name}(cohort={cohort}) : the problem has {setting.n} workers; cohort must not exceed them")


def renewed(link: Link, who: Cohort, probability: float) -> Cohort:
    """Those of a cohort whose own coin says so; all parties know who."""
    assert who.members is not None
    lucky = link.bernoulli(probability).members
    assert lucky is not None
    return link.cohort(np.intersect1d(who.members, lucky))


def add_each(target: Tensor, sent: Sent, scale: float = 1.0) -> Tensor:
    """target[i] += scale times worker i's message, in place, (n, ...); the target."""
    if scale == 1.0:
        sent.mean.spread(target)
        return target
    each = torch.zeros_like(target)
    sent.mean.spread(each)
    return target.add_(each.mul_(scale))


def put_each(target: Tensor, sent: Sent, who: Cohort) -> None:
    """target[i] becomes the message of each worker i who spoke, in place, (n, ...)."""
    assert who.members is not None
    target[torch.from_numpy(who.members)] = 0.0
    sent.mean.spread(target)
