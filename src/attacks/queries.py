"""What attacks without gradients share: the examples they still work on, and gradients guessed from scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from src.attacks.core import Model, narrow
from src.losses import fooled, margin
from src.streams import Streams
from src.threat import ThreatModel, column


@dataclass(frozen=True)
class Task:
    """What belongs to the examples an attack still works on, so that all of it is selected together.

    Attributes:
        model: from inputs to logits.
        x: the clean inputs, [batch, ...].
        y: labels, or targets, [batch].
        threat: what the adversary may do.
        generator: one random stream per example.
        targeted: whether y holds targets.
    """

    model: Model
    x: Tensor
    y: Tensor
    threat: ThreatModel
    generator: Streams
    targeted: bool

    def __len__(self) -> int:
        return len(self.x)

    def select(self, index: Tensor) -> Task:
        """The task for the examples at `index` [long]."""
        return replace(
            self,
            model=narrow(self.model, index),
            x=self.x[index],
            y=self.y[index],
            threat=self.threat.select(index),
            generator=self.generator.select(index),
        )

    def score(self, x_adv: Tensor) -> tuple[Tensor, Tensor]:
        """One query per example: (margin, larger is nearer to success; success), [batch] each. NaN scores are -inf."""
        logits = self.model(x_adv)
        return margin(logits, self.y, self.targeted).nan_to_num(nan=-torch.inf), fooled(logits, self.y, self.targeted)

    def decide(self, x_adv: Tensor) -> Tensor:
        """One query per example: whether it succeeds, [batch] bool."""
        return fooled(self.model(x_adv), self.y, self.targeted)


def slope(
    task: Task, x_adv: Tensor, draw: Callable[[Tensor], Tensor], size: Tensor, pairs: int
) -> tuple[Tensor, Tensor]:
    """The gradient of the margin guessed from antithetic pairs of queries, for 2 * pairs queries per example.

    Args:
        task: the examples.
        x_adv: where, [batch, ...].
        draw: random directions shaped as its argument.
        size: of the step along a direction, [batch].
        pairs: directions per example.

    Returns:
        (gradient up to a positive factor, [batch, ...]; mean margin of the probes, [batch]).
    """
    total = torch.zeros_like(x_adv)
    level = x_adv.new_zeros(len(x_adv))
    for _ in range(pairs):
        step = task.threat.masked(draw(x_adv)) * column(size, x_adv)
        up, _ = task.score(task.threat.clip(x_adv + step, task.x))
        down, _ = task.score(task.threat.clip(x_adv - step, task.x))
        # Two infinite scores say nothing about the direction.
        total += step * column((up - down).nan_to_num(0.0), x_adv)
        level += (up + down) / (2 * pairs)
    return total, level
