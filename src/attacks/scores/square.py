"""Square attack (Andriushchenko et al. 2020) for audio: random search over localized changes on the surface of the
ball. On a waveform the squares are time segments, on a spectrogram time-frequency tiles.

A segment of constant sign is a slow offset, which front ends remove, so a segment of a waveform holds a square wave of
random period and phase instead. Everything else follows the paper: the side shrinks on its schedule, in linf a square
is set to a corner of the box, in l2 it takes over the energy of a second square."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.core import finite_budgets
from src.attacks.model import Model
from src.attacks.registration import attack
from src.random_streams import RandomStreams
from src.registry import Count, Fraction
from src.threat import ThreatModel, column, norm_of

SCHEDULE = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of the queries after which the area of a square is halved, as in the paper."""


@attack("square", kind="budget", norms=("linf", "l2"), access="scores")
def square(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    queries: Count = 1000,
    area: Fraction = 0.5,
) -> Tensor:
    """Random search over time segments or time-frequency tiles, from scores.

    Args:
        queries: largest number of queries per example.
        area: share of the input that the first squares cover.
    """
    eps, batch = finite_budgets(threat, x), ActiveBatch(model, x, y, threat, rng, targeted)
    for query in range(queries):
        if query == 0:
            candidate = batch.x
        elif query == 1:
            candidate = batch.threat.project(batch.x + _start(batch, eps, area), batch.x)
            # The search continues from this candidate even where the clean clip scores higher.
            batch.best.value = torch.full_like(batch.best.value, -math.inf)
        else:
            share = area * 0.5 ** sum(query >= after * queries for after in SCHEDULE)
            change = _corner if threat.norm == "linf" else _shift_energy
            candidate = batch.threat.project(batch.x + change(batch, batch.best.x - batch.x, eps, share), batch.x)
        batch.score(candidate)
        (eps,) = batch.keep(~batch.best.success, eps)
        if not len(batch):
            break
    return batch.finish()


def _tiles(batch: ActiveBatch, share: float) -> Tensor:
    """One random square per example that covers `share` of it: bool, broadcastable to x."""
    x = batch.x
    axes = [-1] if x.dim() == 2 else [-2, -1]
    inside = torch.ones(len(x), *[1] * (x.dim() - 1), dtype=torch.bool, device=x.device)
    corner = batch.rng.uniform(x.new_empty(len(x), len(axes)))
    for i, axis in enumerate(axes):
        size = x.shape[axis]
        side = max(1, min(size, round(size * share ** (1 / len(axes)))))
        start = (corner[:, i] * (size - side + 1)).long()[:, None]
        positions = torch.arange(size, device=x.device)
        along = ((positions >= start) & (positions < start + side)).reshape(
            len(x), *[size if a == axis else 1 for a in range(1 - x.dim(), 0)]
        )
        inside = inside & along
    return inside


def _pattern(batch: ActiveBatch, share: float) -> Tensor:
    """Content of a square: a random sign per channel, or a square wave on a waveform. Broadcastable to x."""
    x = batch.x
    if x.dim() > 2:
        return batch.rng.signs(x.new_empty(*x.shape[:-2], 1, 1))
    uniform = batch.rng.uniform(x.new_empty(len(x), 2))
    side = max(1.0, share * x.shape[1])
    half_period = torch.exp(uniform[:, :1] * math.log(side + 1))  # log-uniform from one sample to the whole segment
    phase = torch.arange(x.shape[1], device=x.device) / half_period + 2 * uniform[:, 1:]
    return 1 - 2 * (phase.floor().long() % 2).to(x.dtype)


def _start(batch: ActiveBatch, eps: Tensor, area: float) -> Tensor:
    """Initial perturbation [batch, ...]: the input covered by squares, on the surface of the ball."""
    x, noise = batch.x, torch.zeros_like(batch.x)
    for _ in range(round(4 / max(area, 0.1))):
        noise = torch.where(_tiles(batch, area), _pattern(batch, area), noise)
    noise = batch.threat.masked(torch.where(noise == 0, _pattern(batch, area), noise))
    return noise / column(norm_of(noise, batch.threat.norm), x).clamp_min(1e-30) * column(eps, x)


def _corner(batch: ActiveBatch, delta: Tensor, eps: Tensor, share: float) -> Tensor:
    """linf: set a square to a corner of the box. [batch, ...]."""
    return torch.where(_tiles(batch, share), _pattern(batch, share) * column(eps, delta), delta)


def _shift_energy(batch: ActiveBatch, delta: Tensor, eps: Tensor, share: float) -> Tensor:
    """l2: a square takes over the energy of another and the unused budget (algorithm 3 of the paper). [batch, ...]."""
    new, old = _tiles(batch, share), _tiles(batch, share)
    both_squares = (new | old).expand_as(delta)
    outside = torch.where(both_squares, 0, delta)
    old_content = torch.where(new, delta, 0)
    pattern = batch.threat.masked(torch.where(new, _pattern(batch, share), 0))
    sign = column(batch.rng.signs(eps[:, None]).flatten(), delta)
    new_content = sign * pattern / column(norm_of(pattern, "l2"), delta).clamp_min(1e-30)
    new_content = new_content + old_content / column(norm_of(old_content, "l2"), delta).clamp_min(1e-30)
    size = (eps.square() - norm_of(outside, "l2").square()).clamp_min(0).sqrt()
    return outside + new_content * column(size / norm_of(new_content, "l2").clamp_min(1e-30), delta)
