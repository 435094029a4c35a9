"""Identity of a training: recognizes a finished one and resumes an interrupted one with the same settings and data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.victims import checkpoint


def facts_of(path: Path) -> dict[str, Any]:
    """The training facts of a model file; empty if it is damaged or none, so that the model is trained again."""
    try:
        return dict(checkpoint.read(path)["facts"])
    except (ValueError, KeyError):
        return {}


def resume(last: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The state of an interrupted training with the same settings, or an empty dictionary."""
    try:
        state = checkpoint.read(last)
    except (FileNotFoundError, ValueError):
        return {}
    return {} if differences(state["settings"], settings) else state


def differences(old: Mapping[str, Any], new: Mapping[str, Any], most: int = 4) -> str:
    """The first `most` differences between two nested settings as text; empty if there are none."""
    changes = _changes(old, new)
    more = f" and {len(changes) - most} more" if len(changes) > most else ""
    return ", ".join(changes[:most]) + more


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    changes = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes += _changes(before, after, f"{prefix}{key}.")
        elif _as_list(before) != _as_list(after):
            changes.append(f"{prefix}{key} {before} -> {after}")
    return changes


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
