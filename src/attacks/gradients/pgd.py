"""Projected gradient descent (Madry et al. 2018) in linf, l2 and l1, with restarts and momentum (Dong et al. 2018).
In l1 a step changes the largest entries of the gradient, as in SLIDE (Tramer and Boneh 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch, Objective
from src.attacks.core import Best, check_interval, cosine, finite_budgets
from src.attacks.model import Model, succeeds
from src.attacks.registration import attack
from src.losses import LOSSES, LossName
from src.random_streams import RandomStreams
from src.registry import Count, Fraction, NonNegative
from src.threat import ThreatModel, column, norm_of


def check_restarts(options: Mapping[str, Any]) -> None:
    """Raises ValueError for restarts that would all be the same run."""
    if options["restarts"] > 1 and not options["random_start"]:
        raise ValueError("restarts need random_start = yes: from the same start every run gives the same result")


def check(options: Mapping[str, Any]) -> None:
    """Raises ValueError for useless restarts, and for a confidence that is not in units of the loss."""
    check_restarts(options)
    if options["confidence"] and options["loss"] != "margin":
        raise ValueError(f"confidence is a margin between logits: it needs loss = margin, not {options['loss']}")


@attack("pgd", kind="budget", norms=("linf", "l2", "l1"), access="gradients", check_options=check)
def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    steps: Count = 40,
    step: NonNegative = 0.0,
    restarts: Count = 1,
    random_start: bool = True,
    momentum: Fraction = 0.0,
    loss: LossName = "cross_entropy",
    early_exit: bool = True,
    confidence: NonNegative = 0.0,
    sparsity: Fraction = 0.01,
) -> Tensor:
    """Repeated gradient steps, each projected onto the ball; returns the best iterate of all steps and restarts. With
    the margin loss it is CW-Linf of the speaker-recognition study.

    Args:
        steps: gradient steps per restart.
        step: step size in units of eps / steps; 0: it falls from eps to 0 along half a cosine.
        restarts: independent runs from random starts; each example keeps its best iterate.
        random_start: start from a random point of the ball.
        momentum: weight of the previous direction.
        loss: objective that the steps maximize.
        early_exit: an example stops at its first success; otherwise its loss is maximized to the end.
        confidence: margin at which early_exit lets an example stop (kappa); where it is not reached, the best iterate
            is returned.
        sparsity: share of the entries that one l1 step changes.
    """
    threat, best = replace(threat, eps=finite_budgets(threat, x)), Best.of(x)
    for _ in range(restarts):
        climb(
            ActiveBatch(model, x, y, threat, rng, targeted, best), y, steps=steps, step=step,
            random_start=random_start, momentum=momentum, early_exit=early_exit, confidence=confidence,
            sparsity=sparsity, objective=lambda logits, y, _: LOSSES[loss](logits, y, targeted),
        )  # fmt: skip
    return best.x


def climb(
    batch: ActiveBatch,
    target: Tensor,
    *,
    objective: Objective,
    steps: int,
    step: float = 0.0,
    random_start: bool = False,
    momentum: float = 0.0,
    early_exit: bool = True,
    confidence: float = 0.0,
    sparsity: float = 0.01,
) -> None:
    """One run of PGD, with `early_exit` only on the examples without a success; updates the best of the batch.

    Args:
        batch: with a finite eps.
        target: classes that the objective gets, [batch].
        objective: what the steps maximize.

    The other arguments are those of `pgd`.
    """
    first = early_exit and not confidence

    def active() -> Tensor:
        return ~(batch.best.success & (batch.best.value > confidence) if confidence else batch.best.success)

    if early_exit:
        (target,) = batch.keep(active(), target)
        if not len(batch):
            return
    eps = column(batch.threat.budgets(batch.x), batch.x)
    x_adv = batch.threat.random_start(batch.x, batch.rng) if random_start else batch.x.clone()
    box = batch.threat.box(batch.x) if batch.threat.norm == "linf" else None
    velocity = torch.zeros_like(x_adv) if momentum else None
    for iteration in range(steps):
        grad = batch.gradient_of(x_adv, target, objective, first=first)
        if early_exit and iteration % check_interval(x_adv) == 0:
            x_adv, grad, eps, target, box, velocity = batch.keep(active(), x_adv, grad, eps, target, box, velocity)
            if not len(batch):
                return
        if velocity is not None:
            size = column(norm_of(grad, "l1"), grad).clamp_min_(1e-30)
            grad = velocity.mul_(momentum).add_(grad.div_(size)).clone()
        step_size = eps * (step / steps if step else cosine(iteration, steps, 1.0, 0.0))
        if box:
            x_adv.addcmul_(grad.sign_(), step_size).clamp_(*box)
        else:
            ball = batch.threat
            direction = ball.ascent(grad) if ball.norm == "l2" else _sparse(ball.masked(grad), sparsity)
            x_adv = ball.project(x_adv.addcmul_(direction, step_size), batch.x)
    logits = batch.model(x_adv)
    success = succeeds(batch.model, x_adv, logits, batch.y, batch.targeted)
    batch.best.update(x_adv, objective(logits, batch.y, target), success, first)
    batch.finish()


def _sparse(grad: Tensor, sparsity: float) -> Tensor:
    """The largest entries of the gradient, scaled to unit l1 norm. Their relative sizes are kept, so that repeated
    projection concentrates on the most effective entries."""
    flat = grad.flatten(1)
    chosen = flat.abs().topk(max(1, round(sparsity * flat.shape[1])), dim=1).indices
    direction = torch.zeros_like(flat).scatter(1, chosen, flat.gather(1, chosen)).view_as(grad)
    return direction / column(norm_of(direction, "l1"), grad).clamp_min(1e-30)
