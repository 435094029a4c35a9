"""EAD, elastic-net attacks (Chen et al. 2018): accelerated proximal gradient on
||delta||_1 + beta * ||delta||_2^2 + c * max(0, -margin), with a search for c per example. Lengths are in units of the
l1 distance r that the first gradient predicts and the margin in units of the clean one, so that c = 1 just moves a
linear model and the same constants serve every clip."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attacks.core import Model, attack
from src.attacks.minimum_norm.search import Search, minimize
from src.random_streams import Streams
from src.registry import Count, Natural, NonNegative, Positive
from src.threat import ThreatModel, column


@attack("ead", kind="minimum_norm", norms=("l1",))
def ead(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    generator: Streams,
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

    def search(task: Search) -> None:
        unit, clean = column(task.reach, x), task.value.abs().clamp_min(1e-12)
        c = torch.full_like(task.reach, initial_c)
        low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
        for _ in range(search_steps):
            point = look = torch.zeros_like(task.x)
            found = torch.zeros_like(task.best.success)
            for iteration in range(steps):
                x_adv = task.threat.clip(task.x + look * unit, task.x)
                grad, value, success = task.probe(x_adv)
                found |= success
                pull = c * task.reach / clean * (value <= task.goal)
                rate = learning_rate * (1 - iteration / steps) ** 0.5
                moved = look - rate * (2 * beta * look - column(pull, x) * grad)
                shrunk = moved.sign() * (moved.abs() - rate).clamp_min(0)
                # The extrapolated points may leave the legal box; the iterates do not.
                shrunk = (task.threat.clip(task.x + shrunk * unit, task.x) - task.x) / unit
                look = shrunk + iteration / (iteration + 3) * (shrunk - point)
                point = shrunk
            found |= task.test(task.threat.clip(task.x + point * unit, task.x))
            high, low = torch.where(found, c, high), torch.where(found, low, c)
            c = torch.where(high.isinf(), c * 5, torch.where(low == 0, c / 2, (low * high).sqrt()))

    return minimize(model, x, y, threat, generator, targeted, search, shrink_steps)
