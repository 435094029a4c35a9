"""Short-time Fourier magnitude, and the complex transform and its inverse that the inversions need.

Conventions are librosa's: a periodic window, frames centred on multiples of the hop, zeros beyond the ends, no scaling.
`center=False` is the framing of python_speech_features: frame t starts at t * hop, the last one padded with zeros."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from src.stages.mel import Mel
from src.victim import Stage

WINDOWS = {
    "hann": torch.hann_window,
    "hamming": torch.hamming_window,
    "rectangular": lambda n, **_: torch.ones(n),
}


class Magnitude(Stage):
    """|STFT| of a real signal.

    Args:
        n_fft: DFT length; the window is zero-padded to it.
        win_length: samples per frame.
        hop_length: samples between frames.
        window: hann, hamming or rectangular.
        center: frames centred on multiples of the hop (librosa) or starting there.
    """

    bounds = (0.0, math.inf)
    window: Tensor

    def __init__(
        self,
        n_fft: int,
        win_length: int,
        hop_length: int,
        window: str = "hann",
        center: bool = True,
        name: str = "magnitude",
    ):
        super().__init__(name)
        if not 0 < hop_length <= win_length <= n_fft:
            raise ValueError(f"need hop_length <= win_length <= n_fft, got {hop_length}, {win_length}, {n_fft}")
        if window not in WINDOWS:
            raise ValueError(f"unknown window '{window}' (choices: {', '.join(WINDOWS)})")
        self.n_fft, self.win_length, self.hop_length, self.center = n_fft, win_length, hop_length, center
        self.register_buffer("window", WINDOWS[window](win_length, periodic=True), persistent=False)
        # One DFT stretches by sqrt(n_fft) at most; each sample lies in ceil(win / hop) frames, weighted by the window.
        overlap = F.pad(self.window.square(), (0, -win_length % hop_length)).view(-1, hop_length).sum(0).max()
        self.lipschitz = math.sqrt(n_fft * float(overlap))

    def n_frames(self, n_samples: int) -> int:
        if self.center:
            return 1 + n_samples // self.hop_length
        return 1 + max(0, math.ceil((n_samples - self.win_length) / self.hop_length))

    def frames(self, x: Tensor) -> Tensor:
        """[batch, time] -> strided view of the padded signal, [batch, frames, win_length]."""
        return F.pad(x, self.padding(x.shape[-1])).unfold(-1, self.win_length, self.hop_length)

    def padding(self, n_samples: int) -> tuple[int, int]:
        """Zeros before and after the signal, so that exactly `n_frames` frames fit."""
        left = self.win_length // 2 if self.center else 0
        total = (self.n_frames(n_samples) - 1) * self.hop_length + self.win_length
        return left, total - left - n_samples

    def complex(self, x: Tensor) -> Tensor:
        """The complex STFT, [batch, time] -> [batch, freq, frames]."""
        return torch.fft.rfft(self.frames(x) * self.window, n=self.n_fft).transpose(1, 2)

    def inverse_complex(self, spectrum: Tensor, n_samples: int) -> Tensor:
        """Least-squares inverse of `complex`: [batch, freq, frames] -> [batch, n_samples]."""
        frames = torch.fft.irfft(spectrum.transpose(1, 2), n=self.n_fft)[..., : self.win_length] * self.window
        left, right = self.padding(n_samples)
        weight = overlap_add(self.window.square().expand(1, spectrum.shape[-1], -1), self.hop_length)
        signal = overlap_add(frames, self.hop_length) / weight.clamp_min(1e-8)
        return signal[:, left : left + n_samples]

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time] -> [batch, n_fft // 2 + 1, frames]."""
        return self.complex(x).abs()

    def inverse(self, y: Tensor, x: Tensor) -> Tensor:
        """The magnitudes y with the phase of x."""
        return self.inverse_complex(torch.polar(y.clamp_min(0), self.complex(x).angle()), x.shape[-1])

    def mask(self, valid: Tensor) -> Tensor:
        """[batch, time] -> [batch, 1, frames]: a frame counts when any of its samples does."""
        return self.frames(valid.to(torch.uint8)).amax(-1).bool()[:, None]

    def frozen(self) -> Stage:
        return FastMagnitude.of(self)


