"""Gaussian noise at a fixed SNR of the utterance (AT of the speaker-recognition study)."""

from __future__ import annotations

import torch
from torch import Tensor

from src.random_streams import RandomStreams
from src.registry import DEFENSES
from src.victims.stage import Defense


@DEFENSES.register("noise_at_snr")
class NoiseAtSnr(Defense):
    """Add fresh white noise whose power is the clip's power divided by the SNR. Padding has no part in either where the
    true length of the clip is known.

    Args:
        snr_db: signal-to-noise ratio, dB.
    """

    randomized = True
    uses_mask = True
    waveform_only = False

    def __init__(self, *, sample_rate: int, snr_db: float = 16.0):
        super().__init__("noise_at_snr")
        self.ratio = 10 ** (-snr_db / 20)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, ...] -> the same shape, noise from torch's global stream."""
        return self._add(x, torch.randn_like(x))

    def draw(self, x: Tensor, rng: RandomStreams) -> Tensor:
        """The same with noise from the examples' own streams."""
        return self._add(x, rng.normal(x))

    def _add(self, x: Tensor, noise: Tensor) -> Tensor:
        valid = torch.ones_like(x) if self.valid is None else self.valid.to(x).expand_as(x)
        dims = tuple(range(1, x.dim()))
        power = (x * valid).square().sum(dims, keepdim=True) / valid.sum(dims, keepdim=True).clamp_min(1)
        return x + noise * valid * (power + 1e-20).sqrt() * self.ratio
