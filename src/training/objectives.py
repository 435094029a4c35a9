"""Training methods: each is one function that computes the loss of a batch.

`objective(model, x, y, *, smoothing, **own)`: `model` maps the representation x [batch, ...] to logits, y holds label
probabilities [batch, classes]; the result is a scalar to descend."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Model = Callable[[Tensor], Tensor]


def standard(model: Model, x: Tensor, y: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy."""
    return F.cross_entropy(model(x), y, label_smoothing=smoothing)


def gradient_penalty(model: Model, x: Tensor, y: Tensor, *, weight: float, smoothing: float = 0.0) -> Tensor:
    """Mean over the batch of CE_i + weight * ||d CE_i / d x_i||_1, by double back-propagation (Drucker and LeCun 1992;
    the L1 norm bounds the first-order effect of an L-infinity perturbation, Simon-Gabriel et al. 2019).

    The norm is the sum over the entries of one example's representation, so its size grows with their number. Batch
    norm in training mode makes CE_i depend on other examples too; that part is counted with x_i.
    """
    x = x.detach().requires_grad_()
    losses = F.cross_entropy(model(x), y, label_smoothing=smoothing, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
    return losses.mean() + weight * gradient.flatten(1).abs().sum(1).mean()


OBJECTIVES: dict[str, Callable[..., Tensor]] = {"standard": standard, "gradient_penalty": gradient_penalty}
