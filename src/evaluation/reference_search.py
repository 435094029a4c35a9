"""What the planted test compares attacks with: a long gradient search that shares no code with any attack, and random
points of the ball."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from src.attacks.core import cosine, gradient
from src.random_streams import RandomStreams
from src.threat import ThreatModel, column, norm_of

Score = Callable[[Tensor], Tensor]
"""From inputs [batch, ...] to one value per example, [batch]."""
SPARSITY = 0.01
"""l1: share of the entries that a step or a random point changes."""


def maximize(score: Score, x: Tensor, threat: ThreatModel, steps: int) -> tuple[Tensor, Tensor]:
    """Projected gradient ascent from x. The first step has the length of eps, the last a hundredth of it. Points are
    scored on the grid of the threat model, where it has one.

    Args:
        x: inputs, [batch, ...].
        threat: a finite budget.
        steps: gradient steps; 1 is the one-step attack of the norm.

    Returns:
        the best point of each example [batch, ...] and its score [batch]; x itself where no step improves on it.
    """
    size = column(_step_length(x, threat), x)
    point, best, highest = x, x, x.new_full((len(x),), -math.inf)
    for step in range(steps + 1):
        legal = threat.snap(point, x)
        grad, value, _ = gradient(lambda z: score(z)[:, None], legal, lambda values: values[:, 0])
        higher = value > highest
        best, highest = torch.where(column(higher, x), legal, best), torch.where(higher, value, highest)
        if step < steps:
            # In l1 and l0 the largest entry would take every step in vain where it is at its bound already.
            low, high = threat.bounds
            grad = threat.masked(grad) * torch.where(grad > 0, point < high, point > low)
            direction = _direction(grad, threat.norm)
            point = threat.project(point + cosine(step, steps, 1.0, 0.01) * size * direction, x)
    return best, highest


def random_point(x: Tensor, threat: ThreatModel, rng: RandomStreams) -> Tensor:
    """x with a random change of the whole budget: signs (linf), a Gaussian direction (l2), signs on a random share of
    the entries (l1), or on as many entries as eps allows (l0). [batch, ...]."""
    if threat.norm == "l2":
        noise = threat.masked(rng.normal(x))
    elif threat.norm == "linf":
        noise = threat.masked(rng.signs(x))
    else:
        rank = threat.masked(rng.uniform(x) + 1)
        entries = x.new_full((len(x),), max(1, round(SPARSITY * x[0].numel())))
        chosen = ThreatModel("l0", threat.budgets(x) if threat.norm == "l0" else entries).project(rank, 0 * x)
        noise = (chosen != 0) * rng.signs(x)
    unit = noise / column(norm_of(noise, "linf" if threat.norm == "l0" else threat.norm), x).clamp_min(1e-30)
    return threat.snap(threat.project(x + column(_step_length(x, threat), x) * unit, x), x)


def _step_length(x: Tensor, threat: ThreatModel) -> Tensor:
    """eps, [batch]; in l0, where eps counts entries, the legal range or else the largest entry of x."""
    if threat.norm != "l0":
        return threat.budgets(x)
    span = threat.bounds[1] - threat.bounds[0]
    return x.new_full((len(x),), span) if math.isfinite(span) else norm_of(x, "linf")


def _direction(grad: Tensor, norm: str) -> Tensor:
    """Ascent direction of unit norm. In l1 and l0 the entries keep their relative sizes, so that the projection can
    tell the effective ones; in l1 only the largest share of them changes, and in l0 the largest has the size 1."""
    if norm == "linf":
        return grad.sign()
    if norm == "l1":
        largest = torch.full((len(grad),), max(1, round(SPARSITY * grad[0].numel())), device=grad.device)
        grad = ThreatModel("l0", largest).project(grad, 0 * grad)
    return grad / column(norm_of(grad, "linf" if norm == "l0" else norm), grad).clamp_min(1e-30)
