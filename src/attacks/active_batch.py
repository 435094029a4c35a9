"""The active examples of a batch. An attack drops the examples it has finished, so that the model is not evaluated on
them any more, and one call drops everything that belongs to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVarTuple

import torch
from torch import Tensor

from src.attacks.core import Best, gradient
from src.attacks.model import Model, narrow, succeeds
from src.losses import LOSSES, LossName, margin
from src.random_streams import RandomStreams
from src.threat import ThreatModel

State = TypeVarTuple("State")
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits, y, target) -> value to maximize, [batch]."""


class ActiveBatch:
    """The arguments of an attack for the active examples, and the best iterate of each.

    Args:
        best: the best iterates of an earlier run on the full batch, to improve on.

    Attributes:
        model, x, y, threat, rng, targeted: the attack's arguments for the active examples.
        index: positions of the active examples in the full batch, [batch] long.
        best: their best iterates; the same object as `full_best` until the first example is dropped.
        full_best: the best iterates of the full batch.
    """

    def __init__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        rng: RandomStreams,
        targeted: bool,
        best: Best | None = None,
    ):
        self.model, self.x, self.y, self.threat = model, x, y, threat
        self.rng, self.targeted = rng, targeted
        self.index = torch.arange(len(x), device=x.device)
        self.full_best = self.best = Best.of(x) if best is None else best

    def __len__(self) -> int:
        return len(self.x)

    def keep(self, active: Tensor, *state: *State) -> tuple[*State]:
        """Drop the examples that are not in `active` [batch] bool, after storing their best iterates.

        Args:
            state: what else the attack holds per example: tensors [batch, ...], lists and tuples of them, anything
                `PerExample`, or None.

        Returns:
            the state of the examples that remain; the same objects where none is dropped.
        """
        index = active.nonzero().flatten()
        if len(index) == len(self):
            return state
        self.finish()
        self.best, self.index = self.best.select(index), self.index[index]
        self.model, self.threat = narrow(self.model, index), self.threat.select(index)
        self.x, self.y, self.rng = self.x[index], self.y[index], self.rng.select(index)
        return _select(state, index)

    def finish(self) -> Tensor:
        """Store the best iterates of the active examples; returns those of the full batch, [batch, ...]."""
        self.full_best.put(self.index, self.best)
        return self.full_best.x

    def gradient_at(self, x_adv: Tensor, loss: LossName, first: bool) -> Tensor:
        """Gradient of the loss at x_adv, [batch, ...]. Updates `best`; with `first` an example keeps its first
        success."""
        return self.gradient_of(x_adv, self.y, lambda logits, y, _: LOSSES[loss](logits, y, self.targeted), first)

    def gradient_of(self, x_adv: Tensor, target: Tensor, objective: Objective, first: bool) -> Tensor:
        """As `gradient_at`, of any objective; `target` [batch] are the classes that it aims at."""
        grad, value, logits = gradient(self.model, x_adv, lambda logits: objective(logits, self.y, target))
        self.best.update(x_adv, value, succeeds(self.model, x_adv, logits, self.y, self.targeted), first)
        return grad

    def score(self, x_adv: Tensor, enter: bool = True) -> Tensor:
        """One query per example: the margin at x_adv, [batch]; larger is nearer to success, and NaN counts as -inf.
        With `enter`, updates `best`, where an example keeps its first success."""
        logits = self.model(x_adv)
        value = margin(logits, self.y, self.targeted).nan_to_num(nan=-torch.inf)
        if enter:
            self.best.update(x_adv, value, succeeds(self.model, x_adv, logits, self.y, self.targeted), first=True)
        return value


def _select(part: Any, index: Tensor) -> Any:
    """The entries of the examples at `index`, of whatever `ActiveBatch.keep` accepts."""
    if isinstance(part, list | tuple):
        return type(part)(_select(p, index) for p in part)
    return part[index] if isinstance(part, Tensor) else narrow(part, index)
