"""The model under training, as a training method sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Learner:
    """The model under training, from the training stage to logits.

    A method calls it as `learner(x)`, in training mode, for the loss that is minimized. Adversarial examples and
    estimates use the model of `evaluating()`: evaluation mode, so that batch-norm statistics do not change, and no
    random augmentation, so that the same x gives the same logits.

    Attributes:
        augmented: x [batch, ...] -> logits [batch, classes], with feature augmentation.
        plain: the same without augmentation.
        modules: the module that is switched between training and evaluation mode.
        bounds: lowest and highest legal value of x.
        generator: of the random numbers of the epoch, on the device of x.
        smoothing: label smoothing.
        statistics: batch-norm statistics of adversarial examples, where a method keeps them apart; it lives as long as
            the training.
        taught: logits of a teacher for the batch, [batch, classes], in the classes of the learner; None without one.
    """

    augmented: Callable[..., Tensor]
    plain: Callable[[Tensor], Tensor]
    modules: nn.Module
    bounds: tuple[float, float]
    generator: torch.Generator
    smoothing: float
    statistics: dict[str, Tensor] = field(default_factory=dict)
    taught: Tensor | None = None

    def __call__(self, x: Tensor, first: int = 0) -> Tensor:
        """Logits of x [n, ...].

        Args:
            first: position in the batch of the first of them, where they are not the first n.
        """
        return self.augmented(x, first) if first else self.augmented(x)

    @contextmanager
    def evaluating(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """The model in evaluation mode and without augmentation; training mode is restored afterwards."""
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
