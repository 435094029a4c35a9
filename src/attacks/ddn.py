"""Decoupled direction and norm (Rony et al. 2019): the direction follows the gradient, the norm shrinks after a success
and grows after a failure. Norm and steps are relative to each clip, where the paper has image constants."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attacks.core import Model, attack
from src.attacks.minimum_norm import Search, cosine, minimize
from src.registry import Count, Fraction, Natural, Positive
from src.streams import Streams
from src.threat import ThreatModel, column, norm_of


@attack("ddn", kind="minimum_norm", norms=("l2",))
def ddn(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    generator: Streams,
    targeted: bool,
    steps: Count = 100,
    step: Positive = 1.0,
    gamma: Fraction = 0.1,
    shrink_steps: Natural = 10,
) -> Tensor:
    """Smallest l2 perturbation, by steps along the gradient on a sphere that shrinks and grows.

    Args:
        steps: gradient steps.
        step: length of the first step in radii of the sphere; it falls to a hundredth along a cosine.
        gamma: share by which the sphere first shrinks or grows; it falls to 0.001.
        shrink_steps: forward passes of the final bisection.
    """

    def search(task: Search) -> None:
        eps = task.reach
        delta = torch.zeros_like(task.x)
        for iteration in range(steps):
            grad, _, success = task.probe(task.x + delta)
            if iteration:
                change = cosine(iteration, steps, gamma, 0.001)
                eps = eps * torch.where(success, 1 - change, 1 + change)
            length = eps * cosine(iteration, steps, step, step / 100)
            delta = delta + column(length, x) * task.threat.ascent(grad)
            delta = delta * column(eps / norm_of(delta, "l2").clamp_min(1e-30), x)
            delta = task.threat.clip(task.x + delta, task.x) - task.x

    return minimize(model, x, y, threat, targeted, search, shrink_steps)
