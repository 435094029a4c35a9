"""PGD for transfer: it spends the whole budget, and follows the mean gradient over random variants of the clip (input
diversity, Xie et al. 2019; averaged over copies as in admix, Wang et al. 2021), tuned by the gradients in the
neighbourhood of the iterate (variance tuning, Wang and He 2021), with momentum (Dong et al. 2018) or Nesterov's (Lin et
al. 2020) where wanted.

What the iterate does on the attacked model decides nothing: there is no early exit, and the last iterate is handed out.
The defaults were chosen on validation clips of keywords at 20 dB."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from src.attacks.core import cosine, finite_budgets, gradient
from src.attacks.diversity import Diversity
from src.attacks.model import Model
from src.attacks.registration import attack
from src.losses import LOSSES, LossName
from src.random_streams import RandomStreams
from src.registry import Count, Fraction, Natural, NonNegative
from src.threat import ThreatModel, column, norm_of

FULL_STRENGTH = 0.1
"""Norm of the perturbation, as a share of the clip's, for which the changes of the input are defined: 20 dB."""


@attack(
    "transfer_pgd",
    kind="budget",
    norms=("l2", "linf"),
    access="gradients",
    stages="waveform",
    needs_sample_rate=True,
)
def transfer_pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    sample_rate: int,
    steps: Count = 40,
    step: NonNegative = 0.0,
    loss: LossName = "cross_entropy",
    copies: Count = 3,
    strength: NonNegative = 1.0,
    shift_s: NonNegative = 0.1,
    speed: NonNegative = 0.15,
    noise: NonNegative = 0.3,
    masks: Natural = 1,
    mask_size: Fraction = 0.2,
    stretch: NonNegative = 0.0,
    variance_draws: Natural = 0,
    variance_radius: NonNegative = 1.5,
    momentum: Fraction = 0.0,
    nesterov: bool = False,
) -> Tensor:
    """PGD over random variants of the clip, for adversarial clips that fool other models too; uses all of eps.

    Args:
        steps: gradient steps.
        step: step size in units of eps / steps; 0: it falls from eps to 0 along half a cosine.
        loss: objective that the steps maximize.
        copies: random variants per step, whose mean gradient is followed; ten fool more models than three.
        strength: factor of all changes that make the variants; 0 for plain PGD. It is meant for 20 dB and above it
            falls in proportion to the perturbation, for strong changes hide a weak one.
        shift_s: largest offset of a variant either way, seconds.
        speed: largest change of its speed either way, as a share.
        noise: largest amplitude of its white noise, as a share of the clip's; the smallest is a tenth of it.
        masks: bands in frequency that are silenced, and as many in time.
        mask_size: largest width of a mask, as a share of the axis.
        stretch: largest change of the scale of its frequency axis either way, as a share; without effect on keywords.
        variance_draws: points around the iterate whose gradients tune the direction; each costs `copies` passes.
        variance_radius: of their neighbourhood, in units of eps.
        momentum: weight of the previous direction.
        nesterov: take the gradient where the momentum leads.
    """
    diversity = Diversity(
        sample_rate=sample_rate, shift_s=shift_s, speed=speed, noise=noise, masks=masks, mask_size=mask_size,
        stretch=stretch,
    )  # fmt: skip
    climb = TransferClimb(
        steps=steps, step=step, copies=copies, strength=strength, variance_draws=variance_draws,
        variance_radius=variance_radius, momentum=momentum, nesterov=nesterov,
    )  # fmt: skip
    return climb(model, x, threat, rng, diversity, lambda logits: LOSSES[loss](logits, y, targeted))


@dataclass(frozen=True, kw_only=True)
class TransferClimb:
    """The steps of `transfer_pgd` on any objective; the attributes are its keys."""

    steps: int
    step: float
    copies: int
    strength: float
    variance_draws: int
    variance_radius: float
    momentum: float
    nesterov: bool

    def __call__(
        self,
        model: Model,
        x: Tensor,
        threat: ThreatModel,
        rng: RandomStreams,
        diversity: Diversity,
        objective: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """The last iterate, [batch, time], at the border of the ball.

        Args:
            objective: what the steps maximize: logits -> [batch].
        """
        threat = replace(threat, eps=finite_budgets(threat, x))
        strength = self.strengths(x, threat)
        around = replace(threat, eps=threat.budgets(x) * self.variance_radius, bounds=(-torch.inf, torch.inf))

        def mean_gradient(x_adv: Tensor) -> Tensor:
            """Of the objective at variants of x_adv, with respect to x_adv."""
            if not self.strength:
                return gradient(model, x_adv, objective)[0]
            total = torch.zeros_like(x_adv)
            for _ in range(self.copies):
                total += gradient(lambda z: model(diversity(z, strength, rng)), x_adv, objective)[0]
            return total.div_(self.copies)

        x_adv, size = x, column(threat.budgets(x), x)
        velocity, variance = torch.zeros_like(x), torch.zeros_like(x)
        for iteration in range(self.steps):
            length = size * (self.step / self.steps if self.step else cosine(iteration, self.steps, 1.0, 0.0))
            ahead = x_adv + length * self.momentum * threat.ascent(velocity) if self.nesterov else x_adv
            grad = mean_gradient(ahead)
            direction = unit(grad + variance)
            if self.variance_draws:
                near = [mean_gradient(around.random_start(ahead, rng)) for _ in range(self.variance_draws)]
                variance = torch.stack(near).mean(0) - grad
            velocity = self.momentum * velocity + direction
            x_adv = threat.project(x_adv + length * threat.ascent(velocity), x)
        return threat.filled(x_adv, x)

    def strengths(self, x: Tensor, threat: ThreatModel) -> Tensor:
        """Strength of the changes per example, [batch]: full where the budget is 20 dB below the clip or larger."""
        budget = threat.budgets(x)
        if threat.norm == "linf":
            budget = budget * x[0].numel() ** 0.5
        share = budget / norm_of(x, "l2").clamp_min(1e-30)
        return self.strength * (share / FULL_STRENGTH).clamp(max=1)


def unit(grad: Tensor) -> Tensor:
    """The gradient [batch, ...] scaled to unit norm per example."""
    return grad / column(norm_of(grad, "l2"), grad).clamp_min(1e-30)
