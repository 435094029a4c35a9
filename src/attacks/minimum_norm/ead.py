"""EAD, elastic-net attacks (Chen et al. 2018): accelerated proximal gradient on
||delta||_1 + beta * ||delta||_2^2 + c * max(0, -margin), with a search for c per example. Lengths are in units of the
l1 distance r that the first gradient predicts and the margin in units of the clean one, so that c = 1 just moves a
linear model and the same constants serve every clip."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attacks.core import Model, attack
from src.attacks.minimum_norm.search import Search, minimize
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
    """Smallest l1 perturbation (elastic net) by penalty and search over its weight.

    Args:
        search_steps: values of c tried per example.
        steps: gradient steps per value of c.
        learning_rate: first step size, in predicted distances; it falls with a square root to zero.
        beta: weight of the squared l2 norm beside the l1 norm.
        initial_c: first weight of the misclassification term; 1 just balances the l1 norm on a linear model.
        shrink_steps: forward passes of the final bisection.
    """

    def search(batch: Search) -> None:
        unit, clean = column(batch.reach, x), batch.value.abs().clamp_min(1e-12)
        c = torch.full_like(batch.reach, initial_c)
        low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
        for _ in range(search_steps):
            point = look = torch.zeros_like(batch.x)
            found = torch.zeros_like(batch.best.success)
            for iteration in range(steps):
                x_adv = batch.threat.clip(batch.x + look * unit, batch.x)
                grad, value, success = batch.probe(x_adv)
                found |= success
                pull = c * batch.reach / clean * (value <= batch.goal)
                rate = learning_rate * (1 - iteration / steps) ** 0.5
                moved = look - rate * (2 * beta * look - column(pull, x) * grad)
                shrunk = moved.sign() * (moved.abs() - rate).clamp_min(0)
                # The extrapolated points may leave the legal box; the iterates do not.
                shrunk = (batch.threat.clip(batch.x + shrunk * unit, batch.x) - batch.x) / unit
                look = shrunk + iteration / (iteration + 3) * (shrunk - point)
                point = shrunk
            found |= batch.test(batch.threat.clip(batch.x + point * unit, batch.x))
            high, low = torch.where(found, c, high), torch.where(found, low, c)
            c = torch.where(high.isinf(), c * 5, torch.where(low == 0, c / 2, (low * high).sqrt()))

    return minimize(model, x, y, threat, rng, targeted, search, shrink_steps)
