"""AutoAttack (Croce and Hein 2020): APGD with cross-entropy, targeted APGD, a minimum-norm attack (FMN, Pintor et al.
2021, in place of FAB) and Square, each run only on the examples that all earlier ones failed to fool."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.core import gradient
from src.attacks.model import Model, succeeds
from src.attacks.registration import attack, spec_of
from src.losses import cross_entropy
from src.random_streams import RandomStreams
from src.registry import ATTACKS, Count
from src.threat import ThreatModel, norm_of


@attack("autoattack", kind="budget", norms=("linf", "l2", "l1"), access="gradients")
def autoattack(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    steps: Count = 100,
    targets: Count = 9,
    queries: Count = 5000,
) -> Tensor:
    """The standard parameter-free ensemble of attacks; the worst case per example.

    A member that does not support the norm is left out (Square in l1). With a target the second member is APGD with the
    margin loss. Targeted DLR needs 4 classes; with fewer the second member maximizes the difference of the two logits.

    Args:
        steps: gradient steps of each white-box run.
        targets: classes that the second member aims at.
        queries: largest number of queries of Square, per example.
    """
    for sign, share in flags(model, x, y, targeted).items():
        if share:
            warnings.warn(f"autoattack: {MEANING[sign]} on {share:.0%} of the examples", stacklevel=2)
    second: tuple[str, dict[str, Any]] = ("apgd_targeted", {"steps": steps, "targets": targets})
    if targeted:
        second = ("apgd", {"steps": steps, "loss": "margin"})
    members = [("apgd", {"steps": steps}), second, ("fmn", {"steps": steps}), ("square", {"queries": queries})]
    x_adv_full, batch = x.clone(), ActiveBatch(model, x, y, threat, rng, targeted)
    batch.keep(~succeeds(model, x, model(x), y, targeted))
    for name, options in members:
        member = ATTACKS[name]
        if threat.norm not in spec_of(name).norms or not len(batch):
            continue
        x_adv = member(batch.model, batch.x, batch.y, batch.threat, rng=batch.rng, targeted=targeted, **options)
        # An example that no member fools keeps the last member's point of the ball.
        x_adv_full[batch.index] = x_adv
        batch.keep(~succeeds(batch.model, x_adv, batch.model(x_adv), batch.y, targeted))
    return x_adv_full


MEANING = {
    "randomized": "the logits differ between forward passes; attack the model through adaptive()",
    "zero_gradient": "the gradient is zero, so the model masks it; attack the model through adaptive()",
}


def flags(model: Model, x: Tensor, y: Tensor, targeted: bool = False) -> dict[str, float]:
    """AutoAttack's warnings about models that it cannot evaluate reliably, each as a share of the examples.

    Returns:
        randomized: logits differ between 5 forward passes.
        zero_gradient: the gradient of the cross-entropy is zero in every entry.
    """
    with torch.no_grad():
        logits = torch.stack([model(x) for _ in range(5)])
        differs = (logits != logits[0]).flatten(2).any(2).any(0)
        grad, _, _ = gradient(model, x, lambda logits: cross_entropy(logits, y, targeted))
    return {
        "randomized": float(differs.float().mean()),
        "zero_gradient": float((norm_of(grad, "linf") == 0).float().mean()),
    }
