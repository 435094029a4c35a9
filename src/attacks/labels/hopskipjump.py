"""HopSkipJump (Chen, Jordan and Wainwright 2020), from predicted labels: at a point on the decision boundary, estimate
the normal of the boundary from random probes, step along it and return to the boundary by bisection. The search starts
from misclassified noise, or towards a target from clips of its class; an example for which none is found is returned
unchanged, as a failure.

The probes of the paper have as many dimensions as the input, and some hundred decisions say little about 16,000
samples. In the space of tiles, a subspace as in QEBA (Li et al. 2020), they change the levels of the time-frequency
tiles of the present perturbation: the search finds which of them the success does without."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.labels.oracle import Examples, Oracle, bisect, start, within
from src.attacks.model import Model
from src.attacks.registration import attack
from src.attacks.scores.estimated_gradient import Draw
from src.attacks.scores.tiles import SpaceName, Tiles
from src.random_streams import RandomStreams
from src.registry import Count, Positive
from src.threat import ThreatModel, column, norm_of

HALVINGS = 10
"""Step sizes tried per step, each half of the previous."""


@attack(
    "hopskipjump",
    kind="minimum_norm",
    norms=("l2", "linf"),
    access="labels",
    needs_sample_rate=True,
    takes_examples=True,
)
def hopskipjump(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    examples: Examples | None = None,
    *,
    rng: RandomStreams,
    targeted: bool,
    sample_rate: int,
    queries: Count = 2000,
    probes: Count = 25,
    probe: Positive = 0.1,
    start_tries: Count = 16,
    space: SpaceName = "tiles",
    bands: Count = 8,
    tile_s: Positive = 0.08,
) -> Tensor:
    """Minimize the norm along the decision boundary, from predicted labels.

    Args:
        queries: largest number of queries per example.
        probes: random probes of the first step; their number grows with the square root of the step.
        probe: length of a probe, in units of the distance from the clean input.
        start_tries: rounds of growing noise in the search for a starting point.
        space: of the probes: levels of the perturbation's time-frequency tiles, or the samples themselves; of a
            spectrogram always its bins.
        bands: tiles in frequency, equally wide on the mel scale.
        tile_s: seconds that a tile lasts.
    """
    oracle = Oracle(ActiveBatch(model, x, y, threat, rng, targeted), queries)
    point, has_start = start(oracle, start_tries, examples)

    def tiles_of(delta: Tensor) -> Tiles:
        return Tiles(delta, sample_rate, 0.01, tile_s, bands)

    in_tiles = space == "tiles" and x.dim() == 2
    entries = tiles_of(x).level.shape[1] if in_tiles else x[0].numel()
    # A probe moves by about its length / sqrt(entries) across the boundary, so the point must be nearer to it.
    halvings = min(20, math.ceil(math.log2(math.sqrt(entries) / probe)) + 1)
    point = bisect(oracle, point, has_start, halvings)
    result = point.clone()
    steps = 0
    while True:
        steps += 1
        count = round(probes * math.sqrt(steps))
        distance = norm_of(point - oracle.batch.x, threat.norm)
        result[oracle.batch.index] = point
        # Examples whose remaining queries do not suffice for another step, or that need none, are dropped.
        has_queries = oracle.used + count + HALVINGS + halvings <= queries
        point, distance = oracle.keep(has_queries & (distance > 0), point, distance)
        batch = oracle.batch
        if not len(batch):
            return within(threat, result, x)
        all_examples = torch.ones_like(distance, dtype=torch.bool)
        draw: Draw = tiles_of(point - batch.x).changes if in_tiles else RandomStreams.normal
        direction = batch.threat.ascent(_normal(oracle, point, probe * norm_of(point - batch.x, "l2"), count, draw))
        size, stepped = distance / math.sqrt(steps), torch.zeros_like(all_examples)
        moved = point
        for _ in range(HALVINGS):
            pending = all_examples & ~stepped
            if not bool(pending.any()):
                break
            candidate = batch.threat.clip(point + direction * column(size, x), batch.x)
            hit = oracle.query(candidate, pending)
            moved = torch.where(column(hit, x), candidate, moved)
            stepped, size = stepped | hit, size / 2
        moved = bisect(oracle, moved, stepped, halvings)
        nearer = norm_of(moved - batch.x, threat.norm) < distance
        # Only steps that reduce the distance are accepted.
        point = torch.where(column(nearer, x), moved, point)


def _normal(oracle: Oracle, point: Tensor, size: Tensor, count: int, draw: Draw) -> Tensor:
    """Estimated normal of the boundary, pointing towards success: the mean of random unit vectors weighted by their
    decisions, with the mean decision as baseline.

    Args:
        size: of the probes, [batch].
        draw: draws the vectors.
    """
    batch = oracle.batch
    all_examples = torch.ones(len(point), dtype=torch.bool, device=point.device)
    weighted, total, mean = torch.zeros_like(point), torch.zeros_like(point), point.new_zeros(len(point))
    for _ in range(count):
        u = batch.threat.masked(draw(batch.rng, point))
        u = u / column(norm_of(u, "l2"), u).clamp_min(1e-30)
        probe = batch.threat.clip(point + u * column(size, u), batch.x)
        decision = oracle.query(probe, all_examples).to(u.dtype) * 2 - 1
        weighted += u * column(decision, u)
        total += u
        mean += decision / count
    # Where all probes agree, the baseline would cancel the estimate.
    agree = mean.abs() > 1 - 1e-6
    return weighted - torch.where(column(agree, total), 0, column(mean, total) * total)
