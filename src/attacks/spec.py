"""The specification of an attack: its properties, which it declares once and the config is checked against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["budget", "minimum_norm", "control"]
Access = Literal["gradients", "scores", "labels", "none"]
Stages = Literal["any", "waveform"]
Report = dict[str, list[Any]]
"""What an attack says about its examples, for the rows: column -> a plain value per example."""


@dataclass(frozen=True)
class AttackSpec:
    """Properties of an attack, declared once at its registration.

    Attributes:
        name: its name in the config.
        kind: budget (maximizes the loss within eps), minimum_norm (minimizes the perturbation) or control (a random
            perturbation of the whole budget, which an attack has to outperform).
        norms: norms of the perturbation that it supports; the first is the default of a minimum-norm attack.
        targetable: whether it can aim at a given label.
        access: what it needs from the model.
        stages: the representations it applies to.
        fitted: whether it first learns from training clips (`RegisteredAttack.fit`) what it then applies to any clip.
        needs_sample_rate: whether it takes the keyword `sample_rate` (Hz), which the program supplies.
        takes_examples: whether, aimed at a target, it can begin at inputs of its class: the program supplies training
            clips and their labels as `examples`.
        takes_tap: whether it looks into the model: the program supplies `tap`, which gives access to a layer by name.
        reports: whether it says of every example how it went: the program supplies a `Report` to fill as `report`.
        limited: whether its own options limit the perturbation besides eps (an SNR, a band, gains), so that it need
            not use all of eps, and a larger one need not help it.
    """

    name: str
    kind: Kind
    norms: tuple[str, ...]
    targetable: bool
    access: Access
    stages: Stages = "any"
    fitted: bool = False
    needs_sample_rate: bool = False
    takes_examples: bool = False
    takes_tap: bool = False
    reports: bool = False
    limited: bool = False

    @property
    def has_budget(self) -> bool:
        """Whether it runs once per eps; a minimum-norm attack runs only once."""
        return self.kind != "minimum_norm"

    def check(self, norm: str, targeted: bool, at_waveform: bool) -> None:
        """Refuse a use that the attack does not support.

        Raises:
            ValueError: unsupported norm, target or representation.
        """
        if norm not in self.norms:
            raise ValueError(f"{self.name} has no norm {norm} (choices: {', '.join(self.norms)})")
        if targeted and not self.targetable:
            raise ValueError(f"{self.name} cannot aim at a target; set targeted = no")
        if self.stages == "waveform" and not at_waveform:
            raise ValueError(f"{self.name} perturbs waveforms, [batch, time]; set stage = waveform")
