"""Perturbations below the masking threshold of their clip (Qin et al. 2019), in two stages: first fool the model under
an linf budget that shrinks with every success, then trade the adversarial loss against the hinge of the perturbation's
level over the threshold.

The two gradients are brought to unit norm before they are weighed, so that alpha means the same for every model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from src.attacks.active_batch import ActiveBatch
from src.attacks.core import Best, Model, attack, finite_budgets, gradient
from src.losses import LOSSES, LossName, fooled
from src.perception import masking_threshold, power_level
from src.random_streams import RandomStreams
from src.registry import Count, Natural, Positive
from src.threat import ThreatModel, column, norm_of


@dataclass(frozen=True, eq=False)
class Masking:
    """The masking threshold of clips, and how far perturbations exceed it.

    Attributes:
        threshold: dB, [batch, frames, bins].
        shift: from the level of a waveform to the scale of the threshold, dB, [batch].
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
        """dB over the threshold per bin, 0 where below: [batch, time] -> [batch, frames, bins]."""
        level = power_level(_padded(delta, self.n_fft), self.n_fft) + self.shift[:, None, None]
        return (level - self.threshold).clamp_min(0)

    def loss(self, delta: Tensor) -> Tensor:
        """Mean dB over the threshold, [batch]."""
        return self.excess(delta).mean((1, 2))

    def share(self, delta: Tensor) -> Tensor:
        """Share of the bins that are over the threshold, [batch]."""
        return (self.excess(delta) > 0).float().mean((1, 2))

    def select(self, index: Tensor) -> Self:
        return type(self)(self.threshold[index], self.shift[index], self.n_fft)


def _padded(x: Tensor, n_fft: int) -> Tensor:
    """Silence around the clip, so that its ends are weighed like its middle."""
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
    """Fool under a shrinking linf budget, then sink the perturbation below the clip's masking threshold.

    Args:
        n_fft: DFT length of the masking threshold, samples.
        steps: of the first stage.
        masking_steps: of the second stage; 0 leaves it out.
        step: first stage, in units of the current eps.
        masking_step: second stage: root mean square change of a sample per step, in units of the first stage's
            perturbation's.
        shrink: what eps is multiplied by at a success of the first stage.
        alpha: first weight of the masking loss; it grows by 1.2 at a success and shrinks by 0.8 at a failure.
        loss: what the steps climb.
    """
    best = _shrinking(model, x, y, threat, targeted=targeted, steps=steps, step=step, shrink=shrink, loss=loss)
    batch = ActiveBatch(model, x, y, threat, rng, targeted, best)
    batch.keep(best.success)  # only what fooled the model can be made quieter
    if not len(batch) or not masking_steps:
        return best.x
    model, x, y, threat, part = batch.model, batch.x, batch.y, batch.threat, batch.best
    masking = Masking.of(x, sample_rate, n_fft)
    x_adv, weight = part.x, torch.full_like(part.value, alpha)
    part.value = -masking.loss(x_adv - x)
    pace = norm_of(x_adv - x, "l2") * masking_step
    for iteration in range(masking_steps):
        grad, _, logits = gradient(model, x_adv, lambda logits: LOSSES[loss](logits, y, targeted))
        masking_grad, mean_excess = _masking_gradient(masking, x_adv - x)
        success = fooled(logits, y, targeted)
        part.update(x_adv, -mean_excess, success, first=False)
        weight = weight * torch.where(success, 1.2, 0.8)
        direction = _unit(threat.masked(grad)) - column(weight, x) * _unit(threat.masked(masking_grad))
        decay = 1 - iteration / masking_steps
        x_adv = threat.project(x_adv + column(decay * pace, x) * _unit(direction), x)
    part.update(x_adv, -masking.loss(x_adv - x), fooled(model(x_adv), y, targeted), first=False)
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
    """Signed gradient steps; every success shrinks its example's eps. The success under the smallest eps is kept."""
    eps = finite_budgets(threat, x)
    best, x_adv = Best.of(x), x
    for _ in range(steps):
        grad, value, logits = gradient(model, x_adv, lambda logits: LOSSES[loss](logits, y, targeted))
        success = fooled(logits, y, targeted)
        best.update(x_adv, torch.where(success, -norm_of(x_adv - x, "linf"), value), success, first=False)
        eps = torch.where(success, (shrink * norm_of(x_adv - x, "linf")).minimum(eps), eps)
        x_adv = replace(threat, eps=eps).project(x_adv + column(step * eps, x) * threat.ascent(grad), x)
    logits = model(x_adv)
    success = fooled(logits, y, targeted)
    value = LOSSES[loss](logits, y, targeted)
    best.update(x_adv, torch.where(success, -norm_of(x_adv - x, "linf"), value), success, first=False)
    return best


def _masking_gradient(masking: Masking, delta: Tensor) -> tuple[Tensor, Tensor]:
    """(gradient, value) of the mean excess."""
    leaf = delta.detach().requires_grad_(True)
    with torch.enable_grad():
        value = masking.loss(leaf)
        (grad,) = torch.autograd.grad(value.sum(), leaf)
    return grad, value.detach()


def _unit(direction: Tensor) -> Tensor:
    return direction / column(norm_of(direction, "l2"), direction).clamp_min(1e-30)
