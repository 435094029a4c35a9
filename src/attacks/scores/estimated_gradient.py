"""What NES and SPSA share: they follow gradients guessed from scores, and differ in the probes and in the step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from src.attacks.active_batch import Task
from src.random_streams import Streams
from src.threat import column

Draw = Callable[[Streams, Tensor], Tensor]
"""Random directions shaped as the tensor."""
Tensors = tuple[Tensor, ...]
Rule = Callable[[Task, int, Tensor, Tensor, Tensors], tuple[Tensor, Tensors]]
"""(task, iteration, gradient, level, state) -> (step [batch, ...], state); gradient and level are those of `slope`."""


def follow(task: Task, draw: Draw, size: Tensor, rule: Rule, state: Tensors, *, queries: int, pairs: int) -> Tensor:
    """Climb until the first success, for at most `queries` queries per example; returns the best iterates.

    Args:
        draw: directions of the probes.
        size: of the probes, [batch].
        rule: from a gradient to a step.
        state: of the rule at first, [batch, ...] each.
        pairs: antithetic pairs of probes per step.
    """
    x_adv, steps = task.x, (queries - 1) // (2 * pairs + 1)
    for iteration in range(steps + 1):
        task.score(x_adv)
        x_adv, size, state = task.keep(~task.best.success, x_adv, size, state)
        if not len(task) or iteration == steps:
            break
        grad, level = slope(task, x_adv, draw, size, pairs)
        step, state = rule(task, iteration, grad, level, state)
        x_adv = task.threat.project(x_adv + step, task.x)
    return task.finish()


def slope(task: Task, x_adv: Tensor, draw: Draw, size: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    """The gradient of the margin guessed from antithetic pairs of queries, for 2 * pairs queries per example.

    Returns:
        (gradient up to a positive factor, [batch, ...]; mean margin of the probes, [batch]).
    """
    total = torch.zeros_like(x_adv)
    level = x_adv.new_zeros(len(x_adv))
    for _ in range(pairs):
        step = task.threat.masked(draw(task.generator, x_adv)) * column(size, x_adv)
        up = task.score(task.threat.clip(x_adv + step, task.x), enter=False)
        down = task.score(task.threat.clip(x_adv - step, task.x), enter=False)
        # Two infinite scores say nothing about the direction.
        total += step * column((up - down).nan_to_num(0.0), x_adv)
        level += (up + down) / (2 * pairs)
    return total, level
