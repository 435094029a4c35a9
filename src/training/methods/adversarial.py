"""Adversarial training: PGD (Madry et al. 2018) and FGSM from a random start (Wong et al. 2020), in linf or l2."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from src.attacks.core import ascend
from src.registry import METHODS, Count, Fraction, Positive
from src.threat import ThreatModel, column
from src.training.methods.learner import Learner


def craft(learner: Learner, x: Tensor, y: Tensor, threat: ThreatModel, steps: int, step_size: float) -> Tensor:
    """Untargeted adversarial examples for label probabilities y: PGD from a random start, steps of step_size * eps."""
    eps = column(threat.budgets(x), x)
    direction = learner.uniform(x) if threat.norm == "linf" else threat.ascent(learner.normal(x))
    x_start = threat.project(x + direction * eps, x)
    with learner.evaluating() as model:
        return ascend(
            model,
            x_start,
            x,
            threat,
            lambda logits: F.cross_entropy(logits, y, reduction="none"),
            steps,
            step_size * eps,
        )


def mixed(
    learner: Learner, x: Tensor, y: Tensor, threat: ThreatModel, steps: int, step_size: float, share: float
) -> Tensor:
    """Mean cross-entropy of a batch in which the first `share` of the examples is replaced by adversarial ones."""
    count = round(share * len(x))
    if count:
        x_adv = craft(learner, x[:count], y[:count], threat, steps, step_size)
        x = torch.cat([x_adv, x[count:]])
    return learner.loss(learner(x), y)


@METHODS.register("fgsm")
def fgsm(
    learner: Learner,
    x: Tensor,
    y: Tensor,
    *,
    eps: Positive = 0.0005,
    norm: Literal["linf", "l2"] = "linf",
    step_size: Positive = 1.25,
    share: Fraction = 1.0,
) -> Tensor:
    """Adversarial training with one step from a random start. It is fast, but the accuracy under PGD can collapse
    within an epoch (catastrophic overfitting); see the validation accuracy under PGD.

    Args:
        eps: budget at the training stage, in its units.
        norm: of the perturbation.
        step_size: of the single step, in units of eps.
        share: of the batch that is adversarial.
    """
    return mixed(learner, x, y, ThreatModel(norm, eps, learner.bounds), 1, step_size, share)


@METHODS.register("pgd")
def pgd(
    learner: Learner,
    x: Tensor,
    y: Tensor,
    *,
    eps: Positive = 0.0005,
    norm: Literal["linf", "l2"] = "linf",
    steps: Count = 7,
    step_size: Positive = 0.25,
    share: Fraction = 1.0,
) -> Tensor:
    """Adversarial training with several projected steps from a random start.

    Args:
        eps: budget at the training stage, in its units.
        norm: of the perturbation.
        steps: gradient steps.
        step_size: of each step, in units of eps.
        share: of the batch that is adversarial.
    """
    return mixed(learner, x, y, ThreatModel(norm, eps, learner.bounds), steps, step_size, share)
