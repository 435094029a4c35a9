"""Overlap-add of frames, and the Lipschitz constant of the short-time Fourier transform."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def stft_norm(window: Tensor, n_fft: int, hop: int) -> float:
    """Upper bound of the spectral norm of x -> one-sided STFT(x), tight to about a percent for the usual windows.

    The two-sided energy is n_fft * sum_t |w_t x|^2 (Parseval), and one side is half of it plus half of the energy
    in the DC and Nyquist bins, which their Gram matrix <w_s m, w_t m'> bounds (largest row sum of absolute values)."""
    length = len(window)
    pieces = F.pad(window.square(), (0, -length % hop)).view(-1, hop)
    energy = n_fft * float(pieces.sum(0).max())
    edge = 0.0
    alternating = window * (1 - 2 * (torch.arange(length) % 2))
    for shift in range(0, length, hop):
        n_frames = 1 if shift == 0 else 2  # the frame itself, or an earlier and a later one
        same = float((window[shift:] * window[: length - shift]).sum())
        cross = float((window[shift:] * alternating[: length - shift]).sum().abs()) if n_fft % 2 == 0 else 0.0
        edge += n_frames * (same + cross)
    return math.sqrt((energy + min(edge, energy)) / 2)


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """[batch, n, length] -> [batch, (n - 1) * hop + length], one strided addition per hop-sized piece of a frame."""
    batch, n, length = frames.shape
    pieces = -(-length // hop)
    frames = F.pad(frames, (0, pieces * hop - length))
    out = frames.new_zeros(batch, n + pieces - 1, hop)
    for piece in range(pieces):
        out[:, piece : piece + n] += frames[..., piece * hop : (piece + 1) * hop]
    return out.flatten(1)[:, : (n - 1) * hop + length]
