"""Fast gradient sign method (Goodfellow et al. 2015) and, with a random start, its fast variant (Wong et al. 2020);
in l2 and l1 a single step along the steepest direction of that norm."""

from __future__ import annotations

from torch import Tensor

from src.attacks.core import finite_budgets, gradient
from src.attacks.model import Model
from src.attacks.registration import attack
from src.losses import LOSSES, LossName
from src.random_streams import RandomStreams
from src.threat import ThreatModel, column


@attack("fgsm", kind="budget", norms=("linf", "l2", "l1"), access="gradients")
def fgsm(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    loss: LossName = "cross_entropy",
    random_start: bool = False,
) -> Tensor:
    """One step of size eps along the gradient.

    Args:
        loss: objective that the step maximizes.
        random_start: start from a random point of the ball.
    """
    start = threat.random_start(x, rng) if random_start else x
    grad, _, _ = gradient(model, start, lambda logits: LOSSES[loss](logits, y, targeted))
    return threat.project(start + column(finite_budgets(threat, x), x) * threat.ascent(grad), x)
