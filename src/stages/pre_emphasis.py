"""Pre-emphasis: y[t] = x[t] - c x[t-1], the first sample as it is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from src.victim import Stage


class PreEmphasis(Stage):
    """First-order high-pass on the waveform.

    Args:
        coefficient: of the previous sample, in [0, 1).
    """

    def __init__(self, coefficient: float):
        super().__init__("pre_emphasis")
        self.coefficient = coefficient
        self.bounds = (-1 - coefficient, 1 + coefficient)
        self.lipschitz = 1 + coefficient

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time] -> [batch, time]."""
        return x - self.coefficient * F.pad(x, (1, 0))[..., :-1]

    def inverse(self, y: Tensor, x: Tensor) -> Tensor:
        """Exact: the recursive filter x[t] = y[t] + c x[t-1], evaluated by its truncated impulse response."""
        length = min(y.shape[-1], 2048)
        kernel = self.coefficient ** torch.arange(length - 1, -1, -1, dtype=y.dtype, device=y.device)
        return F.conv1d(F.pad(y[:, None], (length - 1, 0)), kernel[None, None]).squeeze(1)
