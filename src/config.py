"""Reading of config.ini and `--set SECTION.key=value` into frozen, typed values.

A section is a keyword-only dataclass defined by the code that uses it; a sub-section such as [ATTACK.pgd] holds the
keyword-only parameters of that component. So each key is defined once, where it is used. Anything unknown or out of
range is refused before any work, with the line, the choices and the nearest match."""

from __future__ import annotations

import configparser
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from src.datasets.prepare import DataSettings
from src.evaluation import AttackSettings
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
    validate,
)
from src.smoothing import CertifySettings
from src.speaker.settings import SpeakerSettings
from src.training import TrainingSettings
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
        names: architectures to train, one after the other.
    """

    names: Listed[MODELS.Name] = ("cnn",)  # type: ignore[name-defined]


@dataclass(frozen=True, kw_only=True)
class DefenseSettings:
    """Transformations inside every model that is trained, evaluated, attacked or certified; each stands where its `at`
    says. A model that was trained behind defenses keeps them.

    Args:
        names: defenses, in the order they are applied; one may come twice; empty for none.
    """

    names: tuple[DEFENSES.Name, ...] = ()  # type: ignore[name-defined]


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
    "DEFENSE": [Key("at", Listed[str], (WAVEFORM,), "representations behind which it stands: waveform, magnitude ...")]
}
"""Keys that every component of a section has, beside its own."""


@dataclass(frozen=True)
class Config:
    """All settings of a run.

    Attributes:
        components: "SECTION.name" -> the keyword arguments of that component.
        text: section -> key -> the value as written.
    """

    training: TrainingSettings
    data: DataSettings
    results: ResultsSettings
    frontend: FrontEndSettings
    model: ModelSettings
    speaker: SpeakerSettings
    defense: DefenseSettings
    attack: AttackSettings
    inversion: InversionSettings
    certify: CertifySettings
    components: Mapping[str, Mapping[str, Any]]
    text: Mapping[str, Mapping[str, str]]

    def component(self, section: str, name: str) -> dict[str, Any]:
        """The keyword arguments of a component that the config sets."""
        return dict(self.components.get(f"{section}.{name}", {}))


def keys_of_section(section: str) -> list[Key]:
    """The keys of a section or sub-section.

    Raises:
        ValueError: no such section, with the nearest match.
    """
    parent, _, name = section.partition(".")
    if name and parent in COMPONENTS:
        return [*COMPONENT_KEYS.get(parent, ()), *COMPONENTS[parent].keys(name)]
    choices = list(SECTIONS) + [f"{parent}.<name>" for parent in COMPONENTS]
    return keys_of(SECTIONS[choose(section, choices, "section")])


def load(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a config file and the `SECTION.key=value` overrides.

    Raises:
        ValueError: anything unknown, malformed or out of range; the message names the file and line.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such config file")
    parser = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=("#", ";"))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        source = path.read_text(encoding="utf-8")
        parser.read_string(source, str(path))
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    text = {section: dict(parser[section]) for section in parser.sections()}
    if parser.defaults():
        raise ValueError(f"{path}: unknown section 'DEFAULT' (choices: {', '.join(SECTIONS)})")
    places = _lines(source, str(path))
    for override in overrides or ():
        match = re.fullmatch(r"\s*([\w.]+)\.(\w+)\s*=(.*)", override, re.S)
        if not match:
            raise ValueError(f"--set {override}: write SECTION.key=value")
        section, key, value = match.groups()
        text.setdefault(section, {})[key] = value.strip()
        places[section, key] = places[section, ""] = f"--set {override}"
    values = {section: _typed(section, text[section], places) for section in text}
    for section in values.keys() - SECTIONS.keys():
        kind, _, name = section.partition(".")
        try:
            COMPONENTS[kind].check_options(name, values[section])
        except ValueError as error:
            raise ValueError(f"{places[section, '']}: [{section}] {error}") from None
    sections = {}
    for section, settings_class in SECTIONS.items():
        try:
            sections[section.lower()] = settings_class(**values.get(section, {}))
        except ValueError as error:
            raise ValueError(f"{places.get((section, ''), path)}: [{section}] {error}") from None
    components = {section: value for section, value in values.items() if section not in SECTIONS}
    return Config(**sections, components=components, text=text)


def _typed(section: str, raw: Mapping[str, str], places: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    """The strings of a section, converted by its schema."""
    try:
        schema = {key.name: key for key in keys_of_section(section)}
    except ValueError as error:
        raise ValueError(f"{places[section, '']}: {error}") from None
    converted = {}
    for name, value in raw.items():
        try:
            converted[name] = convert(schema[choose(name, schema, f"key in [{section}]")], value)
        except ValueError as error:
            raise ValueError(f"{places[section, name]}: {error}") from None
    return converted


def convert(key: Key, value: str) -> Any:
    """A string as the type of its key.

    Raises:
        ValueError: not of that type, or out of range.

    >>> convert(Key("steps", Listed[int], (1,), ""), "10, 20")
    (10, 20)
    """
    listed = "tuple" in str(_bare(key.annotation))
    parts = [part.strip() for part in value.split(",") if part.strip()] if listed else value.strip()
    return validate(key, parts, value)


def _bare(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return get_origin(annotation) or annotation


def _lines(source: str, path: str) -> dict[tuple[str, str], str]:
    """(section, key) -> 'path:line'; the heading of a section has the key ''."""
    places, section = {}, ""
    for number, line in enumerate(source.splitlines(), 1):
        if header := re.match(r"\[([^]]+)\]", line):
            section = header[1]
            places[section, ""] = f"{path}:{number}"
        elif entry := re.match(r"([^\s#;=:][^=:]*?)\s*[=:]", line):
            places[section, entry[1]] = f"{path}:{number}"
    return places
