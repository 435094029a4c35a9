"""The sections of config.ini and their keys: which keyword-only dataclass each section fills, and which registry the
components of its sub-sections, such as [ATTACK.pgd], come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from src.datasets.prepare import DataSettings
from src.evaluation import AttackSettings
from src.evaluation.passing import COMMON_KEYS
from src.output.results import ResultsSettings
from src.registry import (
    ATTACKS,
    BACK_ENDS,
    DATASETS,
    DEFENSES,
    FRONTENDS,
    INVERSIONS,
    METHODS,
    MODELS,
    Key,
    Listed,
    Registry,
    choose,
    keys_of,
)
from src.smoothing import CertifySettings
from src.speaker.settings import SpeakerSettings
from src.training import TrainingSettings
from src.variants import VARIANT_OF, names_type
from src.victims.stage import WAVEFORM


@dataclass(frozen=True, kw_only=True)
class FrontEndSettings:
    """The map from waveform to features.

    Args:
        name: front end; auto is the one that each model was published with.
    """

    name: str = "auto"

    def __post_init__(self) -> None:
        choose(self.name, ["auto", *FRONTENDS.names()], "front end")


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The classifiers.

    Args:
        names: models to train, one after the other: architectures, or variants of them.

    Attributes:
        variants: names of models with options and training of their own, beside the registered ones -> the model.
    """

    names: Listed[MODELS.Name] = ("cnn",)  # type: ignore[name-defined]
    variants: Mapping[str, str] = field(default_factory=dict, kw_only=False)  # hence no key: sub-sections define it

    def registered(self, name: str) -> str:
        """The architecture that a name stands for: of a variant, the one that it is a variant of."""
        return self.variants.get(name, name)


@dataclass(frozen=True, kw_only=True)
class TransferSettings:
    """Which models attack which in a transfer study. The attacks, their targets and budgets are those of [ATTACK].

    Args:
        substitutes: trained models that the clips are crafted on; empty for all in model_dir. One that [MODEL] names
            lists too is trained first where it is missing.
        targets: trained models that these clips are scored on, each substitute among them; empty for all in model_dir.
            One that [MODEL] names lists too is trained first where it is missing.
    """

    substitutes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in ("substitutes", "targets"):
            names = getattr(self, key)
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"{key} names {twice[0]} twice")


@dataclass(frozen=True, kw_only=True)
class DefenseSettings:
    """Transformations inside every model that is trained, evaluated, attacked or certified; each stands where its `at`
    says. A model that was trained behind defenses keeps them.

    Args:
        names: defenses, in the order they are applied; one may come twice; empty for none.

    Attributes:
        variants: names of defenses with options of their own, beside the registered ones -> the defense.
    """

    names: tuple[str, ...] = ()
    variants: Mapping[str, str] = field(default_factory=dict, kw_only=False)  # hence no key: sub-sections define it

    def __post_init__(self) -> None:
        for name in self.names:
            choose(name, [*DEFENSES.names(), *self.variants], DEFENSES.kind)

    def registered(self, name: str) -> str:
        """The registered defense that a name stands for.

        Raises:
            ValueError: neither a defense nor a variant of one.
        """
        return self.variants.get(name) or choose(name, [*DEFENSES.names(), *self.variants], DEFENSES.kind)


@dataclass(frozen=True, kw_only=True)
class InversionSettings:
    """The way back to audio from an attacked representation.

    Args:
        name: inversion used by attack.py.
    """

    name: INVERSIONS.Name = "gain_mask"  # type: ignore[name-defined]


SECTIONS: dict[str, type] = {
    "TRAINING": TrainingSettings,
    "DATA": DataSettings,
    "RESULTS": ResultsSettings,
    "FRONTEND": FrontEndSettings,
    "MODEL": ModelSettings,
    "SPEAKER": SpeakerSettings,
    "DEFENSE": DefenseSettings,
    "ATTACK": AttackSettings,
    "INVERSION": InversionSettings,
    "CERTIFY": CertifySettings,
    "TRANSFER": TransferSettings,
}
COMPONENTS: dict[str, Registry] = {
    "TRAINING": METHODS,
    "DATA": DATASETS,
    "FRONTEND": FRONTENDS,
    "MODEL": MODELS,
    "SPEAKER": BACK_ENDS,
    "DEFENSE": DEFENSES,
    "ATTACK": ATTACKS,
    "INVERSION": INVERSIONS,
}
COMPONENT_KEYS: dict[str, list[Key]] = {
    "DEFENSE": [Key("at", Listed[str], (WAVEFORM,), "representations behind which it stands: waveform, magnitude ...")],
    "ATTACK": [*COMMON_KEYS],
}
"""Keys that every component of a section has, beside its own."""


def keys_of_section(section: str, variants: Mapping[str, Mapping[str, str]] | None = None) -> list[Key]:
    """The keys of a section or sub-section.

    Args:
        variants: as `variants_of` gives them.

    Raises:
        ValueError: no such section, with the nearest match.
    """
    parent, _, name = section.partition(".")
    named = (variants or {}).get(parent, {})
    if name in named:
        return [VARIANT_OF[parent], *keys_of_section(f"{parent}.{named[name]}")]
    if name and parent in VARIANT_OF and name not in COMPONENTS[parent]:
        kind = VARIANT_OF[parent].name
        try:
            COMPONENTS[parent][name]
        except ValueError as error:
            raise ValueError(f"{error}; a variant says which {kind} it is: {kind} = ...") from None
    if name and parent in COMPONENTS:
        return [*COMPONENT_KEYS.get(parent, ()), *COMPONENTS[parent].keys(name)]
    choices = list(SECTIONS) + [f"{parent}.<name>" for parent in COMPONENTS]
    keys = keys_of(SECTIONS[choose(section, choices, "section")])
    if named:
        keys = [
            replace(key, annotation=names_type(section, named, key.default)) if key.name == "names" else key
            for key in keys
        ]
    return keys
