"""Magnitude of the short-time Fourier transform, with the complex transform and its inverse for the inversions
(`synthesize` is the least-squares inverse of Griffin and Lim, 1984).

Conventions are librosa's: periodic window, frames centered on multiples of the hop, zeros beyond the ends, no scaling.
`center=False` is the framing of python_speech_features: frame t starts at t * hop, the last one padded with zeros."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from src.stages.mel import Mel
from src.stages.stft import overlap_add, stft_norm
from src.victims.stage import Stage

WINDOWS: dict[str, Callable[..., Tensor]] = {
    "hann": torch.hann_window,
    "hamming": torch.hamming_window,
    "rectangular": lambda n, **_: torch.ones(n),
}

SAMPLES_PER_PIECE = 400_000
"""Samples that are transformed at once on a CPU, counted over all frames."""


class Magnitude(Stage):
    """|STFT| of a real signal.

    Args:
        n_fft: DFT length; the window is zero-padded to it.
        win_length: samples per frame.
        hop_length: samples between frames.
        window: hann, hamming or rectangular.
        center: frames are centered on multiples of the hop (librosa) instead of starting there.
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
        self.lipschitz = stft_norm(self.window.double(), n_fft, hop_length)

    def n_frames(self, n_samples: int) -> int:
        """Number of frames of a signal of `n_samples` samples."""
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

    def analyze(self, x: Tensor) -> Tensor:
        """The complex STFT, frames first as the FFT makes it: [batch, time] -> [batch, frames, freq]."""
        return torch.fft.rfft(self.frames(x) * self.window, n=self.n_fft)

    def pieces(self, x: Tensor) -> Sequence[Tensor]:
        """The batch in pieces whose frames fit a CPU's cache, twice as fast as all at once; one piece on a GPU."""
        if x.device.type != "cpu":
            return (x,)
        return torch.split(x, max(1, SAMPLES_PER_PIECE // (self.n_frames(x.shape[-1]) * self.n_fft)))

    def overlap(self, n_frames: int) -> Tensor:
        """Sum of the squared windows over each sample of the padded signal, [1, padded time]."""
        squares = self.window.square().expand(1, n_frames, -1)
        return overlap_add(squares, self.hop_length).clamp_min(1e-8)

    def synthesize(self, spectrum: Tensor, n_samples: int, overlap: Tensor | None = None) -> Tensor:
        """Least-squares inverse of `analyze`: [batch, frames, freq] -> [batch, n_samples].

        Args:
            overlap: of the same number of frames; a loop computes it once.
        """
        frames = torch.fft.irfft(spectrum, n=self.n_fft)[..., : self.win_length] * self.window
        signal = overlap_add(frames, self.hop_length)
        signal = signal / (self.overlap(spectrum.shape[1]) if overlap is None else overlap)
        left, right = self.padding(n_samples)
        # A negative padding is a tail that no frame covers.
        return F.pad(signal[:, left : left + n_samples], (0, max(0, -right)))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time] -> [batch, n_fft // 2 + 1, frames]."""
        return self.analyze(x).abs().transpose(1, 2)

    def inverse(self, y: Tensor, x: Tensor) -> Tensor:
        """The magnitudes y with the phase of x; phase 0 where x has none."""
        spectrum = self.analyze(x)
        phase = torch.where(spectrum == 0, torch.ones_like(spectrum), spectrum.sgn())
        return self.synthesize(phase * y.clamp_min(0).transpose(1, 2), x.shape[-1])

    def mask(self, valid: Tensor) -> Tensor:
        """[batch, time] -> [batch, 1, frames]: a frame counts when any of its samples does."""
        return self.frames(valid.to(torch.uint8)).amax(-1).bool()[:, None]

    def valid_output(self, valid: Tensor) -> Tensor:
        """[batch, time] -> [batch, 1, frames]: the first `n_frames` frames of a clip that starts with the signal. Of
        one that was shifted, the frames that are centered on it or, without centers, that it is needed to fill."""
        n_frames = self.n_frames(valid.shape[-1])
        if self.center:
            # A frame is centered on a valid sample or, at the end of the clip, right behind one.
            touched = F.pad(valid, (1, 1), value=False)
            return (touched[:, 1:] | touched[:, :-1])[:, None, :: self.hop_length][..., :n_frames]
        # The frame before it does not reach the end of the clip.
        last = F.pad(valid, (0, self.win_length), value=False)[:, self.win_length :: self.hop_length]
        return torch.cat([valid[:, : self.win_length].any(1, keepdim=True), last], 1)[:, None, :n_frames]

    def frozen(self) -> Stage:
        return FastMagnitude(self)

    def fused(self, following: Stage) -> Stage | None:
        return PowerMel(self, following) if isinstance(following, Mel) and following.power == 2 else None


class FastMagnitude(Magnitude):
    """The same values with a hand-written backward: one inverse real FFT and an overlap-add instead of autograd's full
    complex FFT and scatter.

    Args:
        stage: the stage to replace; its window is shared, with dtype and device.
    """

    def __init__(self, stage: Magnitude):
        super().__init__(stage.n_fft, stage.win_length, stage.hop_length, center=stage.center, name=stage.name)
        self.window = stage.window
        self.lipschitz = stage.lipschitz

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time] -> [batch, n_fft // 2 + 1, frames]."""
        return _FastMagnitude.apply(x, self)  # type: ignore[no-untyped-call]

    def frozen(self) -> Stage:
        return self


class PowerMel(Stage):
    """Magnitude and power mel in one step, without a square root; the backward of both is one matrix product, one
    inverse real FFT and an overlap-add. It has no second derivative: where x needs a gradient, only a frozen magnitude
    is fused."""

    def __init__(self, magnitude: Magnitude, mel: Mel):
        super().__init__(mel.name)
        self.magnitude, self.mel = magnitude, mel
        self.bounds, self.lipschitz = mel.bounds, None

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time] -> [batch, n_mels, frames]."""
        if x.requires_grad and torch.is_grad_enabled() and not isinstance(self.magnitude, FastMagnitude):
            return self.mel(self.magnitude(x))
        return _PowerMel.apply(x, self.magnitude, self.mel.filters)  # type: ignore[no-untyped-call]

    def mask(self, valid: Tensor) -> Tensor:
        return self.mel.mask(self.magnitude.mask(valid))


class _PowerMel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stage: Magnitude, filters: Tensor) -> Tensor:
        saved = []
        out = x.new_empty(len(x), len(filters), stage.n_frames(x.shape[-1]))
        for piece, mel in zip(pieces := stage.pieces(x), torch.split(out, len(pieces[0])), strict=True):
            spectrum = stage.analyze(piece)
            parts = torch.view_as_real(spectrum)
            power = parts[..., 0].square().addcmul_(parts[..., 1], parts[..., 1])
            torch.matmul(filters, power.transpose(1, 2), out=mel)
            if ctx.needs_input_grad[0]:
                saved.append(spectrum)
        ctx.stage, ctx.n_samples = stage, x.shape[-1]
        ctx.save_for_backward(filters, *saved)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        filters, *saved = ctx.saved_tensors
        filters = filters * adjoint_scale(ctx.stage.n_fft, filters).mul_(2)  # d|X|^2/dX = 2 X
        out = grad.new_empty(len(grad), ctx.n_samples)
        size = len(saved[0])
        for spectrum, grad_mel, grad_x in zip(saved, torch.split(grad, size), torch.split(out, size), strict=True):
            grad_x.copy_(adjoint((grad_mel.transpose(1, 2) @ filters) * spectrum, ctx.stage, ctx.n_samples))
        return out, None, None


class _FastMagnitude(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stage: Magnitude) -> Tensor:
        saved, out = [], []
        scale = adjoint_scale(stage.n_fft, x)
        for piece in stage.pieces(x):
            spectrum = stage.analyze(piece)
            magnitude = spectrum.abs()
            out.append(magnitude.transpose(1, 2))
            if ctx.needs_input_grad[0]:
                # d|X|/dX = X / |X|, with subgradient 0 at 0.
                saved.append(spectrum.mul_(scale / magnitude.clamp_min(1e-30)))
        ctx.stage, ctx.n_samples = stage, x.shape[-1]
        ctx.save_for_backward(*saved)
        return torch.cat(out)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        saved = ctx.saved_tensors
        pieces = zip(saved, torch.split(grad, len(saved[0])), strict=True)
        out = [adjoint(piece.transpose(1, 2) * phase, ctx.stage, ctx.n_samples) for phase, piece in pieces]
        return torch.cat(out), None


def adjoint_scale(n_fft: int, like: Tensor) -> Tensor:
    """The factor of each bin of a cotangent before the inverse real FFT, [freq]: that FFT divides by n and counts the
    inner bins twice."""
    scale = like.new_full((n_fft // 2 + 1,), float(n_fft))
    scale[1 : (n_fft + 1) // 2] *= 0.5
    return scale


def adjoint(cotangent: Tensor, stage: Magnitude, n_samples: int) -> Tensor:
    """The transpose of x -> STFT(x) for a cotangent times `adjoint_scale`: [batch, frames, freq] -> [batch, time]."""
    frames = torch.fft.irfft(cotangent, n=stage.n_fft)[..., : stage.win_length] * stage.window
    left, right = stage.padding(n_samples)
    # A negative padding is a tail that no frame covers: its gradient is zero.
    return F.pad(overlap_add(frames, stage.hop_length)[:, left : left + n_samples], (0, max(0, -right)))
