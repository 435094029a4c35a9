"""The L2 attack of Carlini and Wagner (2017) with the schedule that studies of speaker recognition publish (CW2): Adam
on w in x' = tanh(w), absolute lengths and weights, and a bisection of c. The scaled schedule of `cw` finds smaller
perturbations in fewer steps; this one makes numbers comparable."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.core import Best, gradient
from src.attacks.model import Model, confirmed
from src.losses import margin
from src.random_streams import RandomStreams
from src.threat import ThreatModel, column

LARGEST_C = 1e10
INSIDE = 0.999999
"""Share of the legal range that the start is scaled to, so that its atanh is finite."""
PROGRESS = 0.9999
"""A loss above this share of its value a tenth of the steps earlier has converged."""


def published(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    rng: RandomStreams,
    targeted: bool,
    *,
    search_steps: int,
    steps: int,
    learning_rate: float,
    initial_c: float,
    confidence: float,
    abort_early: bool,
) -> Tensor:
    """The smallest success of all iterates and all c, or x.

    Args:
        search_steps: values of c per example: tenfold until one succeeds, then the middle between the largest that
            failed and the smallest that succeeded.
        steps: of Adam per c.
        learning_rate: of Adam.
        initial_c: the first c.
        confidence: kappa.
        abort_early: stop where a tenth of the steps lowers the loss by less than 0.01 %.

    Raises:
        ValueError: the legal values have no finite bounds.
    """
    low_value, high_value = threat.bounds
    if not (math.isfinite(low_value) and math.isfinite(high_value)):
        raise ValueError("schedule = published optimizes tanh(w), which needs a stage with finite bounds")
    best, c = Best.of(x), x.new_full((len(x),), initial_c)
    low, high = torch.zeros_like(c), torch.full_like(c, LARGEST_C)
    for _ in range(search_steps):
        batch = ActiveBatch(model, x, y, threat, rng, targeted, best)
        succeeded = _descend(batch, c, steps, learning_rate, confidence, abort_early)
        high = torch.where(succeeded, torch.minimum(high, c), high)
        low = torch.where(succeeded, low, torch.maximum(low, c))
        c = torch.where(high < LARGEST_C, (low + high) / 2, (c * 10).clamp(max=LARGEST_C))
    return best.x


def _descend(
    batch: ActiveBatch, c: Tensor, steps: int, learning_rate: float, confidence: float, abort_early: bool
) -> Tensor:
    """Adam from x with one c per example; updates the best. Returns which succeeded, [batch] bool."""
    middle, half = sum(batch.threat.bounds) / 2, (batch.threat.bounds[1] - batch.threat.bounds[0]) / 2
    start = ((batch.x - middle) / half * INSIDE).atanh()
    w, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    reached, succeeded = torch.zeros_like(c, dtype=torch.bool), torch.zeros_like(c, dtype=torch.bool)
    previous, check = torch.full_like(c, math.inf), max(steps // 10, 1)
    for iteration in range(steps):
        # The clip itself is legal where w is unchanged: its scaled tanh would differ by a millionth.
        x_adv = batch.threat.clip(torch.where(w == start, batch.x, middle + half * w.tanh()), batch.x)
        grad, value, _ = gradient(batch.model, x_adv, lambda logits: margin(logits, batch.y, batch.targeted))
        delta = x_adv - batch.x
        square = delta.flatten(1).square().sum(1)
        success = confirmed(batch.model, x_adv, value > confidence, batch.y, batch.targeted)
        reached |= success
        batch.best.update(x_adv, -square, success, first=False)
        loss = square + c * (confidence - value).clamp_min(0)
        grad = batch.threat.masked(2 * delta - column(c * (value <= confidence), grad) * grad)
        grad = grad * half * (1 - w.tanh().square())
        first.mul_(0.9).add_(grad, alpha=0.1)
        second.mul_(0.999).addcmul_(grad, grad, value=0.001)
        scale = (second / (1 - 0.999 ** (iteration + 1))).sqrt_().add_(1e-8)
        w = w - learning_rate / (1 - 0.9 ** (iteration + 1)) * first / scale
        if abort_early and iteration % check == 0:
            succeeded[batch.index] = reached
            c, w, start, first, second, reached, previous = batch.keep(
                loss <= PROGRESS * previous, c, w, start, first, second, reached, loss
            )
            if not len(batch):
                return succeeded
    succeeded[batch.index] = reached
    batch.finish()
    return succeeded
