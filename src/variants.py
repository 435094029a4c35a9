"""Variants: one attack, defense or model several times in a run, under names and with options of their own. A
sub-section such as [ATTACK.pgd_100] whose name is no attack's is one where its key `attack` says which attack it is;
likewise one of [DEFENSE] with the key `defense`, and one of [MODEL] with the key `model`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

from src.registry import ATTACKS, DEFENSES, MODELS, Key, Listed, Registry, choose

VARIANT_OF = {
    "ATTACK": Key("attack", str, "", "the attack that this is a variant of"),
    "DEFENSE": Key("defense", str, "", "the defense that this is a variant of"),
    "MODEL": Key("model", str, "", "the model that this is a variant of"),
}
"""The key that makes a sub-section a variant, by section."""
REGISTRIES: dict[str, Registry] = {"ATTACK": ATTACKS, "DEFENSE": DEFENSES, "MODEL": MODELS}


def names_type(section: str, variants: Mapping[str, str], default: Any) -> Any:
    """The type of the key `names` of a section with variants.

    Args:
        variants: name -> the registered component.
        default: of the key; a list that is empty by default may be empty.
    """
    registry = REGISTRIES[section]
    choices = [*registry.names(), *variants]
    name = Annotated[str, AfterValidator(lambda value: choose(value, choices, registry.kind))]
    return tuple[name, ...] if default == () else Listed[name]


def variants_of(
    text: Mapping[str, Mapping[str, str]], places: Mapping[tuple[str, str], str]
) -> dict[str, dict[str, str]]:
    """The variants that a config defines: section -> name -> the registered component.

    Args:
        text: section -> key -> the value as written.
        places: (section, key) -> where it was written, for messages.

    Raises:
        ValueError: a variant of an unknown component, or under a name that is a component's or no name.
    """
    variants: dict[str, dict[str, str]] = {section: {} for section in VARIANT_OF}
    for section, keys in text.items():
        parent, _, name = section.partition(".")
        if not name or parent not in VARIANT_OF or VARIANT_OF[parent].name not in keys:
            continue
        registry, kind = REGISTRIES[parent], VARIANT_OF[parent].name
        place, article = places[section, kind], "an" if kind[0] in "aeiou" else "a"
        if name in registry:
            if kind in {key.name for key in registry.keys(name)}:
                continue
            raise ValueError(f"{place}: {name} is itself {article} {kind}; give its variant a name of its own")
        if not re.fullmatch(r"\w+", name):
            raise ValueError(f"{place}: '{name}' cannot name a variant of {article} {kind}; use letters, digits and _")
        try:
            variants[parent][name] = choose(keys[kind].strip(), registry.names(), registry.kind)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    return variants
