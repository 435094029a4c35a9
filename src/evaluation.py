"""Evaluation of attacks (work in progress)."""

from __future__ import annotations

from dataclasses import dataclass

from src.registry import ATTACKS, Listed


@dataclass(frozen=True, kw_only=True)
class Attack:
    """What is attacked, where and how strongly.

    Args:
        names: attacks to run, one after the other.
    """

    names: Listed[ATTACKS.Name] = ("pgd",)  # type: ignore[name-defined]
