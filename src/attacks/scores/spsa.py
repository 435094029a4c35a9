"""Simultaneous perturbation stochastic approximation (Spall 1992; Uesato et al. 2018): Adam on gradients estimated
from random-sign probes."""

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
from src.registry import Count, Positive
from src.threat import ThreatModel, column


@attack("spsa", kind="budget", norms=("linf", "l2"), access="scores", needs_sample_rate=True)
def spsa(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    sample_rate: int,
    queries: Count = 2000,
    pairs: Count = 8,
    probe: Positive = 0.3,
    learning_rate: Positive = 0.3,
    space: SpaceName = "tiles",
    bands: Count = 8,
    tile_s: Positive = 0.08,
) -> Tensor:
    """Adam on a gradient estimated from random-sign probes.

    Args:
        queries: largest number of queries per example; a step takes 2 * pairs + 1.
        pairs: antithetic pairs of probes per step.
        probe: size of a probe's entries, in units of eps (linf) or eps / sqrt(entries) (l2).
        learning_rate: of Adam, in the same units.
        space: what is searched: weights of time-frequency tiles, as in a linf ball of eps 1, or the samples themselves;
            of a spectrogram always its bins.
        bands: tiles in frequency, equally wide on the mel scale.
        tile_s: seconds that a tile lasts.
    """
    searched = search_space(space, model, x, threat, rng, sample_rate=sample_rate, bands=bands, tile_s=tile_s)
    start, threat = searched.start, searched.threat
    unit = finite_budgets(threat, start)
    unit = unit if threat.norm == "linf" else unit / start[0].numel() ** 0.5

    def rule(batch: ActiveBatch, iteration: int, grad: Tensor, level: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        unit, first, second = state
        first = 0.9 * first + 0.1 * grad
        second = 0.99 * second + 0.01 * grad.square()
        moment = first / (1 - 0.9 ** (iteration + 1))
        scale = (second / (1 - 0.99 ** (iteration + 1))).sqrt()
        return moment / scale.clamp_min(1e-30) * column(learning_rate * unit, grad), (unit, first, second)

    batch = ActiveBatch(searched.model, start, y, threat, rng, targeted)
    state = (unit, torch.zeros_like(start), torch.zeros_like(start))
    best = follow(batch, RandomStreams.signs, probe * unit, rule, state, queries=queries, pairs=pairs)
    return searched.decode(best)
