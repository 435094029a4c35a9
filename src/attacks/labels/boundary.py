"""Boundary attack (Brendel, Rauber and Bethge 2018): a random walk along the boundary by decisions alone. Each round
moves sideways at a constant distance from the clean input, then towards it; both step sizes adapt to how often they
succeed, per example. Starts from noise that is misclassified; an example without such noise is returned unchanged."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.core import Model, attack
from src.attacks.labels.oracle import Oracle, bisect, start, within
from src.random_streams import RandomStreams
from src.registry import Count, Positive
from src.threat import ThreatModel, column, norm_of

WINDOW = 10
"""Rounds between two changes of the step sizes."""


@attack("boundary", kind="minimum_norm", norms=("l2",), access="labels")
def boundary(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    queries: Count = 2000,
    sideways: Positive = 0.1,
    forward: Positive = 0.1,
    start_tries: Count = 16,
) -> Tensor:
    """A random walk along the boundary towards the clean input, by decisions alone.

    Args:
        queries: most queries per example.
        sideways: first step along the boundary, in distances from the clean input.
        forward: first step towards the clean input, in distances from it.
        start_tries: rounds of growing noise to find a start.
    """
    oracle = Oracle(ActiveBatch(model, x, y, threat, rng, targeted), queries)
    point, found = start(oracle, start_tries)
    point = bisect(oracle, point, found, 10)
    result = point.clone()
    side, ahead = x.new_full((len(x),), sideways), x.new_full((len(x),), forward)
    # Successes and attempts in the current window: [batch] each.
    side_hits, hits, tried = torch.zeros_like(side), torch.zeros_like(side), torch.zeros_like(side)
    rounds = 0
    while True:
        distance = norm_of(point - oracle.batch.x, "l2")
        result[oracle.batch.index] = point
        point, distance, side, ahead, side_hits, hits, tried = oracle.keep(
            (oracle.used < queries) & (distance > 0), point, distance, side, ahead, side_hits, hits, tried
        )
        batch = oracle.batch
        if not len(batch):
            return within(threat, result, x)
        away = (point - batch.x) / column(distance, x)
        u = batch.threat.masked(batch.rng.normal(point))
        u = u - away * column((u * away).flatten(1).sum(1), u)
        u = u / column(norm_of(u, "l2"), u).clamp_min(1e-30)
        around = away + u * column(side, u)
        around = around / column(norm_of(around, "l2"), u)
        moved = batch.threat.clip(batch.x + around * column(distance, u), batch.x)
        first = oracle.ask(moved, torch.ones_like(distance, dtype=torch.bool))
        nearer = batch.threat.clip(batch.x + around * column(distance * (1 - ahead), u), batch.x)
        second = oracle.ask(nearer, first)
        # Clipping at the bounds may only shorten a step sideways.
        point = torch.where(column(first & (norm_of(moved - batch.x, "l2") <= distance), x), moved, point)
        point = torch.where(column(second, x), nearer, point)
        side_hits, hits, tried = side_hits + first, hits + second, tried + first
        rounds += 1
        if rounds % WINDOW == 0:
            side = side * _factor(side_hits / WINDOW, 0.2, 0.5)
            ahead = (ahead * _factor(hits / tried.clamp_min(1), 0.1, 0.25, tried > 0)).clamp(max=0.5)
            side_hits, hits, tried = torch.zeros_like(side), torch.zeros_like(side), torch.zeros_like(side)


def _factor(rate: Tensor, low: float, high: float, known: Tensor | None = None) -> Tensor:
    """What to multiply a step size by: smaller where it succeeds too rarely, larger where too often. [batch]."""
    factor = torch.where(rate < low, 1 / 1.5, torch.where(rate > high, 1.5, 1.0)).to(rate.dtype)
    return factor if known is None else torch.where(known, factor, 1.0)
