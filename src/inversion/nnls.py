"""Non-negative least squares from mel values to magnitudes, then Griffin-Lim, as librosa.feature.inverse.mel_to_audio.

The solver is accelerated projected gradient with restarts (FISTA: Beck and Teboulle 2009; restarts: O'Donoghue and
Candes 2015), all frames at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from src.inversion.griffin_lim import retrieve_phase
from src.inversion.spectrum import FilterBank, invert
from src.random_streams import RandomStreams
from src.registry import INVERSIONS, Count, Fraction, Natural
from src.victims.chain import Chain


@INVERSIONS.register("nnls")
def nnls(
    head: Chain,
    z: Tensor,
    x: Tensor,
    *,
    rng: RandomStreams,
    iterations: Natural = 32,
    momentum: Fraction = 0.99,
    nnls_steps: Count = 30,
) -> Tensor:
    """Magnitudes by non-negative least squares, phase by fast Griffin-Lim; at magnitudes the same as griffin_lim.

    Args:
        iterations: of Griffin-Lim.
        momentum: 0 is the original algorithm; near 1 converges faster.
        nnls_steps: gradient steps of the non-negative least squares.
    """
    return invert(
        head,
        z,
        x,
        rng,
        lambda stage: magnitudes(stage, nnls_steps),
        lambda stage, y, n_samples, streams: retrieve_phase(stage, y, n_samples, streams, iterations, momentum),
    )


def magnitudes(stage: FilterBank, steps: int) -> Callable[[Tensor], Tensor]:
    """Map from mel values [batch, bands, frames] to the non-negative magnitudes [batch, freq, frames] that fit best."""
    solve = solver(stage.filters, steps)
    return lambda y: solve(y.clamp_min(0)) ** (1 / stage.power)


def solver(a: Tensor, steps: int) -> Callable[[Tensor], Tensor]:
    """b [batch, rows, n] -> argmin over s >= 0 of |a s - b|^2, [batch, columns, n]. a: [rows, columns], non-negative.

    It starts from the clipped pseudo-inverse. Rows of `a` are scaled to unit norm: an attainable b keeps its solutions,
    and the error is weighted relative to each band, as in a log-mel spectrogram."""
    size = a.norm(dim=1, keepdim=True).clamp_min(1e-20)
    a = a / size
    inverse, scaled_transpose = torch.linalg.pinv(a), a.T / torch.linalg.matrix_norm(a, 2) ** 2

    def solve(b: Tensor) -> Tensor:
        b = b / size
        s = extrapolated = (inverse @ b).clamp_min(0)
        t = torch.ones(len(b), 1, 1, dtype=b.dtype, device=b.device)
        for _ in range(steps):
            s_next = torch.sub(extrapolated, scaled_transpose @ (a @ extrapolated - b)).clamp_min_(0)
            move = s_next - s
            # Restart the momentum of each clip where it points uphill.
            uphill = ((extrapolated - s_next) * move).sum((1, 2), keepdim=True) > 0
            t = torch.where(uphill, torch.ones_like(t), t)
            t_next = (1 + (1 + 4 * t * t).sqrt()) / 2
            extrapolated = s_next + (t - 1) / t_next * move
            s, t = s_next, t_next
        return s

    return solve
