"""Objectives of attacks. Each maps logits [batch, classes] and labels [batch] to one value per example, [batch],
that an attack maximizes: larger is nearer to success. With `targeted`, y holds the target labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

LossName = Literal["cross_entropy", "margin", "dlr"]


def cross_entropy(logits: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """Cross-entropy of the label, or minus that of the target."""
    loss = F.cross_entropy(logits, y, reduction="none")
    return -loss if targeted else loss


def margin(logits: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """Largest other logit minus that of the label, or logit of the target minus the largest other; positive exactly
    when the attack succeeds, whatever the sign of the logits (Carlini and Wagner 2017)."""
    label_logit = logits.gather(1, y[:, None]).squeeze(1)
    other = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return label_logit - other if targeted else other - label_logit


def dlr(logits: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020): the margin over the difference of the largest and third largest
    logit, which makes it invariant to scaling. Targeted: over the largest minus the mean of third and fourth.

    Raises:
        ValueError: fewer than 3 classes (4 when targeted).
    """
    n_needed = 4 if targeted else 3
    if logits.shape[1] < n_needed:
        raise ValueError(f"the DLR loss needs at least {n_needed} classes, this model has {logits.shape[1]}")
    top = logits.sort(1, descending=True).values
    scale = top[:, 0] - ((top[:, 2] + top[:, 3]) / 2 if targeted else top[:, 2])
    return margin(logits, y, targeted) / (scale + 1e-12)


def log_mean_probability(logits: Tensor, dim: int) -> Tensor:
    """Logarithm of the mean over `dim` (the noise draws) of the class probabilities, from logits [..., classes]; it
    serves as the logits of the classifier that is averaged over its noise."""
    return logits.log_softmax(-1).logsumexp(dim) - math.log(logits.shape[dim])


LOSSES: dict[LossName, Callable[[Tensor, Tensor, bool], Tensor]] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "dlr": dlr,
}


def fooled(logits: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """Whether the attack has succeeded, [batch] bool. NaN logits count as failures."""
    is_y = logits.argmax(1) == y
    return (is_y if targeted else ~is_y) & ~logits.isnan().any(1)
