"""A differentiable stand-in for a codec: the real time-frequency gain that turns its input into its output, for BPDA.

A speech codec keeps some bins of the short-time spectrum and replaces others. The gain is fitted at every input from
the codec's real output, so nothing about the codec has to be known, and the gradient is damped where the codec ignores
its input."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

N_FFT, HOP = 512, 128
LOWEST_GAIN = 0.02
"""Bins that the codec seems to drop keep a little gradient, as the fit is noisy."""


def stft(x: Tensor) -> Tensor:
    """[batch, time] -> [batch, freq, frames], complex, with a Hann window."""
    window = torch.hann_window(N_FFT, dtype=x.dtype, device=x.device)
    return torch.stft(x, N_FFT, HOP, window=window, pad_mode="constant", return_complex=True)


def istft(bins: Tensor, n_samples: int) -> Tensor:
    """The left inverse of `stft`: [batch, freq, frames] -> [batch, n_samples]."""
    window = torch.hann_window(N_FFT, dtype=bins.real.dtype, device=bins.device)
    return torch.istft(bins, N_FFT, HOP, window=window, length=n_samples)


def fitted_gain(x: Tensor, value: Tensor) -> Tensor:
    """The real gain of each bin that takes x nearest to value, [batch, freq, frames] in [LOWEST_GAIN, 1]: least squares
    over 3 x 3 bins around it. A bin without any energy has the lowest gain.

    Args:
        x, value: [batch, time], aligned.
    """
    with torch.no_grad():
        before, after = stft(x), stft(value)
        cross = F.avg_pool2d((after * before.conj()).real, 3, 1, 1)
        power = F.avg_pool2d(before.abs().square(), 3, 1, 1)
        tiny = torch.finfo(power.dtype).tiny
        return (cross / power.clamp_min(tiny)).clamp(LOWEST_GAIN, 1)


def stft_mask_substitute(x: Tensor, value: Tensor) -> Tensor:
    """The time-varying filter fitted to x -> value, applied to x: [batch, time], linear in x at a fixed gain.

    For `Stage.substitute`; its backward pass weighs the bins of the gradient by the gain.

    Args:
        x, value: [batch, time], a stage's input and exact output.

    Raises:
        ValueError: not two waveforms of one shape.
    """
    if x.dim() != 2 or x.shape != value.shape:
        raise ValueError(f"the STFT mask needs two waveforms of one shape, got {tuple(x.shape)}, {tuple(value.shape)}")
    return istft(fitted_gain(x, value) * stft(x), x.shape[-1])
