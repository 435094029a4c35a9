"""Quantization of the waveform to fewer levels (Yang et al. 2019; QT of the speaker-recognition study)."""

from __future__ import annotations

from torch import Tensor

from src.registry import DEFENSES, Count
from src.victims.stage import Defense


@DEFENSES.register("quantize")
class Quantize(Defense):
    """Round samples to multiples of a step.

    Args:
        step: in units of 16-bit samples.
    """

    bounds = (-1.0, 1.0)
    differentiable = False

    def __init__(self, *, sample_rate: int, step: Count = 128):
        super().__init__("quantize")
        self.step = step / 32768

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time] -> [batch, time]."""
        return ((x / self.step).round() * self.step).clamp(-1, 1)
