"""Gradient regularization by double back-propagation (Drucker and LeCun 1992; Simon-Gabriel et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from src.registry import METHODS
from src.training.methods.learner import Learner


@METHODS.register("gradient_penalty")
def gradient_penalty(learner: Learner, x: Tensor, y: Tensor, *, weight: float) -> Tensor:
    """Mean over the batch of CE_i + weight * ||d CE_i / d x_i||_1: the L1 norm bounds the first-order effect of an
    L-infinity perturbation. Its weights are the list [TRAINING] gradient_penalty, one model each.

    The norm is the sum over the entries of one example's representation, so its size grows with their number. Batch
    norm in training mode makes CE_i depend on other examples too; that part is counted with x_i.
    """
    x = x.detach().requires_grad_()
    losses = F.cross_entropy(learner(x), y, label_smoothing=learner.smoothing, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
    return losses.mean() + weight * gradient.flatten(1).abs().sum(1).mean()
