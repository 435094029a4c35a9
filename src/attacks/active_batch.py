"""The examples that an attack still works on. Those that are done leave, so that the model is not asked about them any
more, and everything that belongs to an example leaves with it in one call."""

from __future__ import annotations

from typing import Any, TypeVarTuple

import torch
from torch import Tensor

from src.attacks.core import Best, Model, gradient, narrow
from src.losses import LOSSES, LossName, fooled, margin
from src.random_streams import RandomStreams
from src.threat import ThreatModel

State = TypeVarTuple("State")


class ActiveBatch:
    """The arguments of an attack for the examples still in the batch, and the best iterate of each.

    Args:
        best: of the whole batch, where an earlier run has found something.

    Attributes:
        model, x, y, threat, rng, targeted: the attack's arguments.
        index: places in the whole batch, [batch] long.
        best: the best iterates; those of the whole batch itself until somebody leaves.
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
        self.whole = self.best = Best.of(x) if best is None else best

    def __len__(self) -> int:
        return len(self.x)

    def keep(self, stays: Tensor, *state: *State) -> tuple[*State]:
        """Only the examples in `stays` [batch] bool stay; what was found for the others is already in its place.

        Args:
            state: what else the attack holds per example: tensors [batch, ...], lists and tuples of them, anything
                with a method `select(index)`, or None.

        Returns:
            the state of those that stay: the very same where nobody leaves.
        """
        index = stays.nonzero().flatten()
        if len(index) == len(self):
            return state
        self.finish()
        self.best, self.index = self.best.select(index), self.index[index]
        self.model, self.threat = narrow(self.model, index), self.threat.select(index)
        self.x, self.y, self.rng = self.x[index], self.y[index], self.rng.select(index)
        return _at(state, index)

    def finish(self) -> Tensor:
        """The best iterates of the whole batch."""
        self.whole.put(self.index, self.best)
        return self.whole.x

    def look(self, x_adv: Tensor, loss: LossName, first: bool) -> Tensor:
        """The gradient of the loss at x_adv, which enters `best`; with `first` the first success stays there."""
        grad, value, logits = gradient(self.model, x_adv, lambda logits: LOSSES[loss](logits, self.y, self.targeted))
        self.best.update(x_adv, value, fooled(logits, self.y, self.targeted), first)
        return grad

    def score(self, x_adv: Tensor, enter: bool = True) -> Tensor:
        """One query per example: the margin, larger is nearer to success and NaN is -inf, [batch]. With `enter`, x_adv
        enters `best`, where the first success stays."""
        logits = self.model(x_adv)
        value = margin(logits, self.y, self.targeted).nan_to_num(nan=-torch.inf)
        if enter:
            self.best.update(x_adv, value, fooled(logits, self.y, self.targeted), first=True)
        return value


def _at(part: Any, index: Tensor) -> Any:
    """What belongs to the examples at `index`."""
    if isinstance(part, list | tuple):
        return type(part)(_at(p, index) for p in part)
    return part[index] if isinstance(part, Tensor) else narrow(part, index)
