"""EAD, elastic-net attacks (Chen et al. 2018): accelerated proximal gradient on
||delta||_1 + beta * ||delta||_2^2 + c * max(0, -margin), with a search for c per example. Lengths are in units of the
l1 distance that the first gradient predicts and margins in units of the clean margin, so that c = 1 is the smallest
weight that changes the label of a linear model and the same constants suit every clip."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attacks.minimum_norm.search import Search, minimize
from src.attacks.model import Model
from src.attacks.registration import attack
from src.random_streams import RandomStreams
from src.registry import Count, Natural, NonNegative, Positive
from src.threat import ThreatModel, column


@attack("ead", kind="minimum_norm", norms=("l1",), access="gradients")
def ead(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    search_steps: Count = 5,
    steps: Count = 40,
    learning_rate: Positive = 0.05,
    beta: NonNegative = 0.1,
    initial_c: Positive = 2.0,
    shrink_steps: Natural = 10,
) -> Tensor:
    """Smallest l1 perturbation (elastic net), by a penalty and a search over its weight.

    Args:
        search_steps: values of c tried per example.
        steps: gradient steps per value of c.
        learning_rate: initial step size, in units of the predicted distance; it decays to zero as a square root.
        beta: weight of the squared l2 norm beside the l1 norm.
        initial_c: initial weight of the misclassification term; 1 balances the l1 norm on a linear model.
        shrink_steps: forward passes of the final bisection.
    """

    def search(batch: Search) -> None:
        scale, clean = column(batch.reach, x), batch.value.abs().clamp_min(1e-12)
        c = torch.full_like(batch.reach, initial_c)
        low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
        for _ in range(search_steps):
            point = extrapolated = torch.zeros_like(batch.x)
            succeeded = torch.zeros_like(batch.best.success)
            for iteration in range(steps):
                x_adv = batch.threat.clip(batch.x + extrapolated * scale, batch.x)
                grad, value, success = batch.probe(x_adv)
                succeeded |= success
                attraction = c * batch.reach / clean * (value <= batch.goal)
                rate = learning_rate * (1 - iteration / steps) ** 0.5
                moved = extrapolated - rate * (2 * beta * extrapolated - column(attraction, x) * grad)
                shrunk = moved.sign() * (moved.abs() - rate).clamp_min(0)
                # Extrapolated points may violate the bounds; the iterates do not.
                shrunk = (batch.threat.clip(batch.x + shrunk * scale, batch.x) - batch.x) / scale
                extrapolated = shrunk + iteration / (iteration + 3) * (shrunk - point)
                point = shrunk
            succeeded |= batch.test(batch.threat.clip(batch.x + point * scale, batch.x))
            high, low = torch.where(succeeded, c, high), torch.where(succeeded, low, c)
            c = torch.where(high.isinf(), c * 5, torch.where(low == 0, c / 2, (low * high).sqrt()))

    return minimize(model, x, y, threat, rng, targeted, search, shrink_steps)
