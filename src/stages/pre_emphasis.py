"""Pre-emphasis of the waveform: y[t] = x[t] - c x[t-1], with x[-1] = 0."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from src.victims.stage import Stage


class PreEmphasis(Stage):
    """First-order high-pass.

    Args:
        coefficient: of the previous sample, in [0, 1).
    """

    uses_mask = True

    def __init__(self, coefficient: float):
        super().__init__("pre_emphasis")
        self.coefficient = coefficient
        self.bounds = (-1 - coefficient, 1 + coefficient)
        self.lipschitz = 1 + coefficient

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time] -> [batch, time]; no echo of the last sample in the padding."""
        y = x - self.coefficient * F.pad(x, (1, 0))[..., :-1]
        return y if self.valid is None else y * self.valid

    def inverse(self, y: Tensor, x: Tensor) -> Tensor:
        """Exact: the recursive filter x[t] = y[t] + c x[t-1], as the product of (1 + (c / z)^(2^k)) over k."""
        shift = 1
        while shift < y.shape[-1]:
            y = y + self.coefficient**shift * F.pad(y, (shift, 0))[..., :-shift]
            shift *= 2
        return y
