"""Does the configured attack find an adversarial example that is known to be there? (Zimmermann et al. 2022, the
binarization test.) Around every clip a two-class problem is made from the model's own logits: random points of the ball
are class 0, one planted point on its border is class 1. The attack starts from the clip and must reach class 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from src.attacks.model import Model, narrow
from src.losses import fooled
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel, column, norm_of


@dataclass(frozen=True)
class SelfTest:
    """Outcome over the clips where a point could be planted.

    Attributes:
        planted: number of clips with a planted example.
        found: share of them where the attack found class 1.
        by_chance: share where random signs of the whole budget found it; the test means little where this is high.
    """

    planted: int
    found: float
    by_chance: float

    def __str__(self) -> str:
        judged = (
            "the attack finds what is there" if self.found >= 0.95 else "THE ATTACK MISSES what is known to be there"
        )
        easy = "; that says little, for random signs find most of them too" if self.by_chance > 0.5 else ""
        return (
            f"self-test: {judged}: {self.found:.1%} of {self.planted} planted adversarial examples found "
            f"(by chance {self.by_chance:.1%}{easy})"
        )


class Planted:
    """The two-class model: logits (0, readout . (model(x) - center) - threshold), each example with its own readout.

    Args:
        model: the attacked model.
        readout: [batch, classes].
        center: [batch, classes].
        threshold: [batch].
    """

    def __init__(self, model: Model, readout: Tensor, center: Tensor, threshold: Tensor):
        self.model, self.readout, self.center, self.threshold = model, readout, center, threshold

    def __call__(self, x: Tensor) -> Tensor:
        score = ((self.model(x) - self.center) * self.readout).sum(1) - self.threshold
        return torch.stack([torch.zeros_like(score), score], 1)

    def select(self, index: Tensor) -> Planted:
        return Planted(narrow(self.model, index), self.readout[index], self.center[index], self.threshold[index])


def plant(model: Model, x: Tensor, threat: ThreatModel, rng: RandomStreams, inner: int = 64) -> tuple[Planted, Tensor]:
    """Build the two-class model. Returns it and [batch] bool: where the planted point could be told from the others.

    Args:
        inner: random points of the ball that make up class 0 together with the clip itself.
    """
    eps = threat.budgets(x)
    within = replace(threat, eps=eps * 0.9)
    with torch.no_grad():
        points = torch.stack([model(x), *(model(within.random_start(x, rng)) for _ in range(inner))])
        border = rng.signs(x) if threat.norm == "linf" else rng.normal(x)
        border = threat.masked(border)
        border = border / column(norm_of(border, threat.norm), x).clamp_min(1e-30) * column(eps, x)
        goal = model(threat.project(x + border, x))
        center = points.mean(0)
        spread = (points - center).permute(1, 2, 0)
        covariance = spread @ spread.transpose(1, 2) / len(points)
        ridge = covariance.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * 1e-6 + 1e-12
        covariance = covariance + ridge * torch.eye(covariance.shape[1], device=x.device)
        readout = torch.linalg.solve(covariance, goal - center)
        readout = readout / readout.norm(dim=1, keepdim=True)
        highest = ((points - center) * readout).sum(2).amax(0)
        wanted = ((goal - center) * readout).sum(1)
    return Planted(model, readout, center, (highest + wanted) / 2), wanted > highest


def self_test(
    attack: Callable[..., Tensor],
    model: Model,
    x: Tensor,
    threat: ThreatModel,
    *,
    streams: Callable[[str], RandomStreams],
) -> SelfTest:
    """Plant and attack.

    Args:
        attack: `attack(model, x, y, threat, rng=, targeted=)`, its keys bound.
        model: what it attacks.
        x: inputs at the attacked representation, [batch, ...].
        threat: a finite budget.
        streams: purpose -> the examples' random streams.

    Raises:
        ValueError: an infinite budget, or no point could be planted (constant logits, say).
    """
    if not bool(threat.budgets(x).isfinite().all()):
        raise ValueError("the self-test needs a finite eps")
    planted, is_planted = plant(model, x, threat, streams("plant"))
    if not bool(is_planted.any()):
        raise ValueError("the self-test could not plant an example: the model's outputs do not differ inside the ball")
    keep = is_planted.nonzero().flatten()
    model, x, threat, planted = narrow(model, keep), x[keep], threat.select(keep), planted.select(keep)
    zero = torch.zeros(len(x), dtype=torch.long, device=x.device)

    def share(function: Callable[..., Tensor]) -> float:
        x_adv = function(planted, x, zero, threat, rng=streams("self-test").select(keep), targeted=False)
        with torch.no_grad():
            return float((fooled(planted(x_adv), zero) & threat.contains(x_adv, x)).float().mean())

    return SelfTest(len(x), share(attack), share(ATTACKS["random_signs"]))
