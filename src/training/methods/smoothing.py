"""Training for randomized smoothing: Gaussian augmentation (Cohen et al. 2019), consistency regularization (Jeong and
Shin 2020), SmoothAdv (Salman et al. 2019) and MACER (Zhai et al. 2020), at the representation that will be smoothed."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attacks.core import ascend
from src.losses import log_mean_probability
from src.registry import METHODS, Count, NonNegative, Positive
from src.threat import ThreatModel
from src.training.methods.learner import Learner


def noisy_copies(learner: Learner, x: Tensor, sigma: float, draws: int) -> Tensor:
    """`draws` noisy copies of each example, consecutive, [batch * draws, ...]."""
    x = x.repeat_interleave(draws, 0)
    return x + sigma * learner.normal(x)


@METHODS.register("gaussian")
def gaussian(learner: Learner, x: Tensor, y: Tensor, *, sigma: Positive = 0.02) -> Tensor:
    """Cross-entropy under Gaussian noise.

    Args:
        sigma: standard deviation of the noise, in units of the training stage; certify with the same sigma.
    """
    return learner.loss(learner(noisy_copies(learner, x, sigma, 1)), y)


@METHODS.register("consistency")
def consistency(
    learner: Learner,
    x: Tensor,
    y: Tensor,
    *,
    sigma: Positive = 0.02,
    draws: Count = 2,
    weight: NonNegative = 10.0,
    entropy: NonNegative = 0.5,
) -> Tensor:
    """Gaussian augmentation with a penalty on predictions that differ between noise draws.

    Args:
        sigma: standard deviation of the noise, in units of the training stage.
        draws: noise draws per clip.
        weight: of the mean KL divergence of the draws from their mean prediction.
        entropy: weight of the entropy of the mean prediction.
    """
    logits = learner(noisy_copies(learner, x, sigma, draws))
    logs = logits.log_softmax(1).view(len(x), draws, -1)
    mean = logs.exp().mean(1)
    divergence = (mean[:, None] * (mean[:, None].clamp_min(1e-12).log() - logs)).sum(2).mean()
    uncertainty = -(mean * mean.clamp_min(1e-12).log()).sum(1).mean()
    return learner.loss(logits, y.repeat_interleave(draws, 0)) + weight * divergence + entropy * uncertainty


@METHODS.register("smoothadv")
def smoothadv(
    learner: Learner,
    x: Tensor,
    y: Tensor,
    *,
    sigma: Positive = 0.02,
    eps: Positive = 0.05,
    draws: Count = 2,
    steps: Count = 2,
) -> Tensor:
    """Adversarial training of the smoothed classifier: l2 PGD on the log of the mean probability over noise draws, with
    the same draws for the attack and for the loss.

    Args:
        sigma: standard deviation of the noise, in units of the training stage.
        eps: l2 budget of the attack, in the same units.
        draws: noise draws per clip.
        steps: gradient steps, each of length 2 eps / steps.
    """
    threat = ThreatModel("l2", eps, learner.bounds)
    noise = sigma * learner.normal(x.repeat_interleave(draws, 0))

    def cross_entropy(logits: Tensor) -> Tensor:
        return -(log_mean_probability(logits.view(len(x), draws, -1), dim=1) * y).sum(1)

    with learner.evaluating() as model:
        x_adv = ascend(
            lambda x: model(x.repeat_interleave(draws, 0) + noise), x, x, threat, cross_entropy, steps, 2 * eps / steps
        )
    return learner.loss(learner(x_adv.repeat_interleave(draws, 0) + noise), y.repeat_interleave(draws, 0))


@METHODS.register("macer")
def macer(
    learner: Learner,
    x: Tensor,
    y: Tensor,
    *,
    sigma: Positive = 0.02,
    draws: Count = 8,
    weight: NonNegative = 12.0,
    margin: Positive = 8.0,
    temperature: Positive = 16.0,
) -> Tensor:
    """Maximize the certified radius: a hinge loss on its soft estimate, for clips that the smoothed model classifies
    correctly.

    Args:
        sigma: standard deviation of the noise, in units of the training stage.
        draws: noise draws per clip.
        weight: of the radius.
        margin: of the hinge loss; a radius above margin * sigma / 2 is not increased further.
        temperature: inverse temperature of the soft votes.
    """
    logits = learner(noisy_copies(learner, x, sigma, draws)).view(len(x), draws, -1)
    mean = logits.softmax(2).mean(1).clamp_min(1e-12)
    error = -(y * mean.log()).sum(1)
    votes = (logits * temperature).softmax(2).mean(1).clamp(1e-6, 1 - 1e-6)
    label = y.argmax(1)
    of_label = votes.gather(1, label[:, None]).squeeze(1)
    other = votes.scatter(1, label[:, None], 0.0).amax(1).clamp_min(1e-6)
    gap = torch.special.ndtri(of_label) - torch.special.ndtri(other)
    selected = (votes.argmax(1) == label) & (gap <= margin)
    hinge = torch.where(selected, margin - gap, torch.zeros_like(gap))
    return (error + weight * sigma / 2 * hinge).mean()
