"""PGD on intermediate features (Inkawhich et al. 2019; Ganeshan et al. 2019): layers in the middle of a network have
more in common with those of other networks than its logits have. Without a target the features are driven away from
those of the clip, with one towards those of an example of the target class."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from src.attacks.diversity import Diversity
from src.attacks.gradients.transfer_pgd import TransferClimb
from src.attacks.model import Model
from src.attacks.registration import attack
from src.attacks.tap import INPUT, Tap
from src.losses import LOSSES
from src.random_streams import RandomStreams
from src.registry import Count, NonNegative
from src.threat import ThreatModel

Examples = tuple[Tensor, Tensor]


@attack(
    "feature_pgd",
    kind="budget",
    norms=("l2", "linf"),
    access="gradients",
    stages="waveform",
    needs_sample_rate=True,
    takes_examples=True,
    takes_tap=True,
)
def feature_pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    examples: Examples | None = None,
    tap: Callable[[str], Tap] | None = None,
    *,
    rng: RandomStreams,
    targeted: bool,
    sample_rate: int,
    layer: str = INPUT,
    weight: NonNegative = 1.0,
    steps: Count = 40,
    step: NonNegative = 0.0,
    copies: Count = 3,
    strength: NonNegative = 1.0,
) -> Tensor:
    """PGD on the features of a layer beside the cross-entropy, over random variants of the clip as `transfer_pgd`.

    With a target the features go towards those of the training clip of that class whose features are nearest. The
    distance is in units of the norm of the features that it is measured from.

    Args:
        layer: of the attacked model: input for what its classifier gets, or the name of a layer such as blocks.1.conv2.
        weight: of the features, beside the cross-entropy.
        steps: gradient steps.
        step: step size in units of eps / steps; 0: it falls from eps to 0 along half a cosine.
        copies: random variants per step, whose mean gradient is followed.
        strength: factor of all changes that make the variants; 0 for none.
    """
    climb = TransferClimb(
        steps=steps, step=step, copies=copies, strength=strength, variance_draws=0, variance_radius=0.0, momentum=0.0,
        nesterov=False,
    )  # fmt: skip
    # Without a tap the model is a bare function, whose last layer is all there is to see.
    with nullcontext() if tap is None else tap(layer) as opened:

        def features(logits: Tensor) -> Tensor:
            return (logits if opened is None else opened.value).flatten(1)

        with torch.no_grad():  # by the attacked model, which knows the padding of the clips
            goal, sign = features(model(x)), 1.0
        if targeted and examples is not None and opened is not None:
            goal, sign = nearest(goal, y, opened.of(examples[0]).flatten(1), examples[1].to(y.device)), -1.0

        def objective(logits: Tensor) -> Tensor:
            distance = (features(logits) - goal).norm(dim=1) / goal.norm(dim=1).clamp_min(1e-12)
            return LOSSES["cross_entropy"](logits, y, targeted) + sign * weight * distance

        return climb(model, x, threat, rng, Diversity.standard(sample_rate), objective)


def nearest(features: Tensor, y: Tensor, others: Tensor, labels: Tensor) -> Tensor:
    """Of the features `others` [examples, size] the nearest with the label y [batch]; the features [batch, size]
    themselves where none has it."""
    distance = torch.cdist(features, others).masked_fill(y[:, None] != labels, torch.inf)
    found = distance.isfinite().any(1, keepdim=True)
    return torch.where(found, others[distance.argmin(1)], features)
