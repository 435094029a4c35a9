"""What attacks by decisions share: a starting point that is misclassified, the way back along a line to the boundary,
and the count of queries, per example because their searches differ."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from src.attacks.active_batch import ActiveBatch, State
from src.attacks.core import narrow
from src.losses import fooled
from src.threat import ThreatModel, column, norm_of

LEVELS = (1 / 64, 1 / 16, 1 / 4, 1, 4, 16)
"""Root mean square of the growing noise, in units of the clip's; bisection then finds the finer level."""
WIDTHS = (1, 4, 16, 64)
"""Moving averages over so many neighbors color the noise: white noise alone reaches too few classes."""


class Oracle:
    """Decisions for any part of a batch, and how many each example has asked for.

    Attributes:
        used: queries so far, [batch] long.
    """

    def __init__(self, batch: ActiveBatch, limit: int):
        self.batch, self.limit = batch, limit
        self.used = torch.zeros(len(batch), dtype=torch.long, device=batch.x.device)

    def ask(self, x_adv: Tensor, who: Tensor) -> Tensor:
        """Whether x_adv [batch, ...] succeeds, for the examples in `who` [batch] bool that have a query left; False
        for the others. [batch] bool."""
        index = (who & (self.used < self.limit)).nonzero().flatten()
        answer = torch.zeros_like(who)
        if len(index):
            self.used[index] += 1
            model = self.batch.model if len(index) == len(who) else narrow(self.batch.model, index)
            answer[index] = fooled(model(x_adv[index]), self.batch.y[index], self.batch.targeted)
        return answer

    def keep(self, stays: Tensor, *state: *State) -> tuple[*State]:
        """`ActiveBatch.keep`, with the counts."""
        self.used, state = self.batch.keep(stays, self.used, state)
        return state


def start(oracle: Oracle, tries: int) -> tuple[Tensor, Tensor]:
    """A point of the wanted class: the clean input where it is one already, else noise that grows until it is.

    Returns:
        (points, [batch, ...]; whether one was found within `tries` rounds of growing noise, [batch] bool). Where none
        was found the point is the clean input.
    """
    batch = oracle.batch
    x, threat = batch.x, batch.threat
    found = oracle.ask(x, torch.ones(len(x), dtype=torch.bool, device=x.device))
    point = x.clone()
    rms = norm_of(x, "l2") / x[0].numel() ** 0.5
    rms = torch.where(rms > 0, rms, 1.0)
    for attempt in range(tries):
        index = (~found).nonzero().flatten()
        if not len(index):
            break
        # Only those that wait draw, or an example's random numbers would depend on its neighbors.
        noise = torch.zeros_like(x)
        noise[index] = batch.rng.select(index).normal(x[index])
        noise = threat.masked(_colored(noise, WIDTHS[attempt % len(WIDTHS)]))
        noise = noise / column(norm_of(noise, "l2") / x[0].numel() ** 0.5, x).clamp_min(1e-30)
        for level in LEVELS:
            candidate = threat.clip(x + noise * column(rms * level, x), x)
            hit = oracle.ask(candidate, ~found)
            point = torch.where(column(hit, x), candidate, point)
            found = found | hit
    return point, found


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


def bisect(oracle: Oracle, x_adv: Tensor, who: Tensor, steps: int) -> Tensor:
    """Move the successes x_adv of `who` towards the clean input, to the boundary but still successful, for `steps`
    queries each."""
    batch = oracle.batch
    low, high = x_adv.new_zeros(len(x_adv)), x_adv.new_ones(len(x_adv))
    for _ in range(steps):
        middle = (low + high) / 2
        hit = oracle.ask(batch.threat.clip(between(batch.x, x_adv, middle, batch.threat.norm), batch.x), who)
        low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
    closer = batch.threat.clip(between(batch.x, x_adv, high, batch.threat.norm), batch.x)
    return torch.where(column(who & (high < 1), x_adv), closer, x_adv)


def within(threat: ThreatModel, x_adv: Tensor, x: Tensor) -> Tensor:
    """x_adv, projected only where it is not legal: rounding in a needless projection could undo a success."""
    return torch.where(column(threat.contains(x_adv, x), x), x_adv, threat.project(x_adv, x))
