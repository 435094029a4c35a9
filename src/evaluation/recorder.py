"""The path of an attack: the margin at every point of the ball that it asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from src.attacks.model import Model, draws_of, narrow, votes, won_by_vote
from src.losses import margin
from src.threat import ThreatModel, norm_of


@dataclass(frozen=True, eq=False)
class Recorder:
    """A model that records the margin of every example at every call, so that the path of an attack can be judged
    afterwards without the attack's help. Calls outside the budget are left out: they are on the way to the ball.

    Attributes:
        model: what is attacked.
        x: inputs, [batch, ...].
        y: labels (targets when targeted), [batch].
        threat: budget of the examples.
        index: places of the examples in the whole batch, [batch] long.
        paths: the margins of every example of the whole batch.
        won: the examples of the whole batch that a point of the budget fooled: by the margin, or, where the model is
            randomized, by a vote.
    """

    model: Model
    x: Tensor
    y: Tensor
    threat: ThreatModel
    targeted: bool
    index: Tensor
    paths: list[list[float]]
    won: set[int]

    @classmethod
    def of(cls, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, targeted: bool) -> Self:
        """With nothing recorded yet."""
        return cls(model, x, y, threat, targeted, torch.arange(len(y)), [[] for _ in range(len(y))], set())

    def __call__(self, z: Tensor) -> Tensor:
        logits = self.model(z)
        if z.shape == self.x.shape:
            values = margin(logits.detach(), self.y, self.targeted).tolist()
            for row, value, legal in zip(self.index.tolist(), values, self._inside(z), strict=True):
                if legal:
                    self.paths[row].append(value)
                    if value > 0 and not self.draws:
                        self.won.add(row)
        return logits

    @property
    def draws(self) -> int:
        """As `Voter.draws`."""
        return draws_of(self.model)

    def votes(self, z: Tensor) -> Tensor | None:
        """As `Voter.votes`."""
        ballots = votes(self.model, z)
        if ballots is not None:
            won = won_by_vote(ballots, self.y, self.targeted).tolist()
            rows = zip(self.index.tolist(), won, self._inside(z), strict=True)
            self.won.update(row for row, success, legal in rows if success and legal)
        return ballots

    def _inside(self, z: Tensor) -> list[bool]:
        # A thousandth more than eps: float32 does not land on the border exactly.
        inside = norm_of(z.detach() - self.x, self.threat.norm) <= 1.001 * self.threat.budgets(self.x)
        return inside.tolist()

    def select(self, index: Tensor) -> Self:
        return type(self)(
            narrow(self.model, index), self.x[index], self.y[index], self.threat.select(index), self.targeted,
            self.index[index.cpu()], self.paths, self.won,
        )  # fmt: skip
