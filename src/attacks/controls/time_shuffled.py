"""The strictest control: the perturbation of an attack, shuffled along time. This keeps the size of every entry, hence
every norm, and destroys only the alignment of the perturbation with the clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from src.attacks.model import Model
from src.attacks.registration import attack, spec_of
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel


def check_attack(options: Mapping[str, Any]) -> None:
    """Raises ValueError for an attack whose perturbation cannot be shuffled: this one, or one fitted to other clips."""
    spec = spec_of(options["attack"])
    if spec.name == "time_shuffled" or spec.fitted:
        raise ValueError(f"attack = {spec.name}: name another attack whose perturbation is made for each clip")


@attack(
    "time_shuffled",
    kind="control",
    norms=("linf", "l2", "l1"),
    access="gradients",
    needs_sample_rate=True,
    check_options=check_attack,
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
    """delta [batch, ..., time] with the time steps that the mask allows in random order."""
    allowed = torch.ones_like(delta, dtype=torch.bool) if threat.mask is None else threat.mask.expand_as(delta)
    movable = allowed.flatten(1, -2).any(1) if delta.dim() > 2 else allowed
    positions = (~movable).to(torch.int8).argsort(dim=1, stable=True)
    source = (rng.uniform(delta.new_empty(movable.shape)) + 2 * ~movable).argsort(dim=1, stable=True)
    order = torch.empty_like(positions).scatter(1, positions, source)
    return delta.gather(-1, order.reshape(len(delta), *[1] * (delta.dim() - 2), -1).expand_as(delta))
