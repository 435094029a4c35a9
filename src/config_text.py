"""Config keys as people read them: types, defaults and descriptions for --help and for the reference in docs."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from src.config_sections import COMPONENTS, keys_of_section


def type_name(annotation: Any) -> str:
    """An annotation as the tables of keys and --help print it."""
    limits = []
    while get_origin(annotation) is Annotated:
        annotation, *notes = get_args(annotation)
        limits += [
            f"{sign} {getattr(note, field)}" for note in notes for field, sign in _LIMITS if hasattr(note, field)
        ]
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        name = " / ".join(map(str, args))
    elif origin is tuple:
        name = f"list of {type_name(args[0])}"
    elif origin in (types.UnionType, Union):
        name = " or ".join(type_name(arg) for arg in args if arg is not type(None))
    else:
        name = {"bool": "yes / no", "str": "name", "Path": "path", "Budget": "eps"}.get(
            annotation.__name__, annotation.__name__
        )
    return " ".join([name, *limits])


_LIMITS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))


def value_text(value: Any) -> str:
    """A value as config.ini would have it."""
    if isinstance(value, tuple):
        return ", ".join(map(value_text, value))
    return (
        {True: "yes", False: "no"}[value]
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def help_text(sections: Mapping[str, bool]) -> str:
    """The keys of the sections that a script reads, for --help.

    Args:
        sections: section -> whether the script reads its sub-sections, those of components, too.
    """
    lines = []
    for section, with_components in sections.items():
        lines.append(f"[{section}]")
        lines += [
            f"  {key.name} ({type_name(key.annotation)}; {value_text(key.default)}): {key.description}"
            for key in keys_of_section(section)
        ]
        if with_components:
            lines.append(f"  sub-sections [{section}.<name>]: {', '.join(COMPONENTS[section].names())}")
    return "\n".join(lines)
