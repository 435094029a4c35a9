"""Mel filter bank on a magnitude spectrogram, with librosa's filters on the Slaney or the HTK scale."""

from __future__ import annotations

import math

import librosa
import torch
from torch import Tensor

from src.victims.stage import Stage


class Mel(Stage):
    """Weighted sums of magnitude ** power over frequency.

    Args:
        sample_rate: Hz.
        n_fft: DFT length of the magnitudes.
        n_mels: number of filters.
        f_min: lowest edge, Hz.
        f_max: highest edge, Hz; 0 for half the sample rate.
        htk: the HTK mel scale without area norm instead of Slaney's with it.
        power: 2 for power, 1 for magnitude.
    """

    bounds = (0.0, math.inf)
    filters: Tensor

    def __init__(
        self,
        sample_rate: int,
        n_fft: int,
        n_mels: int,
        f_min: float = 0.0,
        f_max: float = 0.0,
        htk: bool = False,
        power: float = 2.0,
        name: str = "mel",
    ):
        super().__init__(name)
        if f_max > sample_rate / 2 or f_min >= (f_max or sample_rate / 2):
            raise ValueError(f"need 0 <= f_min < f_max <= {sample_rate / 2:g} Hz, got {f_min:g} and {f_max:g}")
        filters = librosa.filters.mel(
            sr=sample_rate,
            n_fft=n_fft,
            n_mels=n_mels,
            fmin=f_min,
            fmax=f_max or None,
            htk=htk,
            norm=None if htk else "slaney",
        )
        self.power = power
        self.register_buffer("filters", torch.from_numpy(filters), persistent=False)
        # A power has an unbounded slope; only the magnitude version is Lipschitz.
        self.lipschitz = float(torch.linalg.matrix_norm(self.filters, 2)) if power == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """[batch, freq, frames] -> [batch, n_mels, frames]."""
        return self.filters @ (x if self.power == 1 else x.square() if self.power == 2 else x**self.power)

    def inverse(self, y: Tensor, x: Tensor) -> Tensor:
        """Scale the magnitudes x so that their mel values move from the present ones to y (a gain mask)."""
        gain = (y.clamp_min(0) / self(x).clamp_min(1e-20)).clamp(max=1e6)
        share = self.filters / self.filters.sum(0).clamp_min(1e-20)
        covered = (self.filters.sum(0) > 0)[:, None]
        return x * torch.where(covered, (share.T @ gain) ** (1 / self.power), torch.ones_like(x))
