"""The attacked model behind the grid of the threat model: it gets every iterate as the 16-bit clip that would be
written of it, so that a success is one of the written clip. The attack itself keeps real numbers: rounded iterates
would stand still where a step is less than half a grid step."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from src.attacks.model import Model, draws_of, narrow, votes
from src.threat import ThreatModel
from src.victims.adaptive import straight_through


class OnGrid:
    """A model that sees `threat.snap` of its input; the gradient passes the rounding unchanged (straight-through).

    Args:
        model: from inputs [batch, ...] to logits.
        x: clean inputs on the grid, [batch, ...].
        threat: with a grid, its budget floored.
    """

    def __init__(self, model: Model, x: Tensor, threat: ThreatModel):
        # An attack that runs another one hands its model on.
        self.model: Model = model.model if isinstance(model, OnGrid) else model
        self.x, self.threat, self.draws = x, threat, draws_of(self.model)

    def __call__(self, x_adv: Tensor) -> Tensor:
        snapped = self.threat.snap(x_adv.detach(), self.x)
        return self.model(straight_through(snapped, x_adv) if torch.is_grad_enabled() else snapped)

    def votes(self, x_adv: Tensor) -> Tensor | None:
        """As `Voter.votes`, on the grid."""
        return votes(self.model, self.threat.snap(x_adv, self.x))

    def select(self, index: Tensor) -> Self:
        return type(self)(narrow(self.model, index), self.x[index], self.threat.select(index))
