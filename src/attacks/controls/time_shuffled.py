"""The sharpest random control: an attack's own perturbation with its moments in random order. It keeps the size of
every entry, hence every norm, and loses only how the perturbation fits the clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from src.attacks.core import Model, attack, spec_of
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel


def check(options: Mapping[str, Any]) -> None:
    spec = spec_of(options["attack"])
    if spec.name == "time_shuffled" or spec.fitted:
        raise ValueError(f"attack = {spec.name}: name another attack whose perturbation is made for each clip")


@attack(
    "time_shuffled",
    kind="control",
    norms=("linf", "l2", "l1"),
    access="gradients",
    needs_sample_rate=True,
    check_options=check,
)
def time_shuffled(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    sample_rate: int,
    attack: ATTACKS.Name = "pgd",  # type: ignore[name-defined]
) -> Tensor:
    """Control: another attack's perturbation, shuffled in time.

    Args:
        attack: the attack whose perturbation is shuffled; it runs with its default keys.
    """
    options = {"sample_rate": sample_rate} if spec_of(attack).needs_sample_rate else {}
    delta = ATTACKS[attack](model, x, y, threat, rng=rng, targeted=targeted, **options) - x
    return threat.project(x + shuffled(delta, threat, rng), x)


def shuffled(delta: Tensor, threat: ThreatModel, rng: RandomStreams) -> Tensor:
    """delta [batch, ..., time] with the moments that the mask allows in random order."""
    allowed = torch.ones_like(delta, dtype=torch.bool) if threat.mask is None else threat.mask.expand_as(delta)
    open_ = allowed.flatten(1, -2).any(1) if delta.dim() > 2 else allowed
    places = (~open_).to(torch.int8).argsort(dim=1, stable=True)
    source = (rng.uniform(delta.new_empty(open_.shape)) + 2 * ~open_).argsort(dim=1, stable=True)
    order = torch.empty_like(places).scatter(1, places, source)
    return delta.gather(-1, order.reshape(len(delta), *[1] * (delta.dim() - 2), -1).expand_as(delta))
