"""Natural evolution strategies (Ilyas et al. 2018) as FAKEBOB runs them against speaker recognition (Chen et al. 2021):
antithetic Gaussian probes, momentum and signed steps, whose size is halved per example when its margin stops
increasing."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.core import finite_budgets
from src.attacks.model import Model
from src.attacks.registration import attack
from src.attacks.scores.estimated_gradient import Tensors, follow
from src.attacks.scores.space import search_space
from src.attacks.scores.tiles import SpaceName
from src.random_streams import RandomStreams
from src.registry import Count, Fraction, Positive
from src.threat import ThreatModel, column


@attack("nes", kind="budget", norms=("linf", "l2"), access="scores", needs_sample_rate=True)
def nes(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    sample_rate: int,
    queries: Count = 2000,
    pairs: Count = 10,
    sigma: Positive = 0.5,
    learning_rate: Positive = 0.5,
    least_rate: Positive = 0.0005,
    momentum: Fraction = 0.9,
    patience: Count = 5,
    space: SpaceName = "tiles",
    bands: Count = 8,
    tile_s: Positive = 0.08,
) -> Tensor:
    """Steps along a gradient estimated from the scores of Gaussian probes.

    Args:
        queries: largest number of queries per example; a step takes 2 * pairs + 1.
        pairs: antithetic pairs of probes per step.
        sigma: standard deviation of the probes, in units of eps (linf) or eps / sqrt(entries) (l2).
        learning_rate: initial step size, in units of eps.
        least_rate: smallest step size, in units of eps.
        momentum: weight of the previous direction.
        patience: number of recent margins that decide whether the step size is halved.
        space: what is searched: weights of time-frequency tiles, as in a linf ball of eps 1, or the samples themselves;
            of a spectrogram always its bins.
        bands: tiles in frequency, equally wide on the mel scale.
        tile_s: seconds that a tile lasts.
    """
    searched = search_space(space, model, x, threat, rng, sample_rate=sample_rate, bands=bands, tile_s=tile_s)
    start, threat = searched.start, searched.threat
    eps = finite_budgets(threat, start)

    def rule(batch: ActiveBatch, iteration: int, grad: Tensor, level: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        eps, velocity, rate, history = state
        velocity = momentum * velocity + (1 - momentum) * grad
        step = column(rate * eps, grad) * batch.threat.ascent(velocity)
        history = torch.cat([history[:, -patience + 1 :] if patience > 1 else history[:, :0], level[:, None]], 1)
        if history.shape[1] == patience and patience > 1:
            stalled = history[:, -1] < history[:, 0]
            rate = torch.where(stalled, (rate / 2).clamp_min(least_rate), rate)
            # A constant history restarts the count: it never halves the step size.
            history = torch.where(stalled[:, None], level[:, None].expand_as(history), history)
        return step, (eps, velocity, rate, history)

    batch = ActiveBatch(searched.model, start, y, threat, rng, targeted)
    probe = sigma * (eps if threat.norm == "linf" else eps / start[0].numel() ** 0.5)
    state = (eps, torch.zeros_like(start), torch.full_like(eps, learning_rate), eps.new_empty(len(x), 0))
    best = follow(batch, RandomStreams.normal, probe, rule, state, queries=queries, pairs=pairs)
    return searched.decode(best)
