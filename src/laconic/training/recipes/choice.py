"""Which exchange the options of a command line ask for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from laconic.training.policy import DENSE, Policy, Rule
from laconic.training.recipes.baselines import baseline_of
from laconic.training.recipes.compressed import by_policy
from laconic.training.recipes.exchange import Exchange
from laconic.training.recipes.local_methods import LOCAL_METHODS
from laconic.training.recipes.tasks import made


def policy_of(
    mechanism: str, small: str | None = None, warm_up_dense: int | None = None, rules: Sequence[str] = ()
) -> Policy:
    """A policy from what the command line says.

    Parameters
    ----------
    mechanism : the spec of what averages most tensors.
    small : of what averages small and one-dimensional ones, dense by default.
    warm_up_dense : steps in which the former are averaged dense as well.
    rules : "NAMES=SPEC", tried before all else; NAMES is a pattern as in a shell.

    Raises
    ------
    ValueError : one line.

    >>> policy = policy_of("ef14(topk(k=0.01))", small="direct(natural)", rules=["head.*=direct_all_reduce"])
    >>> [str(policy.rule_of(name, (64,)).mechanism) for name in ("head.bias", "stem.bias")]
    ['direct_all_reduce', 'direct(natural)']
    """
    plain = Policy(mechanism)
    defaults = plain.rules if small is None else tuple(dataclasses.replace(one, mechanism=small) for one in plain.rules)
    if warm_up_dense is not None and warm_up_dense < 0:
        raise ValueError(f"--warm-up-dense {warm_up_dense} : give an integer >= 0")
    stages = ((warm_up_dense, DENSE),) if warm_up_dense else ()
    return Policy(mechanism, rules=(*map(_rule, rules), *defaults), warm_up=stages)


def _rule(text: str) -> Rule:
    names, equals, spec = text.partition("=")
    if not names.strip() or not equals or not spec.strip():
        raise ValueError(f"--rule {text!r} : give NAMES=SPEC, such as 'head.*={DENSE}'")
    return Rule(spec.strip(), names=names.strip())


def exchange_of(
    mechanism: str | None, baseline: str | None, local: str | None, *, small: str | None = None,
    warm_up_dense: int | None = None, rules: Sequence[str] = (), options: Mapping[str, Any] | None = None,
) -> Exchange:  # fmt: skip
    """The exchange that was asked for; dense averages where none was.

    Parameters
    ----------
    mechanism : what averages gradients, or with `local` changes of models.
    baseline : one of PyTorch's own ways.
    local : local updates, by name.
    small, warm_up_dense, rules : see :func:`policy_of`.
    options : of the local updates; None was not given.

    Raises
    ------
    ValueError : what does not go together, does not exist, or lacks something; one line.
    """
    if baseline is not None and (mechanism is not None or local is not None):
        raise ValueError("give either --baseline, or --mechanism or --local, not both")
    policy = None
    if mechanism is not None:
        policy = policy_of(mechanism, small, warm_up_dense, rules)
    else:
        about = {"--small": small is not None, "--warm-up-dense": warm_up_dense is not None, "--rule": bool(rules)}
        for option, given in about.items():
            if given:
                raise ValueError(f"{option} : it goes with --mechanism, and there is none")
    given = {name: value for name, value in (options or {}).items() if value is not None}
    if local is not None:
        if local not in LOCAL_METHODS:
            raise ValueError(f"--local {local} : give one of {', '.join(LOCAL_METHODS)}")
        return made(LOCAL_METHODS[local], given if policy is None else {**given, "mechanism": policy})
    for name in given:
        raise ValueError(
            f"--{name.replace('_', '-')} : it is an option of local updates; give --local {' or '.join(LOCAL_METHODS)}"
        )
    return baseline_of(baseline or "dense") if policy is None else by_policy(policy)
