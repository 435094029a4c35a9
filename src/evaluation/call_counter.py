"""How often an attack called a model and differentiated it, per example."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attacks.core import Model, narrow


class CallCounter:
    """A model that counts, for every example, how often it was called and differentiated."""

    def __init__(self, model: Model, index: Tensor, forwards: Tensor, backwards: Tensor):
        self.model, self.index, self.forwards, self.backwards = model, index, forwards, backwards

    @classmethod
    def start(cls, model: Model, count: int) -> CallCounter:
        """A counter for `count` examples, all at 0."""
        zeros = torch.zeros(count, dtype=torch.long)
        return cls(model, torch.arange(count), zeros, zeros.clone())

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        # A black-box attack may ask for several points per example in one call.
        times = max(1, len(x) // max(1, len(self.index)))
        self.forwards[self.index] += times
        if logits.requires_grad:
            logits.register_hook(lambda _: self._count_backward(times))  # type: ignore[no-untyped-call]
        return logits

    def _count_backward(self, times: int) -> None:
        self.backwards[self.index] += times

    def select(self, index: Tensor) -> CallCounter:
        """The same counts, for the examples at `index`."""
        return CallCounter(narrow(self.model, index), self.index[index.cpu()], self.forwards, self.backwards)
