"""Mel-frequency cepstral coefficients: the orthonormal DCT-II of a log-mel spectrogram."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from src.victims.stage import Stage


class Dct(Stage):
    """The first `n_mfcc` orthonormal DCT-II coefficients over frequency."""

    basis: Tensor
    lipschitz = 1.0

    def __init__(self, n_mfcc: int, n_mels: int, name: str = "mfcc"):
        super().__init__(name)
        if n_mfcc > n_mels:
            raise ValueError(f"n_mfcc ({n_mfcc}) must not exceed n_mels ({n_mels})")
        k = torch.arange(n_mfcc, dtype=torch.float64)[:, None]
        basis = torch.cos(math.pi / n_mels * (torch.arange(n_mels, dtype=torch.float64) + 0.5) * k) * math.sqrt(
            2 / n_mels
        )
        basis[0] /= math.sqrt(2)
        self.register_buffer("basis", basis.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, n_mels, frames] -> [batch, n_mfcc, frames]."""
        return self.basis @ x

    def inverse(self, y: Tensor, x: Tensor) -> Tensor:
        """Exact on the coefficients that are kept; the part of x that the DCT drops is that of x."""
        return x + self.basis.T @ (y - self(x))
