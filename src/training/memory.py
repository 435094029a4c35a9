"""What tells one training from another, so that a finished one is recognised and an interrupted one goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.victims import checkpoint


def facts_of(path: Path) -> dict[str, Any]:
    """The training facts of a model file; none when it is damaged or foreign, so that it is trained anew."""
    try:
        return dict(checkpoint.read(path)["facts"])
    except (ValueError, KeyError):
        return {}


def resume(last: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The state of an interrupted training with the same settings, or nothing."""
    try:
        state = checkpoint.read(last)
    except (FileNotFoundError, ValueError):
        return {}
    return {} if differences(state["settings"], settings) else state


def differences(old: Mapping[str, Any], new: Mapping[str, Any], most: int = 4) -> str:
    """What differs between two nested settings, the first `most` for a person to read; empty when nothing does."""
    found = _differing(old, new)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += _differing(before, after, f"{prefix}{key}.")
        elif _plain(before) != _plain(after):
            found.append(f"{prefix}{key} {before} -> {after}")
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
