"""Noise with a fixed spectrum instead of white noise, and the norm in which it certifies.

Noise N(0, Sigma) is Sigma^(1/2) times unit noise, so Cohen's theorem for f after Sigma^(1/2) says: g is constant
where sqrt(delta' Sigma^-1 delta) < Phi^-1(p). For a circulant Sigma, with noise power s_k^2 at frequency k, that is
sum |delta_k|^2 / s_k^2 < Phi^-1(p)^2 (orthonormal DFT). The spectrum must not depend on the certified clip: for noise
that does (proportional noise, masking by the clip) there is no such theorem."""

from __future__ import annotations

import torch
from torch import Tensor

from src.perception import threshold_in_quiet

OCTAVES = (125, 250, 500, 1000, 2000, 4000, 8000)
RANGE_DB = 40.0
"""Dynamic range of a spectrum; weaker bins are raised to its end, because the weakest bin limits the L2 radius."""


class ShapedNoise:
    """The map from unit noise [..., time] to noise with the amplitude s_k at frequency k.

    Args:
        amplitude: s_k > 0, [n_samples // 2 + 1]; scaled here to mean power 1 over all n_samples bins, so that sigma
            stays the standard deviation of a sample.
        n_samples: length of the waveform.
    """

    def __init__(self, amplitude: Tensor, n_samples: int):
        if len(amplitude) != n_samples // 2 + 1 or not bool((amplitude > 0).all() & amplitude.isfinite().all()):
            raise ValueError(f"need {n_samples // 2 + 1} positive amplitudes")
        amplitude = amplitude.double().clamp_min(float(amplitude.max()) * 10 ** (-RANGE_DB / 20))
        power = two_sided(amplitude.square(), n_samples).sum() / n_samples
        self.amplitude, self.n_samples = (amplitude / power.sqrt()).float(), n_samples

    def __call__(self, noise: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(noise) * self.amplitude.to(noise.device), n=self.n_samples)

    def norm(self, delta: Tensor) -> Tensor:
        """sqrt(sum |delta_k|^2 / s_k^2) of perturbations [..., time], the norm that a radius bounds, [...]."""
        weighted = (torch.fft.rfft(delta, norm="ortho").abs() / self.amplitude.to(delta.device)).square()
        return two_sided(weighted, self.n_samples).sum(-1).sqrt()

    def l2(self) -> float:
        """L2 radius per unit of radius, the amplitude of the weakest bin: every perturbation of smaller L2 norm is
        certified."""
        return float(self.amplitude.min())

    def bands(self, sample_rate: int) -> dict[str, float]:
        """As `l2`, for perturbations within one octave, by its center in Hz."""
        hertz = torch.fft.rfftfreq(self.n_samples, 1 / sample_rate)
        masks = {f: (hertz >= f / 2**0.5) & (hertz < f * 2**0.5) for f in OCTAVES}
        return {f"{f} Hz": float(self.amplitude[mask].min()) for f, mask in masks.items() if mask.any()}


def two_sided(x: Tensor, n_samples: int) -> Tensor:
    """A one-sided spectrum [..., n_samples // 2 + 1] weighted by how often each bin occurs in the two-sided one."""
    weight = torch.full(x.shape[-1:], 2.0, dtype=x.dtype, device=x.device)
    weight[0] = 1
    if n_samples % 2 == 0:
        weight[-1] = 1
    return x * weight


def hearing(n_samples: int, sample_rate: int) -> Tensor:
    """Amplitudes that follow the threshold in quiet, constant below 50 Hz: strong where hearing is insensitive."""
    return 10 ** (threshold_in_quiet(torch.fft.rfftfreq(n_samples, 1 / sample_rate), lowest=50) / 20)


def speech(waveforms: Tensor) -> Tensor:
    """Amplitudes that follow the mean power spectrum of clips [n, time], smoothed over about 100 bins. Use training
    clips only: the spectrum must not depend on a clip to certify."""
    power = torch.fft.rfft(waveforms).abs().square().mean(0)
    width = 101 if len(power) > 202 else 1
    smooth = torch.nn.functional.avg_pool1d(power[None, None], width, 1, width // 2, count_include_pad=False)[0, 0]
    return smooth.clamp_min(1e-20).sqrt()
