"""Universal perturbation (Moosavi-Dezfooli et al. 2017; found by projected gradients as Shafahi et al. 2020; audio:
Vadillo and Santana 2022, Neekhara et al. 2019): one delta for all clips of the batch.

By its nature the answer for one clip depends on the others."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from src.attacks.core import Model, attack, finite_budgets, gradient
from src.losses import LOSSES, LossName, fooled
from src.random_streams import RandomStreams
from src.registry import Count, Fraction, Positive
from src.threat import ThreatModel, column, norm_of


@attack("universal", kind="budget", norms=("linf", "l2"), access="gradients", fitted=True)
def universal(
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
    shift_invariant: bool = False,
    loss: LossName = "cross_entropy",
) -> Tensor:
    """One perturbation that fools as many clips of the batch as it can.

    Its budget is the smallest of the clips'; each clip adds its own bounds and mask. Clips that are fooled do not pull
    while others are not.

    Args:
        steps: gradient steps over all clips.
        step: step size in units of eps / steps.
        momentum: weight of the previous direction.
        shift_invariant: every step adds the perturbation at a random offset per clip, so that it need not be aligned.
        loss: objective that the steps maximize.
    """
    eps = finite_budgets(threat, x).amin()
    common = ThreatModel(threat.norm, eps[None])
    shared, each = torch.zeros_like(x[:1]), replace(threat, eps=eps)
    velocity, best, best_rank = torch.zeros_like(shared), shared, x.new_tensor(-torch.inf)
    for _ in range(steps + 1):
        offset = (rng.uniform(x.flatten(1)[:, :1]) * x.shape[-1]).long() if shift_invariant else None
        x_adv = each.project(x + _placed(shared, offset, len(x)), x)
        grad, value, logits = gradient(model, x_adv, lambda logits: LOSSES[loss](logits, y, targeted))
        success = fooled(logits, y, targeted)
        rank = success.float().mean() + torch.sigmoid(value.mean()) / (2 * len(x))  # the rate, then the loss
        better = rank > best_rank
        best, best_rank = torch.where(better, shared, best), torch.where(better, rank, best_rank)
        # Unit norm: no clip's gradient outweighs the others'.
        grad = threat.masked(grad)
        grad = grad / column(norm_of(grad, "l2"), grad).clamp_min(1e-30)
        pull = (~success).to(grad.dtype) if not bool(success.all()) else torch.ones_like(value)
        mean = (_placed(grad, None if offset is None else -offset, len(x)) * column(pull, grad)).mean(0, keepdim=True)
        velocity = momentum * velocity + (1 - momentum) * mean
        shared = common.project(shared + common.ascent(velocity) * (eps * step / steps), torch.zeros_like(shared))
    return each.project(x + best, x)


def _placed(delta: Tensor, offset: Tensor | None, count: int) -> Tensor:
    """delta [1 or batch, ..., time] rolled along time by `offset` [batch, 1] entries."""
    delta = delta.expand(count, *delta.shape[1:])
    if offset is None:
        return delta
    where = (torch.arange(delta.shape[-1], device=delta.device) - offset) % delta.shape[-1]
    return delta.gather(-1, where.reshape(count, *[1] * (delta.dim() - 2), -1).expand_as(delta))
