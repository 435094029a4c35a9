"""PGD with the same signal-to-noise ratio for every clip instead of the same eps: a loud clip hides a larger
perturbation than a quiet one."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from src.attacks.gradients.pgd import pgd
from src.attacks.model import Model
from src.attacks.registration import attack
from src.budget import Budget
from src.losses import LossName
from src.random_streams import RandomStreams
from src.registry import Count
from src.threat import ThreatModel


@attack("snr_pgd", kind="budget", norms=("l2", "linf"), access="gradients", limited=True)
def snr_pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    snr_db: float = 30.0,
    steps: Count = 40,
    loss: LossName = "cross_entropy",
    early_exit: bool = True,
) -> Tensor:
    """PGD with an eps derived from the power of each clip; a smaller eps of the threat model still applies.

    Args:
        snr_db: lowest signal-to-noise ratio, dB.
        steps: gradient steps.
        loss: objective that the steps maximize.
        early_exit: an example stops at its first success; otherwise its loss is maximized to the end.
    """
    eps = Budget(snr_db, is_snr=True).eps(x, threat.norm, threat.mask).minimum(threat.budgets(x))
    return pgd(
        model, x, y, replace(threat, eps=eps), rng=rng, targeted=targeted, steps=steps, loss=loss,
        early_exit=early_exit,
    )  # fmt: skip
