"""Several substitutes at once (Liu et al. 2017): an adversarial clip that fools models of different kinds is more
likely to fool one that is not known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from src.attacks.model import Model, draws_of, narrow, votes


class Substitutes:
    """Models of one input as one model, whose logits are the mean of their log probabilities. Their front ends may
    differ, for they meet at the input.

    Args:
        models: from inputs [batch, ...] to logits [batch, classes].
        orders: for each model, where it has each of the classes of the first one, [classes] long.
    """

    def __init__(self, models: Sequence[Model], orders: Sequence[Tensor]):
        assert len(models) == len(orders)
        self.models, self.orders = tuple(models), tuple(orders)

    def __call__(self, x: Tensor) -> Tensor:
        return self._mean([model(x) for model in self.models])

    def _mean(self, logits: Sequence[Tensor]) -> Tensor:
        """Of the log probabilities [..., batch, classes], in the classes of the first model."""
        parts = [part.log_softmax(-1)[..., order] for part, order in zip(logits, self.orders, strict=True)]
        return torch.stack(parts).mean(0)

    @property
    def draws(self) -> int:
        """As `Voter.draws`."""
        return max(map(draws_of, self.models))

    def votes(self, x: Tensor) -> Tensor | None:
        """As `Voter.votes`: a model without randomness gives the same logits at every vote."""
        ballots = [votes(model, x) for model in self.models]
        if all(ballot is None for ballot in ballots):
            return None
        fixed = [model(x) if ballot is None else ballot for model, ballot in zip(self.models, ballots, strict=True)]
        return self._mean(fixed_to_draws(fixed))

    def select(self, index: Tensor) -> Self:
        return type(self)([narrow(model, index) for model in self.models], self.orders)


def fixed_to_draws(logits: Sequence[Tensor]) -> list[Tensor]:
    """Logits [batch, classes] of models without randomness repeated to as many draws as the others have."""
    draws = max(len(part) for part in logits if part.dim() == 3)
    return [part if part.dim() == 3 else part.expand(draws, *part.shape) for part in logits]


def orders_of(classes: Sequence[Sequence[str]]) -> list[Tensor]:
    """Where each model has each of the classes of the first one.

    Raises:
        ValueError: a model has other classes.
    """
    for other in classes:
        if sorted(other) != sorted(classes[0]):
            odd = sorted(set(other) ^ set(classes[0]))
            raise ValueError(f"models that are attacked together need the same classes; only one has {', '.join(odd)}")
    return [torch.tensor([list(other).index(name) for name in classes[0]]) for other in classes]
