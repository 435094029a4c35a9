"""Short-time Fourier magnitude, and the complex transform and its inverse that the inversions need
(`synthesize` is the least-squares inverse of Griffin and Lim, 1984).

Conventions are librosa's: a periodic window, frames centred on multiples of the hop, zeros beyond the ends, no scaling.
`center=False` is the framing of python_speech_features: frame t starts at t * hop, the last one padded with zeros."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from src.stages.mel import Mel
from src.victims.victim import Stage

WINDOWS: dict[str, Callable[..., Tensor]] = {
    "hann": torch.hann_window,
    "hamming": torch.hamming_window,
    "rectangular": lambda n, **_: torch.ones(n),
}

PIECE = 400_000
"""Samples of all frames together that are transformed at once on a CPU."""


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
        self.lipschitz = stft_norm(self.window.double(), n_fft, hop_length)

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

    def analyze(self, x: Tensor) -> Tensor:
        """The complex STFT, frames first as the FFT makes it: [batch, time] -> [batch, frames, freq]."""
        return torch.fft.rfft(self.frames(x) * self.window, n=self.n_fft)

    def pieces(self, x: Tensor) -> Sequence[Tensor]:
        """The batch in pieces whose frames stay in a CPU's cache, twice as fast as all at once; whole on a GPU."""
        if x.device.type != "cpu":
            return (x,)
        return torch.split(x, max(1, PIECE // (self.n_frames(x.shape[-1]) * self.n_fft)))

    def overlap(self, n_frames: int) -> Tensor:
        """Sum of the squared windows over each sample of the padded signal, [1, padded time]."""
        squares = self.window.square().expand(1, n_frames, -1)
        return overlap_add(squares, self.hop_length).clamp_min(1e-8)

    def synthesize(self, spectrum: Tensor, n_samples: int, overlap: Tensor | None = None) -> Tensor:
        """Least-squares inverse of `analyze`: [batch, frames, freq] -> [batch, n_samples]. A loop passes `overlap`."""
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

    def frozen(self) -> Stage:
        return FastMagnitude.of(self)

    def fused(self, following: Stage) -> Stage | None:
        return PowerMel(self, following) if isinstance(following, Mel) and following.power == 2 else None


class FastMagnitude(Magnitude):
    """The same values with a hand-written backward: one inverse real FFT and an overlap-add instead of autograd's full
    complex FFT and scatter."""

    @classmethod
    def of(cls, stage: Magnitude) -> FastMagnitude:
        fast = object.__new__(cls)
        fast.__dict__.update(stage.__dict__)
        return fast

    def forward(self, x: Tensor) -> Tensor:
        return _FastMagnitude.apply(x, self)  # type: ignore[no-untyped-call]

    def frozen(self) -> Stage:
        return self


class PowerMel(Stage):
    """Magnitude and power mel in one step: no square root on the way, and the backward of both is one matrix product,
    one inverse real FFT and an overlap-add. It has no second derivative: where x needs a gradient, only the frozen
    magnitude is fused."""

    def __init__(self, magnitude: Magnitude, mel: Mel):
        super().__init__(mel.name)
        self.magnitude, self.mel = magnitude, mel
        self.bounds, self.lipschitz = mel.bounds, None

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time] -> [batch, n_mels, frames]."""
        if x.requires_grad and torch.is_grad_enabled() and not isinstance(self.magnitude, FastMagnitude):
            return self.mel(self.magnitude(x))
        return _PowerMel.apply(x, self.magnitude, self.mel.filters)  # type: ignore[no-untyped-call]


class _PowerMel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stage: Magnitude, filters: Tensor) -> Tensor:
        saved = []
        out = x.new_empty(len(x), len(filters), stage.n_frames(x.shape[-1]))
        for piece, into in zip(pieces := stage.pieces(x), torch.split(out, len(pieces[0])), strict=True):
            spectrum = stage.analyze(piece)
            parts = torch.view_as_real(spectrum)
            power = parts[..., 0].square().addcmul_(parts[..., 1], parts[..., 1])
            torch.matmul(filters, power.transpose(1, 2), out=into)
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
        steps = len(saved[0])
        for spectrum, piece, into in zip(saved, torch.split(grad, steps), torch.split(out, steps), strict=True):
            into.copy_(adjoint((piece.transpose(1, 2) @ filters) * spectrum, ctx.stage, ctx.n_samples))
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
        out = [adjoint(piece.transpose(1, 2) * unit, ctx.stage, ctx.n_samples) for unit, piece in pieces]
        return torch.cat(out), None


def adjoint_scale(n_fft: int, like: Tensor) -> Tensor:
    """What each bin of a cotangent is multiplied by before the inverse real FFT, [freq]: the FFT divides by n and
    counts the inner bins twice."""
    scale = like.new_full((n_fft // 2 + 1,), float(n_fft))
    scale[1 : (n_fft + 1) // 2] *= 0.5
    return scale


def adjoint(cotangent: Tensor, stage: Magnitude, n_samples: int) -> Tensor:
    """The transpose of x -> STFT(x), [batch, frames, freq] -> [batch, time], of what `adjoint_scale` has scaled."""
    frames = torch.fft.irfft(cotangent, n=stage.n_fft)[..., : stage.win_length] * stage.window
    left, _ = stage.padding(n_samples)
    return overlap_add(frames, stage.hop_length)[:, left : left + n_samples]


def stft_norm(window: Tensor, n_fft: int, hop: int) -> float:
    """Upper bound of the spectral norm of x -> one-sided STFT(x), tight to about a percent for the usual windows.

    The two-sided energy is n_fft * sum_t |w_t x|^2 (Parseval), and one side is half of it plus half of what the DC and
    Nyquist bins hold, which their Gram matrix <w_s m, w_t m'> bounds (largest row sum of absolute values)."""
    length = len(window)
    pieces = F.pad(window.square(), (0, -length % hop)).view(-1, hop)
    energy = n_fft * float(pieces.sum(0).max())
    edge = 0.0
    alternating = window * (1 - 2 * (torch.arange(length) % 2))
    for shift in range(0, length, hop):
        both = 1 if shift == 0 else 2  # earlier and later frames
        same = float((window[shift:] * window[: length - shift]).sum())
        cross = float((window[shift:] * alternating[: length - shift]).sum().abs()) if n_fft % 2 == 0 else 0.0
        edge += both * (same + cross)
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
