"""Psychoacoustic attack (Qin et al. 2019): perturbations below the masking threshold of the clip, in two stages. The
first fools the model under an linf budget that shrinks at every success; the second weighs the adversarial loss against
a hinge loss on the perturbation's level above the threshold.

Both gradients are normalized before they are weighed, so that alpha has the same meaning for every model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from src.attacks.active_batch import ActiveBatch
from src.attacks.core import Best, finite_budgets, gradient
from src.attacks.model import Model, succeeds
from src.attacks.registration import attack
from src.losses import LOSSES, LossName
from src.perception import masking_threshold, power_level
from src.random_streams import RandomStreams
from src.registry import Count, Natural, Positive
from src.threat import ThreatModel, column, norm_of


@dataclass(frozen=True, eq=False)
class Masking:
    """The masking threshold of clips, and by how much perturbations exceed it.

    Attributes:
        threshold: dB, [batch, frames, bins].
        shift: added to the level of a waveform, gives it on the scale of the threshold, dB, [batch].
        n_fft: DFT length of the threshold, samples.
    """

    threshold: Tensor
    shift: Tensor
    n_fft: int

    @classmethod
    def of(cls, x: Tensor, sample_rate: int, n_fft: int) -> Self:
        """The threshold of the clips x [batch, time]."""
        return cls(*masking_threshold(_padded(x, n_fft), sample_rate, n_fft), n_fft)

    def excess(self, delta: Tensor) -> Tensor:
        """Level above the threshold per bin, dB, 0 where below: [batch, time] -> [batch, frames, bins]."""
        level = power_level(_padded(delta, self.n_fft), self.n_fft) + self.shift[:, None, None]
        return (level - self.threshold).clamp_min(0)

    def loss(self, delta: Tensor) -> Tensor:
        """Mean level above the threshold, dB, [batch]."""
        return self.excess(delta).mean((1, 2))

    def share(self, delta: Tensor) -> Tensor:
        """Share of the bins that are above the threshold, [batch]."""
        return (self.excess(delta) > 0).float().mean((1, 2))

    def select(self, index: Tensor) -> Self:
        return type(self)(self.threshold[index], self.shift[index], self.n_fft)


def _padded(x: Tensor, n_fft: int) -> Tensor:
    """x with silence at both ends, so that its first and last samples are covered by as many frames as the others."""
    return F.pad(x, (n_fft, n_fft + -x.shape[1] % n_fft))


@attack("psychoacoustic", kind="budget", norms=("linf",), access="gradients", stages="waveform", needs_sample_rate=True)
def psychoacoustic(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    sample_rate: int,
    n_fft: Count = 2048,
    steps: Count = 100,
    masking_steps: Natural = 100,
    step: Positive = 0.1,
    masking_step: Positive = 0.02,
    shrink: Positive = 0.8,
    alpha: Positive = 0.05,
    loss: LossName = "cross_entropy",
) -> Tensor:
    """Perturbation below the masking threshold: fool the model under a shrinking linf budget, then reduce audibility.

    Args:
        n_fft: DFT length of the masking threshold, samples.
        steps: gradient steps of the first stage.
        masking_steps: gradient steps of the second stage; 0 leaves it out.
        step: step size of the first stage, in units of the current eps.
        masking_step: l2 norm of a step of the second stage, in units of the norm of the first stage's perturbation.
        shrink: factor of eps at a success of the first stage.
        alpha: initial weight of the masking loss, multiplied by 1.2 at a success and by 0.8 at a failure.
        loss: objective that the steps maximize.
    """
    best = _shrinking(model, x, y, threat, targeted=targeted, steps=steps, step=step, shrink=shrink, loss=loss)
    batch = ActiveBatch(model, x, y, threat, rng, targeted, best)
    batch.keep(best.success)  # the second stage starts from a success
    if not len(batch) or not masking_steps:
        return best.x
    model, x, y, threat, active_best = batch.model, batch.x, batch.y, batch.threat, batch.best
    masking = Masking.of(x, sample_rate, n_fft)
    x_adv, weight = active_best.x, torch.full_like(active_best.value, alpha)
    active_best.value = -masking.loss(x_adv - x)
    step_size = norm_of(x_adv - x, "l2") * masking_step
    for iteration in range(masking_steps):
        grad, _, logits = gradient(model, x_adv, lambda logits: LOSSES[loss](logits, y, targeted))
        masking_grad, mean_excess = _masking_gradient(masking, x_adv - x)
        success = succeeds(model, x_adv, logits, y, targeted)
        active_best.update(x_adv, -mean_excess, success, first=False)
        weight = weight * torch.where(success, 1.2, 0.8)
        direction = _unit(threat.masked(grad)) - column(weight, x) * _unit(threat.masked(masking_grad))
        decay = 1 - iteration / masking_steps
        x_adv = threat.project(x_adv + column(decay * step_size, x) * _unit(direction), x)
    active_best.update(x_adv, -masking.loss(x_adv - x), succeeds(model, x_adv, model(x_adv), y, targeted), first=False)
    return batch.finish()


def _shrinking(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    targeted: bool,
    steps: int,
    step: float,
    shrink: float,
    loss: LossName,
) -> Best:
    """First stage: signed gradient steps; a success shrinks the eps of its example. Keeps the success of least norm."""
    eps = finite_budgets(threat, x)
    best, x_adv = Best.of(x), x
    for _ in range(steps):
        grad, value, logits = gradient(model, x_adv, lambda logits: LOSSES[loss](logits, y, targeted))
        success = succeeds(model, x_adv, logits, y, targeted)
        best.update(x_adv, torch.where(success, -norm_of(x_adv - x, "linf"), value), success, first=False)
        eps = torch.where(success, (shrink * norm_of(x_adv - x, "linf")).minimum(eps), eps)
        x_adv = replace(threat, eps=eps).project(x_adv + column(step * eps, x) * threat.ascent(grad), x)
    logits = model(x_adv)
    success = succeeds(model, x_adv, logits, y, targeted)
    value = LOSSES[loss](logits, y, targeted)
    best.update(x_adv, torch.where(success, -norm_of(x_adv - x, "linf"), value), success, first=False)
    return best


def _masking_gradient(masking: Masking, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient [batch, time] and value [batch] of the masking loss."""
    leaf = delta.detach().requires_grad_(True)
    with torch.enable_grad():
        value = masking.loss(leaf)
        (grad,) = torch.autograd.grad(value.sum(), leaf)
    return grad, value.detach()


def _unit(direction: Tensor) -> Tensor:
    return direction / column(norm_of(direction, "l2"), direction).clamp_min(1e-30)
