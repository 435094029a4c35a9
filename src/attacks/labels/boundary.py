"""Boundary attack (Brendel, Rauber and Bethge 2018): a random walk along the decision boundary from predicted labels.
Each round steps along the boundary at a constant distance from the clean input, then towards it; both step sizes adapt
per example to their success rates. The walk starts from misclassified noise, or towards a target from clips of its
class; an example for which none is found is returned unchanged."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.labels.oracle import Examples, Oracle, bisect, start, within
from src.attacks.model import Model
from src.attacks.registration import attack
from src.random_streams import RandomStreams
from src.registry import Count, Positive
from src.threat import ThreatModel, column, norm_of

WINDOW = 10
"""Rounds between two adaptations of the step sizes."""


@attack("boundary", kind="minimum_norm", norms=("l2",), access="labels", takes_examples=True)
def boundary(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    examples: Examples | None = None,
    *,
    rng: RandomStreams,
    targeted: bool,
    queries: Count = 2000,
    sideways: Positive = 0.1,
    forward: Positive = 0.1,
    start_tries: Count = 16,
) -> Tensor:
    """Minimize the l2 norm by a random walk along the decision boundary, from predicted labels.

    Args:
        queries: largest number of queries per example.
        sideways: initial step along the boundary, in units of the distance from the clean input.
        forward: initial step towards the clean input, in units of the distance from it.
        start_tries: rounds of growing noise in the search for a starting point.
    """
    oracle = Oracle(ActiveBatch(model, x, y, threat, rng, targeted), queries)
    point, has_start = start(oracle, start_tries, examples)
    point = bisect(oracle, point, has_start, 10)
    result = point.clone()
    side_step, forward_step = x.new_full((len(x),), sideways), x.new_full((len(x),), forward)
    # Successes of both kinds of step and attempts of the second in the current window, [batch] each.
    side_hits, forward_hits, forward_tries = (torch.zeros_like(side_step) for _ in range(3))
    rounds = 0
    while True:
        distance = norm_of(point - oracle.batch.x, "l2")
        result[oracle.batch.index] = point
        point, distance, side_step, forward_step, side_hits, forward_hits, forward_tries = oracle.keep(
            (oracle.used < queries) & (distance > 0),
            point,
            distance,
            side_step,
            forward_step,
            side_hits,
            forward_hits,
            forward_tries,
        )
        batch = oracle.batch
        if not len(batch):
            return within(threat, result, x)
        direction = (point - batch.x) / column(distance, x)
        u = batch.threat.masked(batch.rng.normal(point))
        u = u - direction * column((u * direction).flatten(1).sum(1), u)
        u = u / column(norm_of(u, "l2"), u).clamp_min(1e-30)
        moved_direction = direction + u * column(side_step, u)
        moved_direction = moved_direction / column(norm_of(moved_direction, "l2"), u)
        moved = batch.threat.clip(batch.x + moved_direction * column(distance, u), batch.x)
        moved_succeeds = oracle.query(moved, torch.ones_like(distance, dtype=torch.bool))
        nearer = batch.threat.clip(batch.x + moved_direction * column(distance * (1 - forward_step), u), batch.x)
        nearer_succeeds = oracle.query(nearer, moved_succeeds)
        # A step along the boundary is accepted only if clipping at the bounds has not increased the distance.
        point = torch.where(column(moved_succeeds & (norm_of(moved - batch.x, "l2") <= distance), x), moved, point)
        point = torch.where(column(nearer_succeeds, x), nearer, point)
        side_hits, forward_hits = side_hits + moved_succeeds, forward_hits + nearer_succeeds
        forward_tries = forward_tries + moved_succeeds
        rounds += 1
        if rounds % WINDOW == 0:
            side_step = side_step * _factor(side_hits / WINDOW, 0.2, 0.5)
            rate = forward_hits / forward_tries.clamp_min(1)
            forward_step = (forward_step * _factor(rate, 0.1, 0.25, forward_tries > 0)).clamp(max=0.5)
            side_hits, forward_hits, forward_tries = (torch.zeros_like(side_step) for _ in range(3))


def _factor(rate: Tensor, low: float, high: float, known: Tensor | None = None) -> Tensor:
    """Factor of a step size, [batch]: below 1 where its success rate is too low, above 1 where it is too high."""
    factor = torch.where(rate < low, 1 / 1.5, torch.where(rate > high, 1.5, 1.0)).to(rate.dtype)
    return factor if known is None else torch.where(known, factor, 1.0)
