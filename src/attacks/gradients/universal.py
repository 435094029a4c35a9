"""Universal perturbation (Moosavi-Dezfooli et al. 2017; by projected stochastic gradients as Shafahi et al. 2020; for
audio Vadillo and Santana 2022, Neekhara et al. 2019): one delta for all clips, fitted to training clips and then added
to other clips."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from src.attacks.core import finite_budgets, gradient
from src.attacks.model import Model, narrow
from src.attacks.registration import attack
from src.losses import LOSSES, LossName, fooled
from src.random_streams import RandomStreams
from src.registry import Count, Fraction, Positive
from src.threat import ThreatModel, column, norm_of


def fit(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    steps: Count = 100,
    step: Positive = 5.0,
    momentum: Fraction = 0.9,
    batch_size: Count = 64,
    shift_invariant: bool = False,
    loss: LossName = "cross_entropy",
) -> dict[str, Tensor]:
    """The perturbation that fools the largest share of the clips x [clips, ...], as `delta` [1, ...] in units of eps.

    Every step uses the next `batch_size` clips in an order that is redrawn at every pass; after every pass the iterate
    is evaluated on all clips, and the best one is returned. It is learned in units of eps, so that every clip gets a
    budget of its own (by an SNR, say); bounds and mask of each clip apply where it is evaluated. Misclassified clips
    get no weight while others of their batch are classified correctly.

    Args:
        steps: gradient steps.
        step: step size in units of eps / steps.
        momentum: weight of the previous direction.
        batch_size: clips per gradient step.
        shift_invariant: add the perturbation at a random offset per clip and step, so that it works at any alignment.
        loss: objective that the steps maximize.
    """
    threat = replace(threat, eps=finite_budgets(threat, x))
    ball = ThreatModel(threat.norm, 1.0)

    def objective(logits: Tensor, index: Tensor) -> Tensor:
        return LOSSES[loss](logits, y[index], targeted)

    def perturbed(delta: Tensor, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """(the clips at `index` with delta added, [batch, ...]; its offsets)."""
        clips = x[index]
        offset = (rng.select(index).uniform(clips.flatten(1)[:, :1]) * x.shape[-1]).long() if shift_invariant else None
        budget = threat.select(index)
        change = _placed(delta, offset, len(index)) * column(budget.budgets(clips), clips)
        return budget.project(clips + change, clips), offset

    def rank(delta: Tensor) -> float:
        """Share of all clips that delta fools; the mean loss, scaled to less than one clip, breaks ties."""
        successes, total = 0, torch.zeros((), dtype=torch.float64)
        for index in torch.split(torch.arange(len(x), device=x.device), batch_size):
            logits = narrow(model, index)(perturbed(delta, index)[0])
            successes += int(fooled(logits, y[index], targeted).sum())
            total += objective(logits, index).sum().cpu()
        return (successes + float((total / len(x)).sigmoid()) / 2) / len(x)

    delta = torch.zeros_like(x[:1])
    velocity, best_delta, best_rank = torch.zeros_like(delta), delta, -torch.inf
    batches: list[Tensor] = []
    for iteration in range(steps):
        if not batches:
            order = rng.uniform(x.flatten(1)[:, :1]).flatten().argsort()
            batches = list(torch.split(order, batch_size))
        index = batches.pop(0)
        x_adv, offset = perturbed(delta, index)
        grad, _, logits = gradient(narrow(model, index), x_adv, functools.partial(objective, index=index))
        success = fooled(logits, y[index], targeted)
        # Unit norm: the gradient of no clip outweighs the others.
        grad = threat.select(index).masked(grad)
        grad = grad / column(norm_of(grad, "l2"), grad).clamp_min(1e-30)
        weight = torch.ones_like(success) if bool(success.all()) else ~success
        grad = _placed(grad, None if offset is None else -offset, len(index)) * column(weight.to(grad.dtype), grad)
        velocity = momentum * velocity + (1 - momentum) * grad.mean(0, keepdim=True)
        delta = ball.project(delta + ball.ascent(velocity) * (step / steps), torch.zeros_like(delta))
        if (not batches or iteration == steps - 1) and (value := rank(delta)) > best_rank:
            best_delta, best_rank = delta, value
    return {"delta": best_delta}


@attack("universal", kind="budget", norms=("linf", "l2"), access="gradients", fit=fit)
def universal(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    fitted: Mapping[str, Tensor],
) -> Tensor:
    """One perturbation for all clips, fitted to other clips; projected onto the ball, bounds and mask of each clip.

    Raises:
        ValueError: it was fitted to inputs of another shape.
    """
    delta = fitted["delta"].to(x)
    if delta.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"universal was fitted to inputs of shape {tuple(delta.shape[1:])}, these have {tuple(x.shape[1:])}"
        )
    return threat.project(x + delta * column(finite_budgets(threat, x), x), x)


def _placed(delta: Tensor, offset: Tensor | None, count: int) -> Tensor:
    """delta [1 or batch, ..., time] rolled along time by `offset` [batch, 1] entries."""
    delta = delta.expand(count, *delta.shape[1:])
    if offset is None:
        return delta
    positions = (torch.arange(delta.shape[-1], device=delta.device) - offset) % delta.shape[-1]
    return delta.gather(-1, positions.reshape(count, *[1] * (delta.dim() - 2), -1).expand_as(delta))
