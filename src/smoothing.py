"""Randomized smoothing (work in progress)."""

from __future__ import annotations

from dataclasses import dataclass

from src.registry import Count


@dataclass(frozen=True, kw_only=True)
class Certify:
    """Certification by randomized smoothing.

    Args:
        n0: noise draws that select the class.
    """

    n0: Count = 100
