"""Zeros behind the end of each clip: what a defense puts there would reach the last frames of the clip."""

from __future__ import annotations

from torch import Tensor

from src.victims.stage import Stage


class ZeroPadding(Stage):
    """Set the padding of a waveform to zero, as it is where a clip stands alone. Representations with more dimensions
    pass unchanged: the stages that mix their frames leave padding out themselves."""

    uses_mask = True
    lipschitz = 1.0

    def __init__(self) -> None:
        super().__init__("zero_padding")

    def forward(self, x: Tensor) -> Tensor:
        """[batch, ...] -> the same shape."""
        return x if self.valid is None or x.dim() != 2 else x * self.valid
