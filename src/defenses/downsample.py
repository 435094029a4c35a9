"""Down-sampling and up-sampling (DS of the speaker-recognition study; Yuan et al. 2018, "CommanderSong")."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt, Lt
from torch import Tensor
from torch.nn import functional as F
from torchaudio.functional import resample

from src.registry import DEFENSES
from src.victims.stage import Defense


@DEFENSES.register("downsample")
class Downsample(Defense):
    """Resample to a share of the sample rate and back, by windowed-sinc interpolation: what lies above the lower rate's
    half is lost.

    Args:
        ratio: of the lower rate to the sample rate; the lower rate is rounded to whole Hz.
    """

    def __init__(self, *, sample_rate: int, ratio: Annotated[float, Gt(0), Lt(1)] = 0.45):
        super().__init__("downsample")
        self.sample_rate, self.lower_rate = sample_rate, max(1, round(ratio * sample_rate))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time] -> [batch, time]."""
        if not len(x):
            return x
        lower = resample(x, self.sample_rate, self.lower_rate)
        back = resample(lower, self.lower_rate, self.sample_rate)
        return F.pad(back, (0, x.shape[-1] - back.shape[-1]))  # cuts what exceeds the length