class FastMagnitude(Magnitude):
    """The same values with a hand-written backward: one inverse real FFT and an overlap-add instead of autograd's full
    complex FFT and scatter."""

    @classmethod
    def of(cls, stage: Magnitude) -> FastMagnitude:
        fast = object.__new__(cls)
        fast.__dict__.update(stage.__dict__)
        return fast

    def forward(self, x: Tensor) -> Tensor:
        return _FastMagnitude.apply(x, self)  # type: ignore[no-any-return, no-untyped-call]

    def frozen(self) -> Stage:
        return self

    def fused(self, following: Stage) -> Stage | None:
        return PowerMel(self, following) if isinstance(following, Mel) and following.power == 2 else None


class PowerMel(Stage):
    """Magnitude and power mel in one step: no square root on the way, and the backward of both is one matrix product,
    one inverse real FFT and an overlap-add."""

    def __init__(self, magnitude: Magnitude, mel: Mel):
        super().__init__(mel.name)
        self.magnitude, self.mel = magnitude, mel
        self.bounds, self.lipschitz = mel.bounds, None

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time] -> [batch, n_mels, frames]."""
        return _PowerMel.apply(x, self.magnitude, self.mel.filters)  # type: ignore[no-any-return, no-untyped-call]


class _PowerMel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stage: Magnitude, filters: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(stage.frames(x) * stage.window, n=stage.n_fft)
        parts = torch.view_as_real(spectrum)
        power = parts[..., 0].square().addcmul_(parts[..., 1], parts[..., 1])
        if ctx.needs_input_grad[0]:
            ctx.stage, ctx.n_samples = stage, x.shape[-1]
            ctx.save_for_backward(spectrum, filters)
        return (power @ filters.T).transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        spectrum, filters = ctx.saved_tensors
        weight = (grad.transpose(1, 2) @ filters).mul_(2)  # d|X|^2/dX = 2 X
        return adjoint(weight * spectrum, ctx.stage, ctx.n_samples), None, None


class _FastMagnitude(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stage: Magnitude) -> Tensor:
        spectrum = torch.fft.rfft(stage.frames(x) * stage.window, n=stage.n_fft)
        magnitude = spectrum.abs()
        if ctx.needs_input_grad[0]:
            ctx.stage, ctx.n_samples = stage, x.shape[-1]
            ctx.save_for_backward(spectrum, magnitude)
        return magnitude.transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        spectrum, magnitude = ctx.saved_tensors
        # d|X|/dX = X / |X|, with subgradient 0 at 0.
        weight = grad.transpose(1, 2) / magnitude.clamp_min(1e-30)
        return adjoint(weight * spectrum, ctx.stage, ctx.n_samples), None


def adjoint(cotangent: Tensor, stage: Magnitude, n_samples: int) -> Tensor:
    """The transpose of x -> STFT(x), [batch, frames, freq] -> [batch, time]: irfft counts inner bins twice and divides
    by n, so those bins are halved first and the result multiplied back."""
    cotangent = cotangent * stage.n_fft
    inner = cotangent[..., 1 : (stage.n_fft + 1) // 2]
    inner *= 0.5
    frames = torch.fft.irfft(cotangent, n=stage.n_fft)[..., : stage.win_length] * stage.window
    left, _ = stage.padding(n_samples)
    return overlap_add(frames, stage.hop_length)[:, left : left + n_samples]


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """[batch, n, length] -> [batch, (n - 1) * hop + length], one strided addition per hop-sized piece of a frame."""
    batch, n, length = frames.shape
    pieces = -(-length // hop)
    frames = F.pad(frames, (0, pieces * hop - length))
    out = frames.new_zeros(batch, n + pieces - 1, hop)
    for piece in range(pieces):
        out[:, piece : piece + n] += frames[..., piece * hop : (piece + 1) * hop]
    return out.flatten(1)[:, : (n - 1) * hop + length]
