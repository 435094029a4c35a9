"""What the attacks share: their registration, the gradient with respect to the input, and the best iterate so far."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from src.random_streams import RandomStreams
from src.registry import ATTACKS, choose
from src.threat import ThreatModel, column

Model = Callable[[Tensor], Tensor]
"""From inputs [batch, ...] to logits [batch, classes]. One that keeps something per example (counts, random streams)
has a method `select(index)` that gives the same model for the examples at `index`."""
AttackFunction = Callable[..., Tensor]


def attack(
    name: str, *, kind: Literal["budget", "minimum_norm"], norms: tuple[str, ...], targetable: bool = True
) -> Callable[[AttackFunction], AttackFunction]:
    """Decorator: register `function(model, x, y, threat, *, rng, targeted, <config keys>) -> x_adv`.

    It runs without autograd (the function asks for the gradients it wants), never on an empty batch, and only with
    what it can do. What a minimum-norm attack finds is projected onto a finite budget that is too small for it.

    Args:
        kind: stay within a budget, or find the smallest perturbation that succeeds.
        norms: of the perturbation, that the attack works in; the first is its natural one.
        targetable: whether it can aim at a label.
    """

    def enter(function: AttackFunction) -> AttackFunction:
        @functools.wraps(function)
        def checked(
            model: Model, x: Tensor, y: Tensor, threat: ThreatModel, *, rng: RandomStreams, targeted: bool, **keys: Any
        ) -> Tensor:
            choose(threat.norm, norms, f"norm for {name}")
            if targeted and not targetable:
                raise ValueError(f"{name} cannot aim at a target")
            x = x.detach()
            if not len(x):
                return x.clone()
            with torch.no_grad():
                x_adv = function(model, x, y, threat, rng=rng, targeted=targeted, **keys)
                if kind == "minimum_norm":  # the smallest one found may still be larger than a finite budget
                    inside = column(threat.contains(x_adv, x), x)
                    x_adv = torch.where(inside, x_adv, threat.project(x_adv, x))
            return x_adv

        checked.kind, checked.norms, checked.targetable = kind, norms, targetable  # type: ignore[attr-defined]
        return ATTACKS.register(name)(checked)

    return enter


def narrow(model: Model, index: Tensor) -> Model:
    """The model for the examples at `index`."""
    select = getattr(model, "select", None)
    return select(index) if select else model


def gradient(model: Model, x: Tensor, objective: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient of the objective with respect to x, objective [batch], logits). Parameters get none.

    Raises:
        ValueError: the logits do not depend on x differentiably, so that no attack by gradients means anything.
    """
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = model(leaf)
        if not logits.requires_grad:
            raise ValueError("the model passes no gradient to its input; wrap what blocks it with adaptive()")
        value = objective(logits)
        (grad,) = torch.autograd.grad(value.sum(), leaf)
    return grad, value.detach(), logits.detach()


def ascend(
    model: Model,
    x_start: Tensor,
    x: Tensor,
    threat: ThreatModel,
    objective: Callable[[Tensor], Tensor],
    steps: int,
    step_size: float | Tensor,
) -> Tensor:
    """Plain projected gradient ascent of an objective (logits -> [batch]) from x_start, within the ball around x.

    Args:
        step_size: in units of the representation; a number, or a tensor that broadcasts against x.
    """
    x_adv = x_start
    for _ in range(steps):
        grad, _, _ = gradient(model, x_adv, objective)
        x_adv = threat.project(x_adv + step_size * threat.ascent(grad), x)
    return x_adv.detach()


def finite_budgets(threat: ThreatModel, x: Tensor) -> Tensor:
    """eps per example, [batch]; an infinite one becomes the size of the whole legal range.

    Raises:
        ValueError: an infinite eps where the range is infinite too.
    """
    eps = threat.budgets(x)
    span = threat.bounds[1] - threat.bounds[0]
    entries = x[0].numel()
    span *= {"linf": 1.0, "l2": math.sqrt(entries)}.get(threat.norm, float(entries))
    if math.isinf(span) and bool(eps.isinf().any()):
        raise ValueError("an attack with a budget needs a finite eps where values have no bounds")
    return eps.clamp(max=span)


def every(x: Tensor) -> int:
    """Steps between two looks at which examples are done: a look makes a GPU wait, and costs a CPU nothing."""
    return 10 if x.is_cuda else 1


class Best:
    """The best iterate of every example: a success before a failure, then the higher value.

    Attributes:
        x: the iterates, [batch, ...].
        value: of the objective there, [batch].
        success: [batch] bool.
    """

    def __init__(self, x: Tensor):
        self.x = x.clone()
        self.value = x.new_full((len(x),), -math.inf)
        self.success = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def update(self, x_adv: Tensor, value: Tensor, success: Tensor, first: bool) -> None:
        """Take what is better; with `first`, the first success stays. A NaN is never better."""
        better = (success & ~self.success) | ((success == self.success) & (value > self.value))
        if first:
            better &= ~self.success
        torch.where(column(better, x_adv), x_adv, self.x, out=self.x)
        self.value = torch.where(better, value, self.value)
        self.success = self.success | success

    def select(self, index: Tensor) -> Best:
        part = object.__new__(Best)
        part.x, part.value, part.success = self.x[index], self.value[index], self.success[index]
        return part

    def put(self, index: Tensor, part: Best) -> None:
        """Write the examples at `index` back; a part that is the whole already is there."""
        if part is self:
            return
        self.x[index], self.value[index], self.success[index] = part.x, part.value, part.success
