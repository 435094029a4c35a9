"""Reading of config.ini and `--set SECTION.key=value` into frozen, typed values.

A section is a keyword-only dataclass defined by the code that uses it; a sub-section such as [ATTACK.pgd] holds the
keyword-only parameters of that component. So each key is defined once, where it is used. Anything unknown or out of
range is refused before any work, with the line, the choices and the nearest match.

A sub-section of [ATTACK] with a name of its own and the key `attack` is a variant: that attack with other options; and
likewise one of [DEFENSE] with the key `defense`, and of [MODEL] with the key `model`. What holds for the training of
one model only stands in sections such as [MODEL.cnn.TRAINING] and [MODEL.cnn.FRONTEND.log_mel]."""

from __future__ import annotations

import configparser
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from src.config_sections import (
    COMPONENTS,
    SECTIONS,
    DefenseSettings,
    FrontEndSettings,
    InversionSettings,
    ModelSettings,
    TransferSettings,
    keys_of_section,
)
from src.datasets.prepare import DataSettings
from src.evaluation import AttackSettings
from src.evaluation.passing import check_passing
from src.output.results import ResultsSettings
from src.registry import MODELS, Key, choose, validate
from src.smoothing import CertifySettings
from src.speaker.settings import SpeakerSettings
from src.training import TrainingSettings
from src.variants import VARIANT_OF, variants_of


@dataclass(frozen=True)
class Config:
    """All settings of a run.

    Attributes:
        components: "SECTION.name" -> the keyword arguments of that component.
        text: section -> key -> the value as written.
        of_models: model -> the settings of its training, where it has sections of its own.
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
    transfer: TransferSettings
    components: Mapping[str, Mapping[str, Any]]
    text: Mapping[str, Mapping[str, str]]
    of_models: Mapping[str, Config] = field(default_factory=dict)

    def component(self, section: str, name: str) -> dict[str, Any]:
        """The keyword arguments of a component that the config sets."""
        return dict(self.components.get(f"{section}.{name}", {}))

    def of_model(self, name: str) -> Config:
        """The settings with which this model is trained: these, and those of its own sections."""
        return self.of_models.get(name, self)


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
    shared = {section: keys for section, keys in text.items() if not re.match(OF_ONE_MODEL, section)}
    loaded = _checked(path, shared, places)
    of_models = {}
    for section in text.keys() - shared.keys():
        _check_of_one_model(section, text[section], loaded, places[section, ""])
    for name in dict.fromkeys(section.split(".")[1] for section in text if section not in shared):
        merged, merged_places = {section: dict(keys) for section, keys in shared.items()}, dict(places)
        for section, keys in text.items():
            if section.startswith(f"MODEL.{name}.") and section not in shared:
                place = section.removeprefix(f"MODEL.{name}.")
                merged.setdefault(place, {}).update(keys)
                merged_places |= {(place, key): places[section, key] for key in ("", *keys)}
        of_models[name] = _checked(path, merged, merged_places)
    return replace(loaded, text=text, of_models=of_models)


OF_ONE_MODEL = r"MODEL\.[^.]+\."
"""How a section begins that holds for the training of one model."""


def _check_of_one_model(section: str, keys: Collection[str], loaded: Config, place: str) -> None:
    """Raises ValueError where [MODEL.name.SECTION] names no model, a section that is not about its training, or has a
    key that cannot differ between the models of one run."""
    _, name, of_model = section.split(".", 2)
    try:
        choose(name, [*MODELS.names(), *loaded.model.variants], MODELS.kind)
        choose(of_model.split(".")[0], ("TRAINING", "FRONTEND"), f"section of [MODEL.{name}]")
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    if of_model == "TRAINING" and "use_cuda" in keys:
        raise ValueError(f"{place}: use_cuda holds for all models; set it in [TRAINING]")


def _checked(path: Path, text: Mapping[str, Mapping[str, str]], places: Mapping[tuple[str, str], str]) -> Config:
    """The settings that sections give, none of which is that of one model only."""
    variants = variants_of(text, places)
    values = {section: _typed(section, text[section], places, variants) for section in text}
    for section in values.keys() - SECTIONS.keys():
        kind, _, name = section.partition(".")
        if name in variants.get(kind, {}):
            name = variants[kind][name]
            del values[section][VARIANT_OF[kind].name]
        try:
            COMPONENTS[kind].check_options(name, values[section])
        except ValueError as error:
            raise ValueError(f"{places[section, '']}: [{section}] {error}") from None
    sections = {}
    for section, settings_class in SECTIONS.items():
        try:
            derived = {"variants": variants[section]} if section in variants else {}
            sections[section.lower()] = settings_class(**values.get(section, {}), **derived)
        except ValueError as error:
            raise ValueError(f"{places.get((section, ''), path)}: [{section}] {error}") from None
    attacks: AttackSettings = sections["attack"]
    for section in values.keys() - SECTIONS.keys():
        kind, _, name = section.partition(".")
        try:
            if kind == "ATTACK":
                runs = name in attacks.names
                check_passing(attacks.spec(name), values[section], attacks.adaptive or not runs)
        except ValueError as error:
            raise ValueError(f"{places[section, '']}: [{section}] {error}") from None
    components = {section: value for section, value in values.items() if section not in SECTIONS}
    return Config(**sections, components=components, text=text)


def _typed(
    section: str,
    raw: Mapping[str, str],
    places: Mapping[tuple[str, str], str],
    variants: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    """The strings of a section, converted by its schema."""
    try:
        schema = {key.name: key for key in keys_of_section(section, variants)}
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

    >>> from src.registry import Listed
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
