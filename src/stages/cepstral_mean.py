"""Cepstral mean normalization over a sliding window (Viikki and Laurila 1998), as speaker recognizers use it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from src.victims.stage import Stage


class CepstralMean(Stage):
    """Subtract from each frame the mean of the frames around it: of `window` frames with the frame in their middle.
    Near the ends of the clip the window is shifted so that it stays inside; a clip shorter than it is one window.

    Args:
        window: frames; 0 for the mean of the whole clip.
    """

    uses_mask = True

    def __init__(self, window: int = 300, name: str = "cmvn"):
        super().__init__(name)
        self.window = window
        # The mean of a whole clip is a projection. Of the windows, each sums to 1, and no frame is in more than
        # 2 window - 1 of them, as the middle one of a clip of that length: |mean|_2^2 <= |mean|_1 |mean|_inf < 2.
        self.lipschitz = 1 + math.sqrt(2) if window else 1.0

    def windows(self, first: Tensor, stop: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """(start, stop) of the window of each frame, [rows, frames], for clips from `first` to `stop` [rows, 1]."""
        if not self.window:
            return first.expand(-1, frames), stop.expand(-1, frames)
        start = torch.arange(frames, device=first.device) - self.window // 2
        start = start.minimum(stop - self.window).maximum(first)
        return start, (start + self.window).minimum(stop)

    def mean(self, x: Tensor) -> Tensor:
        """The mean around each frame of x [batch, n, frames]."""
        frames = x.shape[-1]
        if self.valid is None:
            first, stop = x.new_zeros(1, 1, dtype=torch.long), x.new_full((1, 1), frames, dtype=torch.long)
        else:
            valid = self.valid.flatten(1, -2).any(1)
            first = valid.int().argmax(1, keepdim=True)
            stop = 1 + (valid * torch.arange(frames, device=x.device)).amax(1, keepdim=True)
        start, stop = self.windows(first, stop, frames)
        # Differences of running sums; in float64, so that they are exact enough for clips of any length.
        sums = torch.nn.functional.pad(x.double().cumsum(-1), (1, 0))

        def at(index: Tensor) -> Tensor:
            return sums.gather(-1, index[:, None].expand(*x.shape[:-1], -1))

        return ((at(stop) - at(start)) / (stop - start)[:, None]).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, n, frames] -> the same shape; 0 in the padding."""
        y = x - self.mean(x)
        return y if self.valid is None else y * self.valid

    def inverse(self, y: Tensor, x: Tensor) -> Tensor:
        """y with the means of x."""
        restored = y + self.mean(x)
        return restored if self.valid is None else torch.where(self.valid, restored, x)
