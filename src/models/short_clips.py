"""Clips of fewer frames than a network without padding needs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def at_least(frames: int, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Features [batch, freq, time] and their mask [batch or 1, time], padded with zeros to this many frames, which the
    mask then leaves out; both as they are where there are enough.

    >>> x, mask = at_least(3, torch.ones(1, 2, 2), None)
    >>> x.shape, mask
    (torch.Size([1, 2, 3]), tensor([[ True,  True, False]]))
    """
    time = features.shape[-1]
    if time >= frames:
        return features, mask
    if mask is None:
        mask = torch.ones(1, time, dtype=torch.bool, device=features.device)
    return F.pad(features, (0, frames - time)), F.pad(mask, (0, frames - time), value=False)
