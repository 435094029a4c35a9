"""The fair control of transfer: the perturbation that an attack made for another clip. It has the spectrum and the
size of an adversarial perturbation, and whatever of it fools models at any clip; only the alignment with the clip is
gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from src.attacks.controls.random_controls import scaled
from src.attacks.core import finite_budgets
from src.attacks.model import Model, narrow
from src.attacks.registration import attack, spec_of
from src.random_streams import RandomStreams
from src.registry import ATTACKS, Count
from src.threat import ThreatModel


def check_attack(options: Mapping[str, Any]) -> None:
    """Raises ValueError for an attack that makes no perturbation for each clip: a control, or one fitted to clips."""
    spec = spec_of(options["made_by"])
    if spec.fitted or spec.kind == "control":
        raise ValueError(f"made_by = {spec.name}: name an attack that makes a perturbation for each clip")


def fit(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    sample_rate: int,
    made_by: ATTACKS.Name = "pgd",  # type: ignore[name-defined]
    perturbations: Count = 50,
) -> dict[str, Tensor]:
    """The perturbations that the attack makes for the first clips, as `deltas` [clips, ...], and the labels, or
    targets, that it made them for, as `labels` [clips].

    Args:
        made_by: the attack whose perturbations are taken; it runs with its default keys.
        perturbations: number of clips for which it runs.
    """
    spec, index = spec_of(made_by), torch.arange(min(perturbations, len(x)), device=x.device)
    spec.check(threat.norm, targeted, x.dim() == 2)
    options = {"sample_rate": sample_rate} if spec.needs_sample_rate else {}
    x, y, threat = x[index], y[index], replace(threat, eps=finite_budgets(threat, x)).select(index)
    x_adv = ATTACKS[made_by](narrow(model, index), x, y, threat, rng=rng.select(index), targeted=targeted, **options)
    return {"deltas": x_adv - x, "labels": y}


@attack(
    "other_clip",
    kind="control",
    norms=("linf", "l2"),
    access="gradients",
    needs_sample_rate=True,
    check_options=check_attack,
    fit=fit,
)
def other_clip(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    sample_rate: int,
    fitted: Mapping[str, Tensor],
) -> Tensor:
    """Control: an attack's perturbation of another clip, scaled to the full budget.

    Every clip gets a random one of the perturbations that were made for the clips of fit_split; with a target, one that
    aimed at the same target where there is any.

    Raises:
        ValueError: it was fitted to inputs of another shape.
    """
    deltas, labels = fitted["deltas"].to(x), fitted["labels"].to(y.device)
    if deltas.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"other_clip was fitted to inputs of shape {tuple(deltas.shape[1:])}, these have {tuple(x.shape[1:])}"
        )
    draw = rng.uniform(x.new_empty(len(x), len(deltas)))
    draw += 2 * deltas.flatten(1).any(1)  # an attack may have had nothing to do
    if targeted:
        draw += y[:, None] == labels
    return scaled(deltas[draw.argmax(1)], x, threat)
