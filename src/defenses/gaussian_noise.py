"""Randomized smoothing as a defense (Lecuyer et al. 2019; Cohen et al. 2019): Gaussian noise and the vote of many
draws."""

from __future__ import annotations

import torch
from torch import Tensor

from src.random_streams import RandomStreams
from src.registry import DEFENSES, NonNegative
from src.victims.stage import Defense


@DEFENSES.register("gaussian_noise")
class GaussianNoise(Defense):
    """Add fresh white noise of one standard deviation to every clip, whatever its level; the most frequent label of
    the draws counts. The certificate that belongs to it is that of `certify.py`, at the same place and sigma.

    Args:
        sigma: standard deviation, in the units of the representation.
    """

    randomized = True
    waveform_only = False

    def __init__(self, *, sample_rate: int, sigma: NonNegative = 0.01):
        super().__init__("gaussian_noise")
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        """[batch, ...] -> the same shape, noise from torch's global stream."""
        return x + self.sigma * torch.randn_like(x)

    def draw(self, x: Tensor, rng: RandomStreams) -> Tensor:
        """The same with noise from the examples' own streams."""
        return x + self.sigma * rng.normal(x)
