"""Proportional additive Gaussian noise (PAGN; Mendes and Hogan 2020, "Defending against imperceptible audio adversarial
examples using proportional additive Gaussian noise"): louder where the clip is louder and masks it."""

from __future__ import annotations

import torch
from torch import Tensor

from src.random_streams import RandomStreams
from src.registry import DEFENSES, NonNegative
from src.victims.stage import Defense

WINDOW, HOP = 512, 128


@DEFENSES.register("pagn")
class Pagn(Defense):
    """Fresh Gaussian noise in every time-frequency bin, in phase with the clip, its deviation proportional to the bin.

    The study's deviation follows the clip's masking threshold; here it follows the clip's own magnitude. As the noise
    depends on the clip, no theorem of randomized smoothing applies: the defense is empirical and has no radius.

    Args:
        ratio: standard deviation of the noise in units of the bin's magnitude.
    """

    randomized = True

    def __init__(self, *, sample_rate: int, ratio: NonNegative = 0.5):
        super().__init__("pagn")
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time] -> [batch, time], noise from torch's global stream."""
        if not len(x):
            return x
        bins = self._bins(x)
        return self._add(x, bins, torch.randn_like(bins.real))

    def draw(self, x: Tensor, rng: RandomStreams) -> Tensor:
        """The same with noise from the examples' own streams."""
        if not len(x):
            return x
        bins = self._bins(x)
        return self._add(x, bins, rng.normal(bins.real))

    def _bins(self, x: Tensor) -> Tensor:
        window = torch.hann_window(WINDOW, device=x.device)
        return torch.stft(x, WINDOW, HOP, window=window, pad_mode="constant", return_complex=True)

    def _add(self, x: Tensor, bins: Tensor, noise: Tensor) -> Tensor:
        window = torch.hann_window(WINDOW, device=x.device)
        return x + torch.istft(bins * noise * self.ratio, WINDOW, HOP, window=window, length=x.shape[-1])
