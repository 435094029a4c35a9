"""Fast Griffin-Lim phase retrieval: Griffin and Lim 1984, with the momentum of Perraudin, Balazs and Sondergaard 2013
as librosa and torchaudio apply it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from src.inversion.spectrum import FilterBank, Transform, invert
from src.random_streams import RandomStreams
from src.registry import INVERSIONS, Fraction, Natural
from src.victims.chain import Chain


@INVERSIONS.register("griffin_lim")
def griffin_lim(
    head: Chain,
    z: Tensor,
    x: Tensor,
    *,
    rng: RandomStreams,
    iterations: Natural = 32,
    momentum: Fraction = 0.99,
) -> Tensor:
    """Magnitudes by a clipped pseudo-inverse of the filter bank, phase by fast Griffin-Lim from a random start.

    Args:
        iterations: of Griffin-Lim.
        momentum: 0 is the original algorithm; near 1 converges faster.
    """
    return invert(
        head,
        z,
        x,
        rng,
        pseudo_inverse,
        lambda stage, y, n_samples, streams: retrieve_phase(stage, y, n_samples, streams, iterations, momentum),
    )


def pseudo_inverse(stage: FilterBank) -> Callable[[Tensor], Tensor]:
    """Least-squares magnitudes of mel values [batch, bands, frames], negative ones set to 0."""
    inverse = torch.linalg.pinv(stage.filters)
    return lambda y: (inverse @ y.clamp_min(0)).clamp_min(0) ** (1 / stage.power)


def retrieve_phase(
    stage: Transform, y: Tensor, n_samples: int, rng: RandomStreams, iterations: int, momentum: float
) -> Tensor:
    """A signal [batch, n_samples] whose STFT magnitudes are near y [batch, freq, frames]."""
    y = y.clamp_min(0).transpose(1, 2).contiguous()
    overlap = stage.overlap(y.shape[1])
    spectrum = torch.polar(y, 2 * math.pi * rng.uniform(y))
    previous = torch.zeros_like(spectrum)
    for _ in range(iterations):
        rebuilt = stage.analyze(stage.synthesize(spectrum, n_samples, overlap))
        torch.sub(rebuilt, previous, alpha=momentum / (1 + momentum), out=spectrum)
        # abs() guards against overflow, which costs as much as an FFT.
        energy = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
        spectrum *= y * energy.clamp_min_(1e-30).rsqrt_()
        previous = rebuilt
    return stage.synthesize(spectrum, n_samples, overlap)
