"""Simultaneous perturbation stochastic approximation (Spall 1992; Uesato et al. 2018): gradients guessed from random
sign probes, followed by Adam."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attacks.core import Best, Model, attack, finite_budgets
from src.attacks.queries import Task, slope
from src.registry import Count, Positive
from src.streams import Streams
from src.threat import ThreatModel, column


@attack("spsa", kind="budget", norms=("linf", "l2"))
def spsa(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    generator: Streams,
    targeted: bool,
    queries: Count = 2000,
    pairs: Count = 16,
    probe: Positive = 0.3,
    learning_rate: Positive = 0.3,
) -> Tensor:
    """Adam along a gradient guessed from random-sign probes.

    Args:
        queries: most queries per example; a step takes 2 * pairs + 1.
        pairs: antithetic pairs of probes per step.
        probe: size of a probe's entries, in units of eps (linf) or eps / sqrt(entries) (l2).
        learning_rate: of Adam, in the same units.
    """
    best, alive = Best(x), torch.arange(len(x), device=x.device)
    unit = finite_budgets(threat, x)
    unit = unit if threat.norm == "linf" else unit / x[0].numel() ** 0.5
    task, mine, x_adv = Task(model, x, y, threat, generator, targeted), best, x
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    used = iteration = 0
    while used < queries:
        value, success = task.score(x_adv)
        used += 1
        mine.update(x_adv, value, success, first=True)
        keep = (~mine.success).nonzero().flatten()
        if len(keep) < len(task):  # the examples that are done leave the batch
            best.put(alive, mine)
            if not len(keep):
                return best.x
            task, mine = task.select(keep), mine.select(keep)
            alive, unit, x_adv, first, second = (t[keep] for t in (alive, unit, x_adv, first, second))
        if used + 2 * pairs + 1 > queries:
            break
        grad, _ = slope(task, x_adv, task.generator.signs, probe * unit, pairs)
        used += 2 * pairs
        iteration += 1
        first = 0.9 * first + 0.1 * grad
        second = 0.99 * second + 0.01 * grad.square()
        moment, scale = first / (1 - 0.9**iteration), (second / (1 - 0.99**iteration)).sqrt()
        step = moment / scale.clamp_min(1e-30) * column(learning_rate * unit, x_adv)
        x_adv = task.threat.project(x_adv + step, task.x)
    best.put(alive, mine)
    return best.x
