"""How often an attack called a model and differentiated it, per example. Of a randomized model every draw counts."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attacks.model import Model, draws_of, narrow, votes


class CallCounter:
    """A model that counts, for every example, how often it was called and differentiated.

    Args:
        model: what is called; a randomized one makes a pass per draw.
        index: positions of the examples in the counts, [batch] long.
        forwards: counts of all examples, changed in place.
        backwards: as forwards.
    """

    def __init__(self, model: Model, index: Tensor, forwards: Tensor, backwards: Tensor):
        self.model, self.index, self.forwards, self.backwards = model, index, forwards, backwards
        self.draws = draws_of(model)

    @classmethod
    def start(cls, model: Model, count: int) -> CallCounter:
        """A counter for `count` examples, all at 0."""
        zeros = torch.zeros(count, dtype=torch.long)
        return cls(model, torch.arange(count), zeros, zeros.clone())

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        times = max(1, self.draws)
        self.forwards[self.index] += times
        if logits.requires_grad:
            logits.register_hook(lambda _: self._count_backward(times))  # type: ignore[no-untyped-call]
        return logits

    def votes(self, x: Tensor) -> Tensor | None:
        """As `Voter.votes`; every vote is a pass."""
        logits = votes(self.model, x)
        if logits is not None:
            self.forwards[self.index] += len(logits)
        return logits

    def _count_backward(self, times: int) -> None:
        self.backwards[self.index] += times

    def select(self, index: Tensor) -> CallCounter:
        """The same counts, for the examples at `index`."""
        return CallCounter(narrow(self.model, index), self.index[index.cpu()], self.forwards, self.backwards)
