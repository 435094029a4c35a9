"""Plain training: the mean cross-entropy."""

from __future__ import annotations

from torch import Tensor

from src.registry import METHODS
from src.training.methods.subject import Subject


@METHODS.register("standard")
def standard(subject: Subject, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of the clips as they are."""
    return subject.loss(subject(x), y)
