"""Logarithm of a mel spectrogram: natural with an offset, or decibels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from src.victims.stage import Stage


class Log(Stage):
    """log(x + offset); its slope is at most 1 / offset.

    Args:
        offset: added before the logarithm; positive.
    """

    def __init__(self, offset: float = 1e-6, name: str = "log_mel"):
        super().__init__(name)
        self.offset = offset
        self.bounds = (math.log(offset), math.inf)
        self.lipschitz = 1 / offset

    def forward(self, x: Tensor) -> Tensor:
        """[batch, n_mels, frames] -> the same shape."""
        # Noise or an attack may make mel values negative; they count as 0, so that the logarithm is finite.
        return (x.clamp_min(0) + self.offset).log()

    def inverse(self, y: Tensor, x: Tensor) -> Tensor:
        return (y.exp() - self.offset).clamp_min(0)


class Decibel(Stage):
    """10 log10(max(x, floor)) of a power spectrogram, as librosa.power_to_db.

    Args:
        floor: smallest power.
        relative: 0 dB is the clip's maximum instead of a power of 1.
        top_db: dynamic range below the maximum, dB; lower values are raised to its end. 0 does not limit it.
    """

    def __init__(self, floor: float = 1e-10, relative: bool = False, top_db: float = 80.0, name: str = "log_mel"):
        super().__init__(name)
        self.floor, self.relative, self.top_db = floor, relative, top_db
        self.uses_mask = relative or top_db > 0
        self.bounds = (10 * math.log10(floor), math.inf)
        if relative:
            self.bounds = (-top_db if top_db else -math.inf, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, n_mels, frames] -> the same shape, dB."""
        level = 10 * x.clamp_min(self.floor).log10()
        heard = level if self.valid is None else level.masked_fill(~self.valid, -math.inf)
        peak = heard.amax((-2, -1), keepdim=True).clamp_min(10 * math.log10(self.floor))
        if self.relative:
            level = level - peak
            peak = torch.zeros_like(peak)
        return level.maximum(peak - self.top_db) if self.top_db else level

    def inverse(self, y: Tensor, x: Tensor) -> Tensor:
        """Powers whose decibels are y; where y is at the floor or the end of the range, at most the power of x."""
        peak = x.amax((-2, -1), keepdim=True).clamp_min(self.floor)
        reference = peak if self.relative else torch.ones_like(peak)
        power = reference * 10 ** (y / 10)
        loudest = peak if self.relative else power.amax((-2, -1), keepdim=True)
        floor = (loudest * 10 ** (-self.top_db / 10)).clamp_min(self.floor) if self.top_db else self.floor
        return torch.where(power <= floor * (1 + 1e-5), power.minimum(x), power)
