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

    The norm is a sum over all entries of the representation of one example, so it grows with their number. In training
    mode batch norm makes CE_i depend on the other examples too; that part of the gradient is assigned to x_i.
    """
    x = x.detach().requires_grad_()
    losses = F.cross_entropy(learner(x), y, label_smoothing=learner.smoothing, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
    return losses.mean() + weight * gradient.flatten(1).abs().sum(1).mean()
