"""HopSkipJump (Chen, Jordan and Wainwright 2020): decisions alone. From a point on the boundary, guess the boundary's
normal from random probes, step along it and come back to the boundary by bisection. Starts from noise that is
misclassified; an example without such noise is returned unchanged, as a failure."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.core import Model, attack
from src.attacks.labels.oracle import Oracle, bisect, start, within
from src.random_streams import RandomStreams
from src.registry import Count, Positive
from src.threat import ThreatModel, column, norm_of

HALVINGS = 10
"""Step sizes tried per step, each half of the one before."""


@attack("hopskipjump", kind="minimum_norm", norms=("l2", "linf"), access="labels")
def hopskipjump(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    queries: Count = 2000,
    probes: Count = 50,
    probe: Positive = 0.01,
    start_tries: Count = 16,
) -> Tensor:
    """Along the boundary towards the clean input, by decisions alone.

    Args:
        queries: most queries per example.
        probes: random probes of the first step; they grow with the root of the number of steps.
        probe: length of a probe, in distances from the clean input.
        start_tries: rounds of growing noise to find a start.
    """
    oracle = Oracle(ActiveBatch(model, x, y, threat, rng, targeted), queries)
    point, found = start(oracle, start_tries)
    entries = x[0].numel()
    # A probe moves by about its length / sqrt(entries) across the boundary, so the point must be nearer to it.
    halvings = min(20, math.ceil(math.log2(math.sqrt(entries) / probe)) + 1)
    point = bisect(oracle, point, found, halvings)
    result = point.clone()
    steps = 0
    while True:
        steps += 1
        count = round(probes * math.sqrt(steps))
        distance = norm_of(point - oracle.batch.x, threat.norm)
        result[oracle.batch.index] = point
        # Those that can afford no more, or need none, leave.
        affords = oracle.used + count + HALVINGS + halvings <= queries
        point, distance = oracle.keep(affords & (distance > 0), point, distance)
        batch = oracle.batch
        if not len(batch):
            return within(threat, result, x)
        everyone = torch.ones_like(distance, dtype=torch.bool)
        direction = batch.threat.ascent(_normal(oracle, point, probe * norm_of(point - batch.x, "l2"), count))
        size, step = distance / math.sqrt(steps), torch.zeros_like(everyone)
        moved = point
        for _ in range(HALVINGS):
            waiting = everyone & ~step
            if not bool(waiting.any()):
                break
            candidate = batch.threat.clip(point + direction * column(size, x), batch.x)
            hit = oracle.ask(candidate, waiting)
            moved = torch.where(column(hit, x), candidate, moved)
            step, size = step | hit, size / 2
        moved = bisect(oracle, moved, step, halvings)
        nearer = norm_of(moved - batch.x, threat.norm) < distance
        # The walk goes on from where it came to; the result keeps the nearest success.
        point = torch.where(column(nearer, x), moved, point)


def _normal(oracle: Oracle, point: Tensor, size: Tensor, count: int) -> Tensor:
    """The direction that points into the wanted class: the mean of random unit vectors weighted by their decisions,
    less the mean decision."""
    batch = oracle.batch
    everyone = torch.ones(len(point), dtype=torch.bool, device=point.device)
    weighted, plain, mean = torch.zeros_like(point), torch.zeros_like(point), point.new_zeros(len(point))
    for _ in range(count):
        u = batch.threat.masked(batch.rng.normal(point))
        u = u / column(norm_of(u, "l2"), u).clamp_min(1e-30)
        decision = oracle.ask(batch.threat.clip(point + u * column(size, u), batch.x), everyone).to(u.dtype) * 2 - 1
        weighted += u * column(decision, u)
        plain += u
        mean += decision / count
    # Where all probes agree the baseline would remove everything.
    agree = mean.abs() > 1 - 1e-6
    return weighted - torch.where(column(agree, plain), 0, column(mean, plain) * plain)
