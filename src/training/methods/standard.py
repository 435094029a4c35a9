"""Standard training: the mean cross-entropy."""

from __future__ import annotations

from torch import Tensor

from src.registry import METHODS
from src.training.methods.learner import Learner


@METHODS.register("standard")
def standard(learner: Learner, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of the clips."""
    return learner.loss(learner(x), y)
