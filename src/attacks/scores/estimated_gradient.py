"""The common loop of NES and SPSA, ascent along gradients estimated from scores; they differ in probes and step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.random_streams import RandomStreams
from src.threat import column

Draw = Callable[[RandomStreams, Tensor], Tensor]
"""Random directions shaped as the tensor."""
Score = Callable[[Tensor], Tensor]
"""Value to maximize at inputs [batch, ...], [batch]; one query per example."""
Tensors = tuple[Tensor, ...]
Rule = Callable[[ActiveBatch, int, Tensor, Tensor, Tensors], tuple[Tensor, Tensors]]
"""(batch, iteration, gradient, level, state) -> (step [batch, ...], state); gradient and level as from `estimate`."""


def follow(
    batch: ActiveBatch, draw: Draw, size: Tensor, rule: Rule, state: Tensors, *, queries: int, pairs: int
) -> Tensor:
    """Maximize the margin until the first success, by at most `queries` queries per example; returns the best iterates.

    Args:
        draw: draws the directions of the probes.
        size: length of the probes, [batch].
        rule: maps a gradient to a step.
        state: initial state of the rule, [batch, ...] each.
        pairs: antithetic pairs of probes per step.
    """
    x_adv, steps = batch.x, (queries - 1) // (2 * pairs + 1)
    size = size.clamp_min(batch.threat.grid or 0.0)  # a shorter probe would be rounded away
    for iteration in range(steps + 1):
        batch.score(x_adv)
        x_adv, size, state = batch.keep(~batch.best.success, x_adv, size, state)
        if not len(batch) or iteration == steps:
            break
        grad, level = estimate(batch, x_adv, draw, size, pairs)
        step, state = rule(batch, iteration, grad, level, state)
        x_adv = batch.threat.project(x_adv + step, batch.x)
    return batch.finish()


def estimate(
    batch: ActiveBatch, x_adv: Tensor, draw: Draw, size: Tensor, pairs: int, score: Score | None = None
) -> tuple[Tensor, Tensor]:
    """Gradient of the margin estimated from antithetic pairs of probes, by 2 * pairs queries per example.

    Args:
        score: another value than the margin.

    Returns:
        (gradient up to a positive factor, [batch, ...]; mean margin of the probes, [batch]).
    """
    score = score or (lambda x: batch.score(x, enter=False))
    total = torch.zeros_like(x_adv)
    level = x_adv.new_zeros(len(x_adv))
    for _ in range(pairs):
        step = batch.threat.masked(draw(batch.rng, x_adv)) * column(size, x_adv)
        up = score(batch.threat.clip(x_adv + step, batch.x))
        down = score(batch.threat.clip(x_adv - step, batch.x))
        # Two infinite scores carry no information about the direction.
        total += step * column((up - down).nan_to_num(0.0), x_adv)
        level += (up + down) / (2 * pairs)
    return total, level
