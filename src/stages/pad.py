"""Zero padding at the end, for a classifier whose input is longer than the clips."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from src.victims.stage import Stage


class Pad(Stage):
    """Append zeros up to `n_samples`; longer input passes unchanged."""

    bounds = (-1.0, 1.0)
    lipschitz = 1.0

    def __init__(self, n_samples: int):
        super().__init__("pad")
        self.n_samples = n_samples

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time] -> [batch, max(time, n_samples)]."""
        return F.pad(x, (0, max(0, self.n_samples - x.shape[-1])))

    def inverse(self, y: Tensor, x: Tensor) -> Tensor:
        return y[..., : x.shape[-1]]

    def mask(self, valid: Tensor) -> Tensor:
        return F.pad(valid, (0, max(0, self.n_samples - valid.shape[-1])), value=False)
