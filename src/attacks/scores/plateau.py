"""A step size per example that is halved where its own objective stops rising, as FAKEBOB does. The history belongs to
the example: others in the batch neither trigger nor delay it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Plateau:
    """The step sizes of a batch.

    Attributes:
        rate: present step size, [batch].
        history: the last values of the objective, oldest first, [batch, patience]; -inf where there is none yet.
        least: smallest step size.
    """

    rate: Tensor
    history: Tensor
    least: float

    @classmethod
    def of(cls, x: Tensor, rate: float, least: float, patience: int) -> Self:
        """Initial state for the examples x [batch, ...].

        Args:
            patience: number of values that are compared, first with last.
        """
        return cls(x.new_full((len(x),), rate), x.new_full((len(x), patience), -torch.inf), least)

    def observe(self, value: Tensor) -> Self:
        """The state after a value of the objective [batch], which is maximized: the rate is halved where the last of
        `patience` values is below the first, and the history starts anew there."""
        history = torch.cat([self.history[:, 1:], value[:, None]], 1)
        stalled = history[:, -1] < history[:, 0]
        rate = torch.where(stalled, (self.rate / 2).clamp_min(self.least), self.rate)
        return type(self)(rate, torch.where(stalled[:, None], -torch.inf, history), self.least)

    def select(self, index: Tensor) -> Self:
        return type(self)(self.rate[index], self.history[index], self.least)
