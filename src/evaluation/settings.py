"""The config section [ATTACK]: attacks, representation, budgets, and what is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from src.attacks.registration import spec_of
from src.attacks.spec import AttackSpec
from src.budget import Budget, Eps
from src.datasets.store import FULL_SCALE
from src.registry import ATTACKS, Count, Listed, Natural, Positive
from src.threat import ROUNDED
from src.victims.stage import WAVEFORM

LSB = 1 / FULL_SCALE
"""One step of 16-bit samples."""
RULES = 6
"""Raised whenever the same settings give other rows, because an attack or the judge has changed: rows and stores of
crafted clips from before are then set aside."""
NOT_IN_ROWS = ("names", "eps", "batch_size", "checks", "variants")
"""Keys that rows do not depend on, or that are columns of the rows."""
FIT_KEYS = ("fit_split", "fit_clips")
"""Keys that rows depend on only where an attack uses clips besides those that it attacks."""


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """Which attacks run, at which representation and with which budgets.

    Args:
        names: attacks to run, one after the other.
        stage: representation that is attacked: waveform, magnitude, mel, log_mel, or another stage of the model.
        norm: of the perturbation at that stage; a minimum-norm attack that does not support it uses its default norm.
        eps: budgets, each in units of the stage or as an SNR such as 30 dB; minimum-norm attacks ignore them. At the
            waveform a linf budget is rounded down to whole steps of 16-bit samples.
        through: what the iterates of an attack pass on their way to the model: the stages behind the attacked one
            (stage), or the inversion and 16 bits as well (audio), so that what the attack counts as a success survives
            on the wav; the columns of the stage remain those of the spectrum itself.
        mask: exclude the padding from the perturbation, the padding and all silence, or nothing (none).
        silence_db: a 20-ms frame is silence if its energy is this far below that of the clip's loudest frame.
        targeted: aim at a random other label, drawn per clip, instead of any misclassification. Clips that the model
            gets wrong are then attacked too.
        ensemble: models of model_dir that every model is attacked together with, for clips that transfer: the mean of
            their log probabilities is attacked. Empty for none; waveforms only.
        adaptive: attack through BPDA and EOT where a stage needs them.
        eot_draws: draws of EOT per gradient.
        batch_size: clips per batch; the results do not depend on it.
        seed: of targets, random starts and noise.
        wavs: clips per model, attack and eps for which wavs and a figure are saved.
        speech: measure PESQ and STOI where the data source is one of speech; they are defined for nothing else.
        fit_split: split of the clips that fitted attacks such as universal learn from, and that attacks from predicted
            labels begin at where they aim at a target.
        fit_clips: largest number of these clips, drawn with the seed of the data.
        checks: clips on which every attack is checked for signs of failure; 0 for none.

    Attributes:
        variants: names of attacks with options of their own, beside the registered ones -> the attack.
    """

    names: Listed[ATTACKS.Name] = ("standard", "cw")  # type: ignore[name-defined]
    stage: str = WAVEFORM
    norm: Literal["linf", "l2", "l1", "l0"] = "linf"
    eps: Listed[Eps] = (Budget(0.0005), Budget(0.002))
    through: Literal["stage", "audio"] = "stage"
    mask: Literal["padding", "silence", "none"] = "padding"
    silence_db: Positive = 40.0
    targeted: bool = False
    ensemble: tuple[str, ...] = ()
    adaptive: bool = True
    eot_draws: Count = 10
    batch_size: Count = 64
    seed: Natural = 0
    wavs: Natural = 5
    speech: bool = True
    fit_split: Literal["train", "validation", "enrollment"] = "train"
    fit_clips: Count = 500
    checks: Natural = 16
    variants: Mapping[str, str] = field(default_factory=dict, kw_only=False)  # hence no key: sub-sections define it

    def __post_init__(self) -> None:
        for spec in map(self.spec, self.names):
            norm = self.norm if spec.has_budget else spec.norms[0]
            spec.check(norm, self.targeted, self.stage == WAVEFORM)
            if spec.fitted and self.targeted and spec.kind != "control":
                raise ValueError(f"{spec.name} has one result for all clips, but targets differ; set targeted = no")
        if self.ensemble and self.stage != WAVEFORM:
            raise ValueError("models of an ensemble meet at the waveform only; set stage = waveform")
        if self.stage == WAVEFORM and self.through == "audio":
            raise ValueError("through = audio puts an inversion into the loop, and stage = waveform has none")
        if self.stage == WAVEFORM and self.norm == "linf":
            for eps in self.eps:
                if not eps.is_snr and 0 < eps.value < LSB * (1 - ROUNDED):
                    raise ValueError(
                        f"eps = {eps} is below one step of 16-bit samples, {LSB:.3g}: no wav differs so little"
                    )
        if self.norm in ("l1", "l0") and any(eps.is_snr for eps in self.eps):
            raise ValueError(f"an eps in dB needs the norm linf or l2, not {self.norm}")

    def registered(self, name: str) -> str:
        """The attack that a name stands for: of a variant, the one that it is a variant of."""
        return self.variants.get(name, name)

    def spec(self, name: str) -> AttackSpec:
        """The specification of an attack or a variant.

        Raises:
            ValueError: there is none of this name; lists the choices.
        """
        return spec_of(self.registered(name))

    @property
    def fitted_names(self) -> tuple[str, ...]:
        """The attacks that are fitted before they run."""
        return tuple(name for name in self.names if self.spec(name).fitted)

    def uses_fit_clips(self, name: str) -> bool:
        """Whether an attack is fitted to clips of fit_split, or begins at them."""
        spec = self.spec(name)
        return spec.fitted or (self.targeted and spec.takes_examples)

    def identity(self) -> dict[str, Any]:
        """Everything that a row depends on and that is not one of its columns, as plain values."""
        unused = () if any(map(self.uses_fit_clips, self.names)) else FIT_KEYS
        values = {key: value for key, value in vars(self).items() if key not in (*NOT_IN_ROWS, *unused)}
        # The names count only where there are variants, so that these rows and those of other runs keep their identity.
        return {**values, "rules": RULES, **({"variants": dict(self.variants)} if self.variants else {})}
