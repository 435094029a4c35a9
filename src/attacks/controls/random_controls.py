"""Random perturbations with the full budget as their norm: the difference to an attack is due to its direction."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attacks.core import finite_budgets
from src.attacks.model import Model
from src.attacks.registration import attack
from src.random_streams import RandomStreams
from src.threat import ThreatModel, column, norm_of

NORMS = ("linf", "l2", "l1")


def scaled(noise: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """x plus the noise, scaled to the full budget, within bounds and mask. [batch, ...]."""
    noise = threat.masked(noise)
    size = column(norm_of(noise, threat.norm), x).clamp_min(torch.finfo(x.dtype).tiny)
    return threat.project(x + noise / size * column(finite_budgets(threat, x), x), x)


@attack("random_signs", kind="control", norms=NORMS, access="none")
def random_signs(
    model: Model, x: Tensor, y: Tensor, threat: ThreatModel, *, rng: RandomStreams, targeted: bool
) -> Tensor:
    """Control: every entry changes by the same amount, with a random sign."""
    return scaled(rng.signs(x), x, threat)


@attack("random_uniform", kind="control", norms=NORMS, access="none")
def random_uniform(
    model: Model, x: Tensor, y: Tensor, threat: ThreatModel, *, rng: RandomStreams, targeted: bool
) -> Tensor:
    """Control: uniform noise with the full budget as its norm."""
    return scaled(2 * rng.uniform(x) - 1, x, threat)


@attack("random_gaussian", kind="control", norms=NORMS, access="none")
def random_gaussian(
    model: Model, x: Tensor, y: Tensor, threat: ThreatModel, *, rng: RandomStreams, targeted: bool
) -> Tensor:
    """Control: Gaussian noise with the full budget as its norm."""
    return scaled(rng.normal(x), x, threat)
