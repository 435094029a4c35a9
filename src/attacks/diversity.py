"""Random changes of a waveform that its class survives, for attacks that shall transfer (input diversity, Xie et al.
2019): offset in time, speed, white noise, masks in time and frequency, and the frequency axis stretched. What fools a
model through many of them depends less on what is particular to that model.

Every change is differentiable with respect to the waveform, acts on each example alone, and shrinks to nothing as its
`strength` goes to 0."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from src.random_streams import RandomStreams

WINDOW_S = 0.032
"""Window of the short-time spectrum that masks and stretching act on; half of it is the hop."""


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """How much each change may be at strength 1.

    Attributes:
        sample_rate: Hz.
        shift_s: largest offset either way, seconds.
        speed: largest factor is exp(speed), smallest exp(-speed), around the middle of the clip.
        noise: largest amplitude of white noise, as a share of the clip's; the smallest is a tenth of it.
        masks: bands in frequency that are silenced, and as many in time.
        mask_size: largest width of a mask, as a share of the axis.
        stretch: the frequency axis is multiplied by a factor between exp(-stretch) and exp(stretch).
    """

    sample_rate: int
    shift_s: float
    speed: float
    noise: float
    masks: int
    mask_size: float
    stretch: float

    @classmethod
    def standard(cls, sample_rate: int) -> Self:
        """The changes of `transfer_pgd` by default."""
        return cls(sample_rate=sample_rate, shift_s=0.1, speed=0.15, noise=0.3, masks=1, mask_size=0.2, stretch=0.0)

    def __call__(self, x: Tensor, strength: Tensor, rng: RandomStreams) -> Tensor:
        """One random variant of each example.

        Args:
            x: waveforms, [batch, time].
            strength: of each example, [batch], 1 for the changes as they are defined.
            rng: one stream per example.
        """
        # The same numbers whether shift, speed and stretch are switched on or not, so that each can be judged by
        # leaving it out. Masks and noise draw more of them.
        numbers = rng.uniform(x.new_empty(len(x), 4 + 4 * self.masks))
        signed = (2 * numbers[:, :4] - 1) * strength[:, None]
        if self.shift_s or self.speed:
            x = warp(x, signed[:, 0] * self.shift_s * self.sample_rate, (signed[:, 1] * self.speed).exp())
        if self.masks or self.stretch:
            widths = numbers[:, 4:].reshape(len(x), self.masks, 4) if self.masks else None
            size = 2 ** round(math.log2(WINDOW_S * self.sample_rate))
            x = filtered(x, size, (signed[:, 2] * self.stretch).exp(), widths, strength * self.mask_size)
        if self.noise:
            x = add_noise(x, rng.normal(x), strength * self.noise * 10 ** -numbers[:, 3])
        return x


def warp(x: Tensor, offset: Tensor, factor: Tensor) -> Tensor:
    """The clip delayed by `offset` samples and played `factor` times as fast around its middle, zero beyond its ends.
    Between samples it is interpolated linearly.

    Args:
        x: [batch, time].
        offset: [batch].
        factor: [batch], positive.
    """
    time = x.shape[1]
    middle = (time - 1) / 2
    position = (torch.arange(time, device=x.device) - middle - offset[:, None]) * factor[:, None] + middle
    left = position.floor()
    weight, index = position - left, left.long() + 1  # one sample of padding stands before the clip
    padded = torch.nn.functional.pad(x, (1, 1))
    low, high = (padded.gather(1, part.clamp(0, time + 1)) for part in (index, index + 1))
    return low * (1 - weight) + high * weight


def add_noise(x: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """x plus noise of `share` [batch] of its own root mean square; both [batch, time]."""
    level = x.square().mean(1).clamp_min(1e-20).sqrt()
    return x + noise * (level * share)[:, None]


def filtered(x: Tensor, size: int, factor: Tensor, numbers: Tensor | None, widths: Tensor) -> Tensor:
    """The clip with its frequency axis stretched and parts of its short-time spectrum silenced.

    Args:
        x: [batch, time].
        size: samples of the window.
        factor: what was at a frequency comes to lie at `factor` times it, [batch].
        numbers: uniform on [0, 1), [batch, masks, 4]: width and place of each mask in frequency, and in time. None for
            no masks.
        widths: largest width of a mask as a share of the axis (in frequency of mel), [batch].
    """
    time, window = x.shape[1], torch.hann_window(size, dtype=x.dtype, device=x.device)
    # Where only the edge of the last window reached the last samples, what is divided by it there would be a pulse.
    x = torch.nn.functional.pad(x, (0, -time % (size // 4)))
    spectrum = torch.stft(x, size, size // 2, window=window, pad_mode="constant", return_complex=True)
    if bool((factor != 1).any()):
        spectrum = stretched(spectrum, factor)
    if numbers is not None:
        bins = torch.linspace(0, 1, spectrum.shape[1], dtype=x.dtype, device=x.device)
        mel = torch.log1p(bins * 10) / math.log(11)  # about the mel scale up to 8 kHz
        frames = torch.linspace(0, 1, spectrum.shape[2], dtype=x.dtype, device=x.device)
        spectrum = spectrum * _gaps(mel, numbers[..., :2], widths)[:, :, None]
        spectrum = spectrum * _gaps(frames, numbers[..., 2:], widths)[:, None]
    return torch.istft(spectrum, size, size // 2, window=window, length=x.shape[1])[:, :time]


def stretched(spectrum: Tensor, factor: Tensor) -> Tensor:
    """The short-time spectrum, complex [batch, freq, frames], with what was at a frequency at `factor` [batch] times
    it: each frame is played that much faster around its middle, by the scaling theorem of the Fourier transform."""
    axis = torch.arange(spectrum.shape[1], dtype=factor.dtype, device=spectrum.device)
    centered = (1 - 2 * (axis % 2))[:, None]  # moves the origin of time from the start of a frame to its middle
    # Linear interpolation as a matrix per example, whose rows are the new frequencies.
    weight = (1 - (axis[:, None] / factor[:, None, None] - axis).abs()).clamp_min(0)
    real, imaginary = weight @ (spectrum.real * centered), weight @ (spectrum.imag * centered)
    return torch.complex(real, imaginary) * centered


def _gaps(axis: Tensor, numbers: Tensor, widths: Tensor) -> Tensor:
    """1 outside the masks and 0 inside, [batch, points].

    Args:
        axis: positions of the points on [0, 1].
        numbers: width and place of each mask, uniform on [0, 1), [batch, masks, 2].
        widths: the largest width, [batch].
    """
    width = numbers[..., :1] * widths[:, None, None]
    start = numbers[..., 1:] * (1 - width)
    return (~((axis >= start) & (axis < start + width)).any(1)).to(axis.dtype)
