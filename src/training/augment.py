"""Training augmentations: batched functions of the input and a random generator, both on the same device.

Those of the waveform take and return x [batch, time], the others features [batch, freq, time]. A size or probability of
zero returns the input unchanged."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

WHITE_NOISE = 0.3
"""Probability of white noise instead of a recording, for an example with noise."""


def _uniform(x: Tensor, generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(len(x), *shape, generator=generator, device=x.device, dtype=x.dtype)


def _symmetric(x: Tensor, generator: torch.Generator, limit: float) -> Tensor:
    """Uniform on [-limit, limit], [batch, 1]."""
    return (2 * _uniform(x, generator, 1) - 1) * limit


def warp(x: Tensor, generator: torch.Generator, *, shift: float, speed: float) -> Tensor:
    """Shift each clip in time and change its speed (and thereby its pitch) around its middle, zero-padded.

    Linear interpolation between samples; a shift alone is by whole samples and exact.

    Args:
        shift: largest shift either way, samples.
        speed: largest factor is exp(speed), smallest exp(-speed).
    """
    if not shift and not speed:
        return x
    time = x.shape[-1]
    t = torch.arange(time, device=x.device, dtype=x.dtype)
    offset = _symmetric(x, generator, shift).round()
    if not speed:
        position = (t + offset).long()
        inside = (position >= 0) & (position < time)
        return x.gather(1, position.clamp(0, time - 1)) * inside
    source = (t - time / 2) * _symmetric(x, generator, speed).exp() + time / 2 + offset
    left = source.floor()
    weight = source - left
    inside = (left >= 0) & (left < time - 1)
    index = left.long().clamp(0, time - 2)
    return (x.gather(1, index) * (1 - weight) + x.gather(1, index + 1) * weight) * inside


def level(x: Tensor, generator: torch.Generator, *, limit: float) -> Tensor:
    """Multiply each clip by a random gain within +-`limit` dB; samples may exceed 1."""
    return x * 10 ** (_symmetric(x, generator, limit) / 20) if limit else x


def equalize(x: Tensor, generator: torch.Generator, *, deviation: float, points: int = 5) -> Tensor:
    """Filter each clip with a smooth random frequency response of zero phase, as of different microphones.

    Args:
        deviation: standard deviation of the gain at each of `points` evenly spaced frequencies, dB.
    """
    if not deviation:
        return x
    gains = torch.randn(len(x), 1, points, generator=generator, device=x.device, dtype=x.dtype) * deviation
    spectrum = torch.fft.rfft(x)
    smooth = F.interpolate(gains, spectrum.shape[-1], mode="linear", align_corners=True)[:, 0]
    return torch.fft.irfft(spectrum * 10 ** (smooth / 20), x.shape[-1])


def reverberate(x: Tensor, generator: torch.Generator, *, probability: float, sample_rate: int) -> Tensor:
    """Convolve some clips with a synthetic room response: an impulse and an exponentially decaying noise tail (60 dB
    in 0.05 to 0.3 s)."""
    if not probability:
        return x
    time, tail = x.shape[-1], sample_rate // 5
    decay = 0.05 + 0.25 * _uniform(x, generator, 1)
    strength = 0.1 * _uniform(x, generator, 1)
    t = torch.arange(tail, device=x.device, dtype=x.dtype) / sample_rate
    response = torch.randn(len(x), tail, generator=generator, device=x.device, dtype=x.dtype)
    response = strength * response * torch.exp(-math.log(1000) * t / decay)
    response[:, 0] = 1
    size = time + tail
    wet = torch.fft.irfft(torch.fft.rfft(x, size) * torch.fft.rfft(response, size), size)[:, :time]
    return torch.where(_uniform(x, generator, 1) < probability, wet, x)


def add_noise(
    x: Tensor, generator: torch.Generator, *, noise: Tensor | None, probability: float, snr: tuple[float, float]
) -> Tensor:
    """Add background noise to some clips.

    Args:
        noise: recordings [k, samples], of which a random excerpt is used (periodically extended), or white noise with
            probability 0.3. None: always white noise.
        probability: that noise is added to a clip.
        snr: lowest and highest signal-to-noise ratio, dB.
    """
    if not probability:
        return x
    batch, time = x.shape
    added = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    if noise is not None and len(noise):
        row = torch.randint(len(noise), (batch, 1), generator=generator, device=x.device)
        start = torch.randint(noise.shape[1], (batch, 1), generator=generator, device=x.device)
        column = (start + torch.arange(time, device=x.device)) % noise.shape[1]
        recorded = noise.to(x)[row, column]
        added = torch.where(_uniform(x, generator, 1) < WHITE_NOISE, added, recorded)
    ratio = snr[0] + (snr[1] - snr[0]) * _uniform(x, generator, 1)
    power = x.square().mean(1, keepdim=True) / added.square().mean(1, keepdim=True).clamp_min(1e-12)
    noisy = x + added * (power * 10 ** (-ratio / 10)).sqrt()
    return torch.where(_uniform(x, generator, 1) < probability, noisy, x)


def stretch_frequency(x: Tensor, generator: torch.Generator, *, limit: float) -> Tensor:
    """Stretch features along frequency: vocal tract length perturbation (Jaitly and Hinton 2013).

    Args:
        x: features [batch, freq, time] with at least 2 rows, in the order of frequency.
        limit: largest factor is exp(limit), smallest exp(-limit); the last row is repeated beyond the end.
    """
    if not limit:
        return x
    rows = x.shape[1]
    position = torch.arange(rows, device=x.device, dtype=x.dtype) * _symmetric(x, generator, limit).exp()
    position = position.clamp(0, rows - 1)
    low = position.floor().clamp(max=rows - 2)
    weight = (position - low)[:, :, None]
    index = low.long()[:, :, None].expand(-1, -1, x.shape[2])
    return x.gather(1, index) * (1 - weight) + x.gather(1, index + 1) * weight


def mask_spectrogram(
    x: Tensor,
    generator: torch.Generator,
    *,
    frequency_masks: int,
    frequency_size: float,
    time_masks: int,
    time_size: float,
) -> Tensor:
    """SpecAugment (Park et al. 2019): bands of rows and of columns are replaced by the mean of the example.

    Args:
        x: features [batch, freq, time].
        frequency_masks: number of row bands.
        frequency_size: largest height of a band, as a share of all rows.
        time_masks: number of column bands.
        time_size: largest width of a band, as a share of all columns.
    """
    hidden = torch.zeros(len(x), *x.shape[1:], dtype=torch.bool, device=x.device)
    for masks, share, axis in ((frequency_masks, frequency_size, 1), (time_masks, time_size, 2)):
        size = x.shape[axis]
        position = torch.arange(size, device=x.device)
        for _ in range(masks):
            width = _uniform(x, generator, 1) * share * size
            start = _uniform(x, generator, 1) * (size - width)
            band = (position >= start) & (position < start + width)
            hidden = hidden | (band[:, :, None] if axis == 1 else band[:, None])
    return torch.where(hidden, x.mean((1, 2), keepdim=True), x) if frequency_masks or time_masks else x


def mixup(x: Tensor, y: Tensor, generator: torch.Generator, *, alpha: float) -> tuple[Tensor, Tensor]:
    """Mix each example with another one of the batch (Zhang et al. 2018), whose share is at most a half.

    Args:
        x: inputs [batch, ...].
        y: label probabilities [batch, classes].
        alpha: of the Beta(alpha, alpha) distribution of the shares, which are drawn once per batch.
    """
    if not alpha:
        return x, y
    # Beta variates as a ratio of Gamma variates, drawn on the CPU in float64: the same on every device.
    gammas = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator=_cpu(generator))
    share = float(gammas[0] / gammas.sum().clamp_min(1e-300))
    share = max(share, 1 - share)
    other = torch.randperm(len(x), generator=_cpu(generator)).to(x.device)
    return share * x + (1 - share) * x[other], share * y + (1 - share) * y[other]


def _cpu(generator: torch.Generator) -> torch.Generator:
    """The generator itself if on the CPU, else a CPU generator seeded by it."""
    if generator.device.type == "cpu":
        return generator
    cpu_generator = torch.Generator()
    cpu_generator.manual_seed(int(torch.randint(2**62, (1,), generator=generator, device=generator.device)))
    return cpu_generator
