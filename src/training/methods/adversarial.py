"""Adversarial training: PGD (Madry et al. 2018) and FGSM from a random start (Wong et al. 2020), in linf or l2. What
stands behind the training stage is passed: a defense without a gradient by BPDA, a randomized one by EOT."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from src.attacks.core import ascend
from src.losses import log_mean_probability
from src.registry import METHODS, Count, Fraction, Positive
from src.threat import ThreatModel, column
from src.training.methods.batch_norm import Statistics, apart
from src.training.methods.learner import Learner


def craft(
    learner: Learner,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    steps: int,
    step_size: float,
    *,
    random_start: bool = True,
    draws: int = 1,
) -> Tensor:
    """Untargeted adversarial examples for label probabilities y: PGD with steps of step_size * eps.

    Args:
        draws: evaluations of a randomized model whose probabilities are averaged per step (EOT).
    """
    eps = column(threat.budgets(x), x)
    x_start = x
    if random_start:
        direction = learner.uniform(x) if threat.norm == "linf" else threat.ascent(learner.normal(x))
        x_start = threat.project(x + direction * eps, x)
    with learner.evaluating() as model:

        def averaged(x: Tensor) -> Tensor:
            return log_mean_probability(torch.stack([model(x) for _ in range(draws)]), dim=0)

        return ascend(
            model if draws == 1 else averaged,
            x_start,
            x,
            threat,
            lambda logits: F.cross_entropy(logits, y, reduction="none"),
            steps,
            step_size * eps,
        )


def mixed(
    learner: Learner,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    steps: int,
    step_size: float,
    share: float,
    *,
    random_start: bool = True,
    draws: int = 1,
    batch_norm: Statistics = "shared",
) -> Tensor:
    """Mean cross-entropy of a batch in which the first `share` of the examples is replaced by adversarial ones."""
    count = round(share * len(x))
    if not count:
        return learner.loss(learner(x), y)
    if batch_norm != "shared":  # a single example has no statistics where one frame is left
        count = max(count, 2)
        count = len(x) if count >= len(x) - 1 else count
    # Crafting runs in evaluation mode: it uses statistics, and changes none.
    with apart(learner.modules, learner.statistics) if batch_norm == "separate" else nullcontext():
        x_adv = craft(
            learner, x[:count], y[:count], threat, steps, step_size, random_start=random_start, draws=draws
        )  # fmt: skip
    if batch_norm == "shared":
        return learner.loss(learner(torch.cat([x_adv, x[count:]])), y)
    if count < len(x):
        clean = learner(x[count:], count)
    else:  # the statistics need clean examples even where the loss has none
        with torch.no_grad():
            clean = learner(x)[:0]
    with apart(learner.modules, learner.statistics if batch_norm == "separate" else {}):
        return learner.loss(torch.cat([learner(x_adv), clean]), y)


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
    random_start: bool = True,
    draws: Count = 1,
    batch_norm: Statistics = "shared",
) -> Tensor:
    """Adversarial training with one step from a random start. It is fast, but the accuracy under PGD can collapse
    within an epoch (catastrophic overfitting); see the validation accuracy under PGD.

    Args:
        eps: budget at the training stage, in its units.
        norm: of the perturbation.
        step_size: of the single step, in units of eps.
        share: of the batch that is adversarial.
        random_start: start from a random point of the ball.
        draws: evaluations per gradient (EOT) where a defense in front of the model is randomized.
        batch_norm: shared: adversarial and clean examples are normalized together. Otherwise apart, and only clean ones
            change the statistics that the model is used with: adversarial ones leave none (clean), or have a second
            set, with which they are crafted too (separate).
    """
    return mixed(
        learner, x, y, ThreatModel(norm, eps, learner.bounds), 1, step_size, share,
        random_start=random_start, draws=draws, batch_norm=batch_norm,
    )  # fmt: skip


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
    random_start: bool = True,
    draws: Count = 1,
    batch_norm: Statistics = "shared",
) -> Tensor:
    """Adversarial training with several projected steps from a random start.

    Args:
        eps: budget at the training stage, in its units.
        norm: of the perturbation.
        steps: gradient steps.
        step_size: of each step, in units of eps.
        share: of the batch that is adversarial.
        random_start: start from a random point of the ball.
        draws: evaluations per gradient (EOT) where a defense in front of the model is randomized.
        batch_norm: shared: adversarial and clean examples are normalized together. Otherwise apart, and only clean ones
            change the statistics that the model is used with: adversarial ones leave none (clean), or have a second
            set, with which they are crafted too (separate).
    """
    return mixed(
        learner, x, y, ThreatModel(norm, eps, learner.bounds), steps, step_size, share,
        random_start=random_start, draws=draws, batch_norm=batch_norm,
    )  # fmt: skip
