"""Training (work in progress)."""

from __future__ import annotations

from dataclasses import dataclass
from src.registry import Count


@dataclass(frozen=True, kw_only=True)
class Training:
    """How models are trained.

    Args:
        epochs: passes over the training clips.
    """

    epochs: Count = 30
