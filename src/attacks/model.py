"""The model under attack: any callable from inputs to logits, what it may keep for every example of a batch, and when
it counts as fooled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor

from src.losses import fooled

Model = Callable[[Tensor], Tensor]
"""From inputs [batch, ...] to logits [batch, classes]. A model that keeps values per example (counts, random streams)
is `PerExample` as well."""
T = TypeVar("T")
WON = 0.9
"""Share of the votes that a success takes. An attack asks again and again, and half of the votes would often be won by
chance on the decision boundary."""


@runtime_checkable
class PerExample(Protocol):
    """A model or a state that keeps values for every example of the batch."""

    def select(self, index: Tensor) -> Self:
        """The model or state of the examples at `index`, [batch] long."""
        ...


def narrow(part: T, index: Tensor) -> T:
    """The model or state of the examples at `index`; unchanged where it keeps nothing per example."""
    return part.select(index) if isinstance(part, PerExample) else part


@runtime_checkable
class Voter(Protocol):
    """A model that is randomized, or may have a randomized one inside.

    Attributes:
        draws: that it makes per call; 0 where nothing is random.
    """

    @property
    def draws(self) -> int: ...

    def votes(self, x: Tensor) -> Tensor | None:
        """Logits of fresh single draws at x [batch, ...], [votes, batch, classes]; None where nothing is random."""
        ...


def draws_of(model: Model) -> int:
    """Draws that a randomized model makes per call; 0 for a deterministic one."""
    return model.draws if isinstance(model, Voter) else 0


def votes(model: Model, x: Tensor) -> Tensor | None:
    """`Voter.votes` of any model."""
    return model.votes(x) if isinstance(model, Voter) else None


def confirmed(model: Model, x_adv: Tensor, success: Tensor, y: Tensor, targeted: bool) -> Tensor:
    """The successes that stand, [batch] bool: those of a randomized model need a vote over fresh draws, for the draws
    that an attack has adapted to flatter it.

    Args:
        success: by the logits that the attack got for x_adv, [batch] bool.
    """
    if not isinstance(model, Voter):
        return success
    index = success.nonzero().flatten()
    if not len(index) or (ballots := votes(narrow(model, index), x_adv[index])) is None:
        return success
    return success.index_put((index,), won_by_vote(ballots, y[index], targeted))


def won_by_vote(ballots: Tensor, y: Tensor, targeted: bool) -> Tensor:
    """Whether enough draws [votes, batch, classes] are fooled, [batch] bool."""
    return torch.stack([fooled(logits, y, targeted) for logits in ballots]).float().mean(0) >= WON


def succeeds(model: Model, x_adv: Tensor, logits: Tensor, y: Tensor, targeted: bool) -> Tensor:
    """Whether x_adv [batch, ...], where the model has these logits, is a success of an attack, [batch] bool."""
    return confirmed(model, x_adv, fooled(logits, y, targeted), y, targeted)
