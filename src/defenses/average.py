"""Average smoothing over time (AS of the speaker-recognition study)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from src.registry import DEFENSES, Count
from src.victims.stage import Defense


def check(options: Mapping[str, Any]) -> None:
    if options["width"] % 2 == 0:
        raise ValueError(f"the width of an average filter must be odd, got {options['width']}")


@DEFENSES.register("average", check_options=check)
class Average(Defense):
    """Running mean, with zeros beyond the ends.

    Args:
        width: samples (frames, at a spectrogram) in the window, odd.
    """

    bounds = (-1.0, 1.0)
    lipschitz = 1.0
    waveform_only = False

    def __init__(self, *, sample_rate: int, width: Count = 17):
        super().__init__("average")
        check({"width": width})
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """[batch, ..., time] -> the same shape."""
        rows = x.reshape(-1, 1, x.shape[-1])
        return F.avg_pool1d(rows, self.width, 1, self.width // 2).view_as(x)
