"""Fast minimum norm (Pintor et al. 2021): steps along the gradient inside a ball whose radius follows the predicted
distance to the boundary; after the first success it shrinks at successes and grows at failures. Step sizes are in units
of the predicted distance of each clip, where the paper has constants for images, and in linf they follow the signs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from src.attacks.core import cosine
from src.attacks.minimum_norm.search import DUAL, Search, minimize
from src.attacks.model import Model
from src.attacks.registration import attack
from src.random_streams import RandomStreams
from src.registry import Count, Fraction, Natural, Positive
from src.threat import ThreatModel, column, norm_of


@attack("fmn", kind="minimum_norm", norms=("l2", "linf", "l1", "l0"), access="gradients")
def fmn(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    steps: Count = 100,
    step: Positive = 1.0,
    gamma: Fraction = 0.1,
    shrink_steps: Natural = 10,
) -> Tensor:
    """Smallest perturbation in l2, linf, l1 or l0, by steps along the gradient in a ball of adaptive radius.

    Args:
        steps: gradient steps.
        step: length of the first step in units of the predicted distance; it decays to a hundredth along a cosine.
        gamma: share by which the radius shrinks or grows at first; it decays to 0.001.
        shrink_steps: forward passes of the final bisection.
    """
    norm = threat.norm

    def search(batch: Search) -> None:
        x_adv = batch.x
        eps = torch.zeros_like(batch.reach)
        for iteration in range(steps):
            grad, value, success = batch.probe(x_adv)
            change = cosine(iteration, steps, gamma, 0.001)
            smallest = batch.size()
            if norm == "l0":  # a number of entries: at least one more or less
                shrunk = (eps * (1 - change)).floor().minimum(eps - 1).minimum(smallest)
                eps = torch.where(success, shrunk, (eps * (1 + change)).floor().maximum(eps + 1)).clamp_min(1)
            else:
                slope = norm_of(grad, DUAL[norm]).clamp_min(1e-30)
                predicted_distance = norm_of(x_adv - batch.x, norm) + value.abs() / slope
                # Before the first success the radius exceeds the prediction: a point on the boundary is no success.
                grown = torch.where(smallest.isinf(), predicted_distance, eps) * (1 + change)
                eps = torch.where(success, (eps * (1 - change)).minimum(smallest), grown)
            length = cosine(iteration, steps, step, step / 100) * batch.reach
            ball = replace(batch.threat, eps=eps)
            x_adv = ball.project(x_adv + column(length, x) * _direction(grad, norm), batch.x)

    return minimize(model, x, y, threat, rng, targeted, search, shrink_steps)


def _direction(grad: Tensor, norm: str) -> Tensor:
    """The gradient with unit l2 norm; linf: its signs; l1, l0: largest entry 1, as the projection keeps the largest."""
    if norm == "linf":
        return grad.sign()
    return grad / column(norm_of(grad, "l2" if norm == "l2" else "linf"), grad).clamp_min(1e-30)
