"""The common parts of the decision-based attacks: label queries counted per example, a misclassified starting point,
bisection to the decision boundary."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from src.attacks.active_batch import ActiveBatch, State
from src.attacks.model import narrow, succeeds
from src.threat import ThreatModel, column, norm_of

LEVELS = (1 / 64, 1 / 16, 1 / 4, 1, 4, 16)
"""Root mean squares of the growing noise, in units of that of the clip; bisection refines the level."""
WIDTHS = (1, 4, 16, 64)
"""Lengths of the moving averages that color the noise: white noise alone reaches too few classes."""
EXAMPLES = 16
"""Examples of the target class, the nearest ones, that are tried as starting points."""
NEARER = 0.9
"""An example replaces the best starting point if it succeeds at this share of its distance."""
Examples = tuple[Tensor, Tensor]
"""Inputs [examples, ...] and their labels [examples] that an attacker has beforehand, such as training clips."""


class Oracle:
    """Predicted labels under a limit of queries per example.

    Args:
        batch: the examples.
        limit: largest number of queries per example.

    Attributes:
        used: queries so far, [batch] long.
    """

    def __init__(self, batch: ActiveBatch, limit: int):
        self.batch, self.limit = batch, limit
        self.used = torch.zeros(len(batch), dtype=torch.long, device=batch.x.device)

    def query(self, x_adv: Tensor, selected: Tensor) -> Tensor:
        """Whether x_adv [batch, ...] succeeds, [batch] bool: one query for each of the `selected` [batch] bool that has
        queries left; False for the others."""
        index = (selected & (self.used < self.limit)).nonzero().flatten()
        success = torch.zeros_like(selected)
        if len(index):
            self.used[index] += 1
            model = self.batch.model if len(index) == len(selected) else narrow(self.batch.model, index)
            asked = x_adv[index]
            success[index] = succeeds(model, asked, model(asked), self.batch.y[index], self.batch.targeted)
        return success

    def keep(self, active: Tensor, *state: *State) -> tuple[*State]:
        """`ActiveBatch.keep`, with the query counts."""
        self.used, state = self.batch.keep(active, self.used, state)
        return state


def start(oracle: Oracle, tries: int, examples: Examples | None = None) -> tuple[Tensor, Tensor]:
    """A starting point that succeeds: the clean input if it is misclassified, else, towards a target, a nearby example
    of its class, else the clean input plus growing noise.

    Returns:
        (points [batch, ...]; whether they succeed, [batch] bool). Where `tries` rounds of growing noise fail, the point
        is the clean input.
    """
    batch = oracle.batch
    x, threat = batch.x, batch.threat
    succeeds = oracle.query(x, torch.ones(len(x), dtype=torch.bool, device=x.device))
    point = x.clone()
    if batch.targeted and examples is not None:
        point, succeeds = _from_examples(oracle, point, succeeds, examples)
    rms = norm_of(x, "l2") / x[0].numel() ** 0.5
    rms = torch.where(rms > 0, rms, 1.0)
    for attempt in range(tries):
        index = (~succeeds).nonzero().flatten()
        if not len(index):
            break
        # Only pending examples draw noise, so that the random numbers of an example do not depend on the others.
        noise = torch.zeros_like(x)
        noise[index] = batch.rng.select(index).normal(x[index])
        noise = threat.masked(_colored(noise, WIDTHS[attempt % len(WIDTHS)]))
        noise = noise / column(norm_of(noise, "l2") / x[0].numel() ** 0.5, x).clamp_min(1e-30)
        for level in LEVELS:
            candidate = threat.clip(x + noise * column(rms * level, x), x)
            hit = oracle.query(candidate, ~succeeds)
            point = torch.where(column(hit, x), candidate, point)
            succeeds = succeeds | hit
    return point, succeeds


def _from_examples(oracle: Oracle, point: Tensor, succeeds: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
    """Starting points among the nearest examples of the target classes, as `start`. The first that succeeds is moved
    to the boundary; each further one takes a query, and more only where it is nearer on its own line to the clean
    input.

    Args:
        point: clean inputs, [batch, ...].
        succeeds: which of them need no start, [batch] bool.
    """
    batch, (inputs, labels) = oracle.batch, examples
    x, norm, misclassified = batch.x, batch.threat.norm, succeeds
    best = torch.where(succeeds, 0, torch.full_like(point.flatten(1)[:, 0], math.inf))
    for example, available in _nearest(x, batch.y, inputs.to(x), labels.to(batch.y), norm):
        example = batch.threat.clip(example, x)
        distance = norm_of(example - x, norm)
        nearer = batch.threat.clip(between(x, example, (NEARER * best / distance).clamp(max=1), norm), x)
        hit = oracle.query(nearer, available & ~misclassified & (distance > 0))
        moved = bisect(oracle, nearer, hit, 8)
        point = torch.where(column(hit, x), moved, point)
        best = torch.where(hit, norm_of(moved - x, norm), best)
        succeeds = succeeds | hit
    return point, succeeds


def _nearest(x: Tensor, y: Tensor, inputs: Tensor, labels: Tensor, norm: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The examples of each input's target class in the order of their distance: (examples [batch, ...]; whether there
    is one, [batch] bool), at most `EXAMPLES` times."""
    order = []
    for clean, target in zip(x, y, strict=True):
        index = (labels == target).nonzero().flatten()
        order.append(index[norm_of(inputs[index] - clean, norm).argsort(stable=True)][:EXAMPLES])
    for rank in range(max(map(len, order), default=0)):
        available = torch.tensor([rank < len(index) for index in order], device=x.device)
        chosen = torch.stack([index[rank] if rank < len(index) else y.new_zeros(()) for index in order])
        yield inputs[chosen], available


def _colored(noise: Tensor, width: int) -> Tensor:
    """White noise averaged over `width` neighbors along the last axis."""
    flat = noise.reshape(len(noise), -1, noise.shape[-1])
    width = min(width, 2 * ((noise.shape[-1] - 1) // 2) + 1)
    return F.avg_pool1d(flat, width, 1, width // 2)[..., : noise.shape[-1]].reshape(noise.shape) if width > 1 else noise


def between(x: Tensor, x_adv: Tensor, share: Tensor, norm: str) -> Tensor:
    """The point with `share` [batch] of the distance from x to x_adv: on the line (l2), or in the box (linf)."""
    delta = x_adv - x
    if norm == "linf":
        size = column(share * norm_of(delta, "linf"), x)
        return x + delta.clamp(-size, size)
    return x + delta * column(share, x)


def bisect(oracle: Oracle, x_adv: Tensor, selected: Tensor, steps: int) -> Tensor:
    """Move the successes x_adv [batch, ...] of the `selected` examples [batch] bool towards the clean input by `steps`
    bisections of one query each; the results still succeed."""
    batch = oracle.batch
    low, high = x_adv.new_zeros(len(x_adv)), x_adv.new_ones(len(x_adv))
    for _ in range(steps):
        middle = (low + high) / 2
        hit = oracle.query(batch.threat.clip(between(batch.x, x_adv, middle, batch.threat.norm), batch.x), selected)
        low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
    nearer = batch.threat.clip(between(batch.x, x_adv, high, batch.threat.norm), batch.x)
    return torch.where(column(selected & (high < 1), x_adv), nearer, x_adv)


def within(threat: ThreatModel, x_adv: Tensor, x: Tensor) -> Tensor:
    """x_adv, projected only where it violates the threat model: the rounding of a projection could undo a success."""
    return torch.where(column(threat.contains(x_adv, x), x), x_adv, threat.project(x_adv, x))
