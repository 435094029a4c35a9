"""Median smoothing over time (MS of the speaker-recognition study)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from src.registry import DEFENSES, Count
from src.victims.stage import Defense


def check(options: Mapping[str, Any]) -> None:
    if options["width"] % 2 == 0:
        raise ValueError(f"the width of a median filter must be odd, got {options['width']}")


@DEFENSES.register("median", check_options=check)
class Median(Defense):
    """Running median; the gradient flows to the sample that is the median.

    Args:
        width: samples (frames, at a spectrogram) in the window, odd.
    """

    bounds = (-1.0, 1.0)
    waveform_only = False

    def __init__(self, *, sample_rate: int, width: Count = 7):
        super().__init__("median")
        check({"width": width})
        self.width = width
        # The median of a window is 1-Lipschitz in the largest change, and each sample lies in `width` windows.
        self.lipschitz = width**0.5

    def forward(self, x: Tensor) -> Tensor:
        """[batch, ..., time] -> the same shape."""
        side = self.width // 2
        return F.pad(x, (side, side)).unfold(-1, self.width, 1).median(-1).values
