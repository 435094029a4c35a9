"""Variants: one attack several times in a run, under names and with options of their own. A sub-section of [ATTACK]
whose name is no attack's is one, where its key `attack` says which attack it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

from src.registry import ATTACKS, Key, Listed, choose

VARIANT_OF = Key("attack", str, "", "the attack that this is a variant of")
"""The key that makes a sub-section of [ATTACK] a variant."""


def attack_names(variants: Mapping[str, str]) -> Any:
    """The type of [ATTACK] names where there are variants."""
    choices = [*ATTACKS.names(), *variants]
    return Listed[Annotated[str, AfterValidator(lambda value: choose(value, choices, ATTACKS.kind))]]


def variants_of(text: Mapping[str, Mapping[str, str]], places: Mapping[tuple[str, str], str]) -> dict[str, str]:
    """The variants of attacks that a config defines, name -> the attack.

    Raises:
        ValueError: a variant of an unknown attack, or under a name that is an attack's or no name.
    """
    variants = {}
    for section, keys in text.items():
        parent, _, name = section.partition(".")
        if parent != "ATTACK" or VARIANT_OF.name not in keys:
            continue
        place = places[section, VARIANT_OF.name]
        if name in ATTACKS:
            if VARIANT_OF.name in {key.name for key in ATTACKS.keys(name)}:
                continue
            raise ValueError(f"{place}: {name} is itself an attack; give its variant a name of its own")
        if not re.fullmatch(r"\w+", name):
            raise ValueError(f"{place}: '{name}' cannot name a variant of an attack; use letters, digits and _")
        try:
            variants[name] = choose(keys[VARIANT_OF.name].strip(), ATTACKS.names(), ATTACKS.kind)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    return variants
