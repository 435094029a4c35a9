"""Projected gradient descent (Madry et al. 2018) in linf, l2 and l1, with restarts and momentum (Dong et al. 2018).
In l1 a step spreads over the largest entries of the gradient, as in SLIDE (Tramer and Boneh 2019)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from src.attacks.core import Best, Model, attack, every, finite_budgets, gradient, narrow
from src.losses import LOSSES, fooled
from src.registry import Count, Fraction, Positive
from src.streams import Streams
from src.threat import ThreatModel, column, norm_of


@attack("pgd", kind="budget", norms=("linf", "l2", "l1"))
def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    generator: Streams,
    targeted: bool,
    steps: Count = 40,
    step: Positive = 2.5,
    restarts: Count = 1,
    random_start: bool = True,
    momentum: Fraction = 0.0,
    loss: Literal["cross_entropy", "margin", "dlr"] = "cross_entropy",
    early_exit: bool = True,
    sparsity: Fraction = 0.01,
) -> Tensor:
    """Repeated steps up the loss, each projected back; the best iterate of all steps and restarts is returned.

    Args:
        steps: gradient steps per restart.
        step: step size in units of eps / steps.
        restarts: independent runs from random starts; each example keeps its best.
        random_start: begin at a random point of the ball.
        momentum: share of the previous direction that is kept.
        loss: what the steps climb.
        early_exit: an example stops at its first success; otherwise its loss is raised to the end.
        sparsity: share of the entries that one l1 step changes.
    """
    if restarts > 1 and not random_start:
        raise ValueError("restarts need random_start, or they all do the same")
    eps = finite_budgets(threat, x)
    best = Best(x)
    for _ in range(restarts):
        alive = (~best.success).nonzero().flatten() if early_exit else torch.arange(len(x), device=x.device)
        if not len(alive):
            break
        _climb(
            narrow(model, alive),
            x[alive],
            y[alive],
            threat.select(alive),
            column(eps[alive] * (step / steps), x),
            alive,
            best,
            generator.select(alive) if random_start else None,
            targeted=targeted,
            steps=steps,
            momentum=momentum,
            loss=loss,
            early_exit=early_exit,
            sparsity=sparsity,
        )
    return best.x


def _climb(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    step: Tensor,
    alive: Tensor,
    best: Best,
    generator: Streams | None,
    *,
    targeted: bool,
    steps: int,
    momentum: float,
    loss: str,
    early_exit: bool,
    sparsity: float,
) -> None:
    """One restart for the examples `alive` of the whole batch; what it finds goes into `best`."""
    x_adv = x.clone() if generator is None else threat.random_start(x, generator)
    box = threat.box(x) if threat.norm == "linf" else None
    velocity = torch.zeros_like(x) if momentum else None
    mine = best.select(alive)
    for iteration in range(steps):
        grad, value, logits = gradient(model, x_adv, lambda logits, y=y: LOSSES[loss](logits, y, targeted))  # type: ignore[misc]
        mine.update(x_adv, value, fooled(logits, y, targeted), early_exit)
        if early_exit and iteration % every(x) == 0:
            keep = (~mine.success).nonzero().flatten()
            if len(keep) < len(x):  # the examples that are done leave the batch
                best.put(alive, mine)
                if not len(keep):
                    return
                x_adv, grad, x, y, step, alive = (t[keep] for t in (x_adv, grad, x, y, step, alive))
                model, threat, mine = narrow(model, keep), threat.select(keep), mine.select(keep)
                box = (box[0][keep], box[1][keep]) if box else None
                velocity = None if velocity is None else velocity[keep]
        if velocity is not None:
            size = column(norm_of(grad, "l1"), grad).clamp_min_(1e-30)
            grad = velocity.mul_(momentum).add_(grad.div_(size)).clone()
        if box:
            x_adv.addcmul_(grad.sign_(), step).clamp_(*box)
        else:
            direction = threat.ascent(grad) if threat.norm == "l2" else _sparse(threat.masked(grad), sparsity)
            x_adv = threat.project(x_adv.addcmul_(direction, step), x)
    logits = model(x_adv)
    mine.update(x_adv, LOSSES[loss](logits, y, targeted), fooled(logits, y, targeted), early_exit)
    best.put(alive, mine)


def _sparse(grad: Tensor, sparsity: float) -> Tensor:
    """The largest entries of the gradient, scaled to unit l1 norm. Their sizes stay, so that under repeated projection
    the best entries win."""
    flat = grad.flatten(1)
    chosen = flat.abs().topk(max(1, round(sparsity * flat.shape[1])), dim=1).indices
    direction = torch.zeros_like(flat).scatter(1, chosen, flat.gather(1, chosen)).view_as(grad)
    return direction / column(norm_of(direction, "l1"), grad).clamp_min(1e-30)
