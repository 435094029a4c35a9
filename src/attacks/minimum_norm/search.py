"""The common parts of the minimum-norm attacks. Libraries for images measure steps in absolute units, which fails on
waveforms; here every length is in units of the distance to the boundary that the first gradient predicts, margin / dual
norm."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.core import gradient
from src.attacks.model import Model, confirmed
from src.losses import margin
from src.random_streams import RandomStreams
from src.threat import ThreatModel, column, norm_of

DUAL = {"linf": "l1", "l2": "l2", "l1": "linf", "l0": "linf"}
SLACK = 1e-4
"""Share of the clean margin that a success must exceed; rounding in another copy of the model must not undo it."""


class Search(ActiveBatch):
    """The examples that need a perturbation, all active to the end. `best` is the smallest success, or x without one.

    Attributes:
        grad: of the margin at x, within the mask.
        value: margin at x, [batch], not positive.
        goal: margin of a success, [batch].
        reach: predicted distance to the boundary in the norm of the threat, [batch].
    """

    def __init__(self, batch: ActiveBatch, grad: Tensor, value: Tensor, goal: Tensor):
        super().__init__(batch.model, batch.x, batch.y, batch.threat, batch.rng, batch.targeted)
        self.grad, self.value, self.goal = self.threat.masked(grad).nan_to_num(0.0, 0.0, 0.0), value, goal
        self.reach = predicted(self.grad, value, self.x, self.threat.norm)

    def probe(self, x_adv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(gradient of the margin within the mask [batch, ...], margin [batch], success [batch] bool) at x_adv; updates
        the best."""
        grad, value, _ = gradient(self.model, x_adv, lambda logits: margin(logits, self.y, self.targeted))
        return self.threat.masked(grad).nan_to_num(0.0, 0.0, 0.0), value, self._enter(x_adv, value)

    def test(self, x_adv: Tensor) -> Tensor:
        """Success at x_adv, [batch] bool, by a forward pass only; updates the best."""
        return self._enter(x_adv, margin(self.model(x_adv), self.y, self.targeted))

    def _enter(self, x_adv: Tensor, value: Tensor) -> Tensor:
        success = confirmed(self.model, x_adv, value > self.goal, self.y, self.targeted)
        self.best.update(x_adv, -norm_of(x_adv - self.x, self.threat.norm), success, first=False)
        return success

    def toward(self, target: Tensor) -> Search:
        """A targeted search towards the class `target` [batch] for the examples of this untargeted search."""
        grad, value, _ = gradient(self.model, self.x, lambda logits: margin(logits, target, True))
        batch = ActiveBatch(self.model, self.x, target, self.threat, self.rng, True)
        return Search(batch, grad, value, (SLACK * value.abs()).maximum(self.goal))

    def take(self, other: Search) -> None:
        """Adopt the successes of another search of the same examples where they are smaller."""
        self.best.update(other.best.x, other.best.value, other.best.success, first=False)

    def size(self) -> Tensor:
        """Norm of the smallest success, [batch]; inf where there is none."""
        return torch.where(self.best.success, -self.best.value, math.inf)

    def shrink(self, steps: int) -> None:
        """Shrink each success by bisection of the segment from x to it (l0: of the number of its entries)."""
        delta = self.best.x - self.x
        low = torch.zeros_like(self.value)
        high = torch.ones_like(low)
        rank = torch.empty(0)
        if self.threat.norm == "l0":
            order = delta.flatten(1).abs().argsort(1, descending=True)
            positions = torch.arange(order.shape[1], device=order.device).expand_as(order)
            rank = torch.empty_like(order).scatter_(1, order, positions).view_as(delta)
            entries = norm_of(delta, "l0")
        for _ in range(steps):
            middle = (low + high) / 2
            if self.threat.norm == "l0":
                part = delta * (rank < column((middle * entries).ceil(), delta))
            else:
                part = delta * column(middle, delta)
            success = self.test(self.threat.clip(self.x + part, self.x))
            high = torch.where(success, middle, high)
            low = torch.where(success, low, middle)


def minimize(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    rng: RandomStreams,
    targeted: bool,
    search: Callable[[Search], None],
    shrink_steps: int = 10,
) -> Tensor:
    """Run `search` on the examples that are not misclassified already, then shrink each success by bisection towards x.
    A failure is returned unchanged; results that exceed a finite eps are projected."""
    grad, value, _ = gradient(model, x, lambda logits: margin(logits, y, targeted))
    goal, out, batch = SLACK * value.abs(), x.clone(), ActiveBatch(model, x, y, threat, rng, targeted)
    done = confirmed(model, x, value > goal, y, targeted)
    grad, value, goal = batch.keep(~done, grad, value, goal)
    if len(batch):
        active_search = Search(batch, grad, value, goal)
        search(active_search)
        if shrink_steps:
            active_search.shrink(shrink_steps)
        out[batch.index] = active_search.threat.project(
            torch.where(column(active_search.best.success, x), active_search.best.x, active_search.x), active_search.x
        )
    return out


def predicted(grad: Tensor, value: Tensor, x: Tensor, norm: str) -> Tensor:
    """Distance to the boundary of the linear model with this margin and gradient, [batch]. A saturated model predicts
    arbitrarily large distances, so they are limited to a tenth of the norm of the clip (20 dB SNR)."""
    slope = norm_of(grad, DUAL[norm]).clamp_min(1e-30)
    level = norm_of(x, "l1" if norm == "l0" else norm) / 10
    return (value.abs() * (1 + SLACK) / slope).minimum(torch.where(level > 0, level, 1.0)).clamp_min(1e-12)
