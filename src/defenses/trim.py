"""Removal of silence by the energy of short frames, a simple voice activity detector."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from src.registry import DEFENSES, Positive
from src.victims.stage import Defense


@DEFENSES.register("trim")
class Trim(Defense):
    """Drop the frames that are quiet beside the loudest frame of the clip; what remains moves together, and zeros at
    the end keep the length. The gradient passes through the samples that are kept, the choice of frames fixed.

    The frames beyond the true length of a clip are zeros and are dropped anyway; its true length stays as it is.

    Args:
        threshold_db: frames more than this far below the loudest one are dropped, dB.
        frame_ms: length of the frames, which do not overlap, ms.
    """

    bounds = (-1.0, 1.0)

    def __init__(self, *, sample_rate: int, threshold_db: Positive = 40.0, frame_ms: Positive = 25.0):
        super().__init__("trim")
        self.ratio, self.length = 10 ** (-threshold_db / 10), max(1, round(sample_rate * frame_ms / 1000))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time] -> [batch, time]."""
        n = x.shape[-1]
        frames = F.pad(x, (0, -n % self.length)).reshape(len(x), -(-n // self.length), self.length)
        # Compared by energy: the last frame may have fewer samples, and counts as if zeros followed.
        energy = frames.detach().square().sum(2)
        kept = energy >= self.ratio * energy.amax(1, keepdim=True)
        order = kept.logical_not().to(energy.dtype).argsort(dim=1, stable=True)[..., None].expand_as(frames)
        return (frames * kept[..., None]).gather(1, order).flatten(1)[:, :n]
