"""What attacks have in common: the gradient with respect to the input, budgets, schedules, the best iterate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from src.attacks.model import Model
from src.threat import ThreatModel, column


def gradient(model: Model, x: Tensor, objective: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient of the objective with respect to x, objective [batch], logits). Parameters get no gradients.

    Raises:
        ValueError: the logits are not differentiable with respect to x, so that gradient attacks are meaningless.
    """
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = model(leaf)
        if not logits.requires_grad:
            raise ValueError("the model passes no gradient to its input; wrap the blocking stage with adaptive()")
        value = objective(logits)
        (grad,) = torch.autograd.grad(value.sum(), leaf)
    if 0 in grad.stride():  # expanded, of a model that sums over its input, say: attacks write into the gradient
        grad = grad.contiguous()
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
    """eps per example, [batch]; an infinite eps is replaced by the size of the full legal range.

    Raises:
        ValueError: both eps and the legal range are infinite.
    """
    eps = threat.budgets(x)
    span = threat.bounds[1] - threat.bounds[0]
    entries = x[0].numel()
    span *= {"linf": 1.0, "l2": math.sqrt(entries)}.get(threat.norm, float(entries))
    if math.isinf(span) and bool(eps.isinf().any()):
        raise ValueError("an attack with a budget needs a finite eps where values have no bounds")
    return eps.clamp(max=span)


def cosine(iteration: int, steps: int, first: float, last: float) -> float:
    """Value of a schedule from `first` to `last` along half a cosine."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * iteration / steps))


def likeliest_others(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """The classes other than y [batch], the likeliest first, [batch, classes - 1]."""
    return model(x).scatter(1, y[:, None], -math.inf).argsort(1, descending=True)[:, :-1]


def check_interval(x: Tensor) -> int:
    """Steps between two checks which examples are done: a check forces a GPU to synchronize and is free on a CPU."""
    return 10 if x.is_cuda else 1


@dataclass(eq=False)
class Best:
    """The best iterate of every example: successes rank before failures, then higher values before lower ones.

    Attributes:
        x: the iterates, [batch, ...].
        value: of the objective there, [batch].
        success: [batch] bool.
    """

    x: Tensor
    value: Tensor
    success: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Self:
        """Initial state: the inputs x [batch, ...] themselves, with the lowest value."""
        success = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        return cls(x.clone(), x.new_full((len(x),), -math.inf), success)

    def update(self, x_adv: Tensor, value: Tensor, success: Tensor, first: bool) -> None:
        """Replace the iterates that x_adv improves on; with `first`, an example keeps its first success. NaN never
        improves."""
        better = (success & ~self.success) | ((success == self.success) & (value > self.value))
        if first:
            better &= ~self.success
        torch.where(column(better, x_adv), x_adv, self.x, out=self.x)
        self.value = torch.where(better, value, self.value)
        self.success = self.success | success

    def select(self, index: Tensor) -> Self:
        return type(self)(self.x[index], self.value[index], self.success[index])

    def put(self, index: Tensor, part: Best) -> None:
        """Store `part`, the best iterates of the examples at `index`; nothing to do where it is this object."""
        if part is self:
            return
        self.x[index], self.value[index], self.success[index] = part.x, part.value, part.success
