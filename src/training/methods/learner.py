"""What a training method trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Learner:
    """The model under training, from the training stage to logits.

    A method calls it as `subject(x)`, in training mode, for the loss it descends. Whatever it crafts or estimates on
    the way goes through `quiet()`: evaluation mode, so that batch-norm statistics are not touched, and no random
    augmentation, so that the same x gives the same logits.

    Attributes:
        noisy: x -> logits in training mode, feature augmentation included.
        plain: x -> logits without augmentation.
        modules: what switches between the modes.
        bounds: lowest and highest legal value of x.
        generator: of the epoch's random numbers, on the device of x.
        smoothing: label smoothing.
    """

    noisy: Callable[[Tensor], Tensor]
    plain: Callable[[Tensor], Tensor]
    modules: nn.Module
    bounds: tuple[float, float]
    generator: torch.Generator
    smoothing: float

    def __call__(self, x: Tensor) -> Tensor:
        return self.noisy(x)

    @contextmanager
    def quiet(self) -> Iterator[Callable[[Tensor], Tensor]]:
        self.modules.eval()
        try:
            yield self.plain
        finally:
            self.modules.train()

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy against label probabilities [batch, classes]."""
        return F.cross_entropy(logits, y, label_smoothing=self.smoothing)

    def normal(self, x: Tensor) -> Tensor:
        """Standard normal numbers shaped as x."""
        return torch.randn(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)

    def uniform(self, x: Tensor) -> Tensor:
        """Uniform numbers on [-1, 1), shaped as x."""
        return torch.rand(x.shape, generator=self.generator, device=x.device, dtype=x.dtype) * 2 - 1
