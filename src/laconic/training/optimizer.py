"""An optimizer around an optimizer: its gradients are averaged by mechanisms, in training loops without DDP."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from laconic.core.ledger import Ledger
from laconic.core.mechanism import Mechanism, Need
from laconic.training.averager import Averager
from laconic.training.closures import Closure, Desk, Evaluations, Minibatch
from laconic.training.joined import JOINED, Joined, Joining
from laconic.training.nonfinite import NonFinite, NotFinite
from laconic.training.notices import announce
from laconic.training.policy import Policy
from laconic.training.unused import Unused
from laconic.training.wrapping import named_of, refuse_mechanism, refuse_optimizer, spread

_PART = "laconic"  # the key of a state that holds what the inner optimizer does not know


class Compressed(Optimizer):
    """Averages gradients over all processes by a mechanism, then lets the optimizer inside make its step.

    Each process is one worker; all of them make the same steps. The model starts as it is on rank 0, buffers too;
    afterwards buffers are each process' own. To schedulers, hooks, `GradScaler` and whoever asks for `param_groups`,
    `state` or `state_dict()`, this is the optimizer inside. With the mechanism "direct_all_reduce" it is DDP.

    `step()` averages the gradients that a backward pass has left, as `optimizer.step()` is called in any loop.
    `step(closure)` computes them: it clears the gradients, calls the closure, which computes the loss and its gradients
    (several backward passes add up) and returns the loss. Mechanisms that need gradients elsewhere on the same
    minibatch (`local_importance`, `vr_marina`, ...) are served so: then the parameters that no rule of the policy is
    about are joined to one vector, on which the mechanism works as a whole, and the closure is called again with other
    points in the parameters, as often as the mechanism asks. What such a call moves is put back: parameters, gradients,
    buffers and torch's random state, which each call finds as the first one did. `step(closure, full=...)` is for
    mechanisms that now and then take the gradient over all local data, and `step(closure, server=...)` for those that
    search on the server: a closure on a minibatch that all processes have. Where gradients must be full, `step(full=
    ...)` computes them. A stepsize that theory takes from the smoothness of the loss (`trial` of importances, `step`
    of `lag_wk`) is the learning rate in force where it is left open.

    Mechanisms whose estimate is a step (`ef14_inside`) get gradients times the learning rate, and the estimate is
    subtracted as it is; this is plain SGD, so the optimizer inside must be that.

    A step in which some process has numbers that are not finite is left out on all of them, as a GradScaler does, whose
    scales may differ from process to process; memories are in units without it. Parameters for which no process has had
    a gradient yet are left alone, which costs a byte for each of them and step until one has; where only some processes
    have none, zeros stand for it. Both are said once.

    Memory besides that of the mechanism: nothing. Where parameters are joined, two vectors of them for good, and while
    a probe is at work a third, the gradients of the closure and a copy of the buffers.

    Parameters
    ----------
    optimizer : the one inside, with all parameters it is to have.
    model : whose parameters they are, not in a DDP.
    mechanism : a policy, a mechanism or its spec.
    seed : of its randomness, the same on every process.
    timeout : seconds after which a collective that does not complete is an error.
    non_finite : what to do where gradients are not finite; None leaves the step out.
    sample_every : steps between measurements of what is owed (`Step.residual`); 0 for none.

    Raises
    ------
    ValueError : `torch.distributed` not initialised; what a mechanism needs and is not given here; an optimizer that
        calls closures itself; parameters that are not the model's; sparse gradients; processes with different things.

    Attributes
    ----------
    inner : the optimizer inside.
    averager : which averages, and knows memory, bytes and times.
    evaluations : of the gradient, on this process.

    Examples
    --------
    >>> optimizer = Compressed(SGD(net.parameters(), lr=0.1), net, "ef21_sgdm(topk(k=0.01))")  # doctest: +SKIP
    >>> loss(net(inputs), targets).backward()  # doctest: +SKIP
    >>> optimizer.step()  # doctest: +SKIP
    """

    _step_supports_amp_scaling = True  # a GradScaler then calls `step` whatever it has found: all processes take part

    def __init__(
        self, optimizer: Optimizer, model: nn.Module, mechanism: Policy | Mechanism | str, *, seed: int = 0,
        timeout: float = 60.0, non_finite: NonFinite | None = None, sample_every: int = 0,
    ) -> None:  # fmt: skip
        self.inner = optimizer
        self.evaluations = Evaluations()
        super().__setstate__({})  # hooks, and no parameter groups: these are the inner optimizer's
        policy = Policy.of(mechanism)
        refuse_optimizer(optimizer, model)
        for one in policy.mechanisms:
            refuse_mechanism(one, optimizer, probe=one in (policy.mechanism, *(stage for _, stage in policy.warm_up)))
            if one.caution:
                announce(f"{one} : {one.caution}")
        self._full = next((one for one in policy.mechanisms if Need.FULL_GRADIENTS in one.needs), None)
        self._probing = next((one for one in policy.mechanisms if Need.PROBE in one.needs), None)
        self._alone = named_of(optimizer, model)
        self._groups = {p: i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self._joined: Joined | None = None
        if self._probing is not None:
            policy = self._join(policy)
        self._skip = _Noted()
        self.averager = Averager(
            self._alone if self._joined is None else {JOINED: self._joined.vector, **self._alone}, policy, seed=seed,
            window=1, timeout=timeout, non_finite=non_finite or self._skip, sample_every=sample_every,
        )  # fmt: skip
        self._unused = Unused(self._parameters)
        self._vary = isinstance(policy, Joining) and policy.depends_on_rate(
            self.averager.shapes[JOINED], self.averager.world
        )
        self._desk = Desk()
        spread(itertools.chain(model.parameters(), model.buffers()))
        self._model = model

    def _join(self, policy: Policy) -> Policy:
        """Takes the parameters that no rule is about out of those that are averaged alone."""
        free = {name: p for name, p in self._alone.items() if policy.rule_of(name, tuple(p.shape)) is None}
        if not free:  # nothing is left for a mechanism that asks for a probe
            self._probing = None
            return policy
        self._joined = Joined(free)
        self._alone = {name: p for name, p in self._alone.items() if name not in free}
        return Joining.around(policy, max(self._rates(free.values())))

    # ---- what the optimizer inside has ------------------------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Those of the optimizer inside."""
        return self.inner.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """That of the optimizer inside."""
        return self.inner.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """Those of the optimizer inside."""
        return self.inner.defaults

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients."""
        self.inner.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Is refused: memories and bytes are of the parameters that there were at the start."""
        raise ValueError("Compressed : parameters cannot be added; give the optimizer inside all of them at the start")

    @property
    def ledger(self) -> Ledger:
        """The bytes said so far."""
        return self.averager.ledger

    @property
    def _parameters(self) -> dict[str, Tensor]:
        return {**(self._joined.named if self._joined is not None else {}), **self._alone}

    # ---- a step -----------------------------------------------------------------------------------------------

    def step(self, closure: Closure | None = None, full: Closure | None = None, server: Closure | None = None) -> Any:
        """Averages the gradients and makes the step; collective. Gives what the closure gives.

        Parameters
        ----------
        closure : computes the loss on this step's minibatch and its gradients.
        full : the same on all local data.
        server : the same on data that are alike on all processes.
        """
        minibatch, loss = self._evaluate(closure, full, server)
        with torch.no_grad():
            used = self._unused.agreed()
            self._unscale(used)
            if self._average(used, minibatch):
                self._advance(used)
        return loss

    def _evaluate(
        self, closure: Closure | None, full: Closure | None, server: Closure | None
    ) -> tuple[Minibatch | None, Any]:
        """Sees to it that there are gradients."""
        if hasattr(self, "found_inf") and (closure is not None or full is not None):
            raise ValueError("step() : a GradScaler has looked at the gradients before a closure could compute them")
        if self._probing is not None and closure is None:
            raise ValueError(
                f"step() : {self._probing} needs gradients at other points on the same minibatch; give step(closure)"
            )
        if self._full is not None and full is None:
            raise ValueError(f"step() : {self._full} needs gradients over all local data; give step(full=...)")
        minibatch = None
        if self._joined is not None and closure is not None:
            shared = ((self.averager.seed << 32) + self.averager.steps) % 2**63
            minibatch = Minibatch(self._model, self._joined, self.evaluations, closure, full, server, shared)
        compute = closure if self._full is None else full
        if compute is full and full is not None:
            self.evaluations.full += 1
        else:
            self.evaluations.plain += 1
        if compute is None:
            return minibatch, None
        self.zero_grad()
        with torch.enable_grad():
            return minibatch, compute()

    def _unscale(self, used: frozenset[str]) -> None:
        """Takes the scale of a GradScaler, which has left that to us, out of the gradients."""
        scale = getattr(self, "grad_scale", None)
        if scale is not None:
            for name in used:
                gradient = self._parameters[name].grad
                if gradient is not None:
                    gradient.div_(scale.to(gradient.dtype))

    def _average(self, used: frozenset[str], minibatch: Minibatch | None) -> bool:
        """Puts the averages into the gradients; whether the optimizer is to make its step."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._alone.items():
            if name in used:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = gradient
                tensors[name] = gradient.contiguous()
                if self._mechanism(name).takes_step:
                    tensors[name].mul_(self._rate(parameter))
        probes = {}
        if self._joined is not None and any(name in used for name in self._joined.named):
            joined = list(self._joined.named.values())
            scales = [self._rate(p) if self._mechanism(JOINED).takes_step else 1.0 for p in joined]
            tensors[JOINED] = self._joined.gather(self._joined.vector, scales)
            self._renew()
            if minibatch is not None:
                probes[JOINED] = minibatch.probe(self._desk)
        if not tensors:
            return True
        self._skip.told = None
        try:
            self._desk.serve(self.averager.start(tensors, probes))
        except RuntimeError:
            if self.averager.failure is not None:
                raise self.averager.failure from None
            raise
        if self._skip.told is not None:
            if not hasattr(self, "found_inf"):  # a GradScaler meets them as a matter of course
                announce(f"{self._skip.told}; the step is left out on all processes (non_finite=Stop() ends the run)")
            return False
        for name, tensor in tensors.items():
            if name != JOINED and tensor is not self._alone[name].grad:
                self._alone[name].grad.copy_(tensor)  # type: ignore[union-attr]
        if self._joined is not None:
            self._joined.scatter(used)
        return True

    def _mechanism(self, name: str) -> Mechanism:
        """What averages a tensor in the step to come."""
        return self.averager.plans[name].at(self.averager.steps)

    def _rate(self, parameter: Tensor) -> float:
        return float(self.param_groups[self._groups[parameter]]["lr"])

    def _rates(self, parameters: Iterable[Tensor]) -> set[float]:
        return {self._rate(parameter) for parameter in parameters}

    def _renew(self) -> None:
        """Where a stepsize of the mechanism is the learning rate, it is the one in force."""
        policy = self.averager.policy
        if not self._vary or self._joined is None or not isinstance(policy, Joining):
            return
        rates = self._rates(self._joined.named.values())
        if len(rates) > 1:
            raise ValueError(
                f"step() : {policy.mechanism} takes the learning rate for its trial stepsize, and the groups have "
                f"{sorted(rates)}; give trial=, or one learning rate"
            )
        (rate,) = rates
        renewed = Joining.around(policy, rate)
        self.averager.plans[JOINED] = renewed.plan(JOINED, self.averager.shapes[JOINED], self.averager.world)

    def _advance(self, used: frozenset[str]) -> None:
        """The inner optimizer's step; what is a step already is subtracted as it is."""
        stages = {
            name: self.averager.plans[JOINED if name not in self._alone else name].at(self.averager.steps - 1)
            for name in used
        }
        steps = {self._parameters[name]: self._parameters[name].grad for name in used if stages[name].takes_step}
        for parameter, step in steps.items():
            assert step is not None
            parameter.sub_(step)
            parameter.grad = None
        self.inner.step()
        for parameter, step in steps.items():
            parameter.grad = step

    # ---- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimizer inside, and under "laconic" this process' part of the rest.

        Tensors, numbers and text: safe to load with weights_only=True. Every process saves its own. `merge` makes one
        whole of what all processes have under ["laconic"]["averager"], for any number of processes.
        """
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        counts = self.evaluations
        state = {
            **self.inner.state_dict(),
            _PART: {
                "averager": self.averager.state_dict(),
                "unused": sorted(self._unused.names),
                "evaluations": [counts.plain, counts.probe, counts.full, counts.server],
            },
        }
        for after in self._optimizer_state_dict_post_hooks.values():
            state = after(self, state) or state
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from a state. Raises ValueError, one line, for one of another model, mechanism or optimizer."""
        state = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state = before(self, state) or state
        if _PART not in state:
            raise ValueError(
                "load_state_dict : this is the state of an optimizer alone; load it into optimizer.inner, and the "
                "mechanism starts anew"
            )
        part = state.pop(_PART)
        self.averager.load_state_dict(part["averager"])
        self.inner.load_state_dict(state)
        self._unused.names = set(part["unused"])
        self.evaluations = Evaluations(*part["evaluations"])
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def close(self) -> None:
        """Ends the averager's thread."""
        self.averager.close()


class _Noted(NonFinite):
    """Takes a note; the step is left out."""

    def __init__(self) -> None:
        self.told: str | None = None

    def met(self, found: NotFinite, names: Sequence[str], tensors: Sequence[Tensor], step: int, scaled: bool) -> None:
        self.told = found.told(names, step)
