"""Carlini and Wagner's smallest L2 perturbation (2017): minimize ||delta||^2 + c * max(0, confidence - margin), with a
binary search for c per example.

Defaults for images fail on waveforms (one Adam step of 0.01 on 16,000 samples has an L2 norm of 1.26), so lengths are
measured in units of the norm r of a first success along the gradient: a step has length `learning_rate` * r, c is a
multiple of 2 r^2 / margin, which balances both terms at r for a linear model. Adam's second moment is one number
per example, so that a step follows the gradient instead of its signs: sign-like steps change silent samples too and
increase the L2 norm. The descents start from the result of a short search for the nearest class."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.core import Best, check_interval, gradient
from src.attacks.minimum_norm.ddn import nearest
from src.attacks.minimum_norm.published_cw import published
from src.attacks.minimum_norm.search import SLACK, Search
from src.attacks.model import Model, confirmed
from src.attacks.registration import attack
from src.losses import margin
from src.random_streams import RandomStreams
from src.registry import Count, NonNegative, Positive
from src.threat import ThreatModel, column, norm_of

SCOUT_STEPS = 20
"""Gradient steps for each candidate of the nearest class."""
CROSSING_STEPS, GROWTH = 20, 1.4
"""Steps in the search for a first success, and the factor by which each is longer than the previous."""
SHRINK = 0.99
"""An objective that is not below this share of its value a tenth of the steps earlier has converged."""


@attack("cw", kind="minimum_norm", norms=("l2",), access="gradients")
def cw(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    search_steps: Count = 5,
    steps: Count = 100,
    learning_rate: Positive = 0.1,
    initial_c: Positive = 1.5,
    confidence: NonNegative = 0.0,
    candidates: Count = 3,
    abort_early: bool = True,
    schedule: Literal["scaled", "published"] = "scaled",
) -> Tensor:
    """Smallest l2 perturbation that changes the decision, by penalty and binary search.

    Args:
        search_steps: values of c tried per example.
        steps: gradient steps per value of c.
        learning_rate: length of the first steps, in units of the norm of the first success; it decays to zero.
        initial_c: initial weight of the misclassification term, in units of the weight that balances a linear model.
        confidence: margin between the logits that a success must have.
        candidates: most likely other classes that a few gradient steps each compare; the nearest becomes the target. 1
            maximizes the margin over all classes, as published.
        abort_early: an example stops when a tenth of the steps lowers its objective by less than 1 %.
        schedule: scaled: as above. published: absolute c and learning_rate, Adam on tanh, bisection of c, no
            candidates; CW2 of the speaker-recognition study has steps = 10000, search_steps = 9, learning_rate = 0.01
            and initial_c = 0.001.
    """
    if schedule == "published":
        return published(
            model, x, y, threat, rng, targeted, search_steps=search_steps, steps=steps, learning_rate=learning_rate,
            initial_c=initial_c, confidence=confidence, abort_early=abort_early,
        )  # fmt: skip
    best = Best.of(x)
    if candidates > 1 and not targeted:
        grad, value, _ = gradient(model, x, lambda logits: margin(logits, y, False))
        scouts = Search(ActiveBatch(model, x, y, threat, rng, False), grad, value, SLACK * value.abs())
        y, targeted = nearest(scouts, candidates, SCOUT_STEPS), True
        if not confidence:
            best.update(scouts.best.x, -scouts.size().square(), scouts.best.success, first=False)
    start = best.x.clone()
    crossing = ActiveBatch(model, x, y, threat, rng, targeted, best)
    first_norm, needed, goal = _first_crossing(crossing, confidence)
    c = initial_c * 2 * first_norm.square() / needed
    low, high = torch.zeros_like(c), torch.full_like(c, math.inf)
    for _ in range(search_steps):
        succeeded = _descend(
            ActiveBatch(model, x, y, threat, rng, targeted, best),
            start,
            c,
            goal,
            first_norm * learning_rate,
            steps,
            abort_early,
        )
        high = torch.where(succeeded, c, high)
        low = torch.where(succeeded, low, c)
        c = torch.where(high.isinf(), c * 10, torch.where(low == 0, high / 10, (low * high).sqrt()))
    return best.x


def _first_crossing(batch: ActiveBatch, confidence: float) -> tuple[Tensor, Tensor, Tensor]:
    """Follow the gradient of the margin in growing steps until the margin is large enough; the first step is 1 % longer
    than a linear model needs. Updates the best of the batch.

    Returns:
        norm of the first success (or of the last iterate), increase of the margin that it takes, margin of a success;
        of the full batch, [batch] each.
    """
    x_adv, first_norm = batch.x.clone(), norm_of(batch.best.x - batch.x, "l2")
    needed = goal = active_goal = length = first_norm
    for iteration in range(CROSSING_STEPS + 1):
        x, threat = batch.x, batch.threat
        grad, value, _ = gradient(batch.model, x_adv, lambda logits: margin(logits, batch.y, batch.targeted))
        if iteration == 0:
            goal = active_goal = confidence + SLACK * value.abs()
            needed = (goal - value).clamp_min(1e-12)
            length = needed / norm_of(threat.masked(grad), "l2").clamp_min(1e-20)
            # A saturated model predicts arbitrarily large lengths: the limit is 20 dB below the clip.
            level = norm_of(x, "l2") / 10
            length = length.minimum(torch.where(level > 0, level, math.inf)).nan_to_num(posinf=1.0) * 1.01
        size = norm_of(x_adv - x, "l2")
        first_norm[batch.index] = torch.where(batch.best.success, first_norm[batch.index], size)
        crossed = confirmed(batch.model, x_adv, value > active_goal, batch.y, batch.targeted)
        batch.best.update(x_adv, -size.square(), crossed, first=True)
        if iteration == CROSSING_STEPS:
            break
        if iteration % check_interval(x) == 0:
            x_adv, grad, active_goal, length = batch.keep(~batch.best.success, x_adv, grad, active_goal, length)
            if not len(batch):
                break
        direction = batch.threat.masked(grad)
        direction = direction / column(norm_of(direction, "l2"), direction).clamp_min(1e-30)
        x_adv = batch.threat.clip(x_adv + direction * column(length * GROWTH**iteration, x_adv), batch.x)
    batch.finish()
    return first_norm.clamp_min(1e-12), needed, goal


def _descend(
    batch: ActiveBatch, start: Tensor, c: Tensor, goal: Tensor, step_size: Tensor, steps: int, abort_early: bool
) -> Tensor:
    """Gradient descent from `start` with one c per example; updates the best. Returns which succeeded, [batch] bool."""
    variable = (Tanh if all(map(math.isfinite, batch.threat.bounds)) else Direct)(batch, start)
    succeeded = torch.zeros_like(c, dtype=torch.bool)
    reached, first, second = succeeded.clone(), torch.zeros_like(batch.x), torch.zeros_like(c)
    previous = torch.full_like(c, math.inf)
    for iteration in range(steps):
        x_adv = variable.point()
        grad, value, _ = gradient(batch.model, x_adv, lambda logits: margin(logits, batch.y, batch.targeted))
        delta = x_adv - batch.x
        square = delta.flatten(1).square().sum(1)
        success = confirmed(batch.model, x_adv, value > goal, batch.y, batch.targeted)
        reached |= success
        batch.best.update(x_adv, -square, success, first=False)
        objective = square + c * (goal - value).clamp_min(0)
        # The gradient of the hinge is zero once the margin reaches the goal.
        grad = delta.mul_(2).sub_(grad * column(c * (value <= goal), grad))
        grad = variable.chain(batch.threat.masked(grad))
        first.mul_(0.9).add_(grad, alpha=0.1)
        second = 0.99 * second + 0.01 * grad.flatten(1).square().sum(1)
        scale = (second / (1 - 0.99 ** (iteration + 1))).sqrt().clamp_min(1e-30)
        decay = 0.5 * (1 + math.cos(math.pi * iteration / steps)) / (1 - 0.9 ** (iteration + 1))
        variable.add(first * column(-decay * step_size / scale, first))
        if abort_early and iteration % max(steps // 10, check_interval(grad)) == 0:
            succeeded[batch.index] = reached
            variable, c, goal, step_size, reached, first, second, previous = batch.keep(
                objective < SHRINK * previous, variable, c, goal, step_size, reached, first, second, objective
            )
            if not len(batch):
                return succeeded
    succeeded[batch.index] = reached
    batch.finish()
    return succeeded


class Direct:
    """Optimization of the perturbed input itself, clipped after every step."""

    def __init__(self, batch: ActiveBatch, start: Tensor):
        self.batch, self.x_adv = batch, start.clone()

    def point(self) -> Tensor:
        return self.x_adv

    def chain(self, grad: Tensor) -> Tensor:
        """The gradient with respect to the optimized variable, [batch, ...]."""
        return grad

    def add(self, step: Tensor) -> None:
        self.x_adv = self.batch.threat.clip(self.x_adv + step, self.batch.x)

    def select(self, index: Tensor) -> Direct:
        self.x_adv = self.x_adv[index]
        return self


class Tanh:
    """Optimization after the change of variables for finite bounds: x = middle + half * tanh(w), with w scaled so that
    near the middle a step of w is an equal step of x."""

    def __init__(self, batch: ActiveBatch, start: Tensor):
        low, high = batch.threat.bounds
        self.middle, self.half = (low + high) / 2, (high - low) / 2
        self.batch = batch
        self.origin = ((batch.x - self.middle) / self.half).clamp(-1 + 1e-6, 1 - 1e-6)
        self.t = ((start - self.middle) / self.half).clamp(-1 + 1e-6, 1 - 1e-6)
        self.w = self.t.atanh()

    def point(self) -> Tensor:
        self.t = self.w.tanh()
        # The difference keeps an unchanged entry exactly equal to that of x.
        return self.batch.threat.clip(self.batch.x + self.half * (self.t - self.origin), self.batch.x)

    def chain(self, grad: Tensor) -> Tensor:
        return grad * (1 - self.t.square())

    def add(self, step: Tensor) -> None:
        self.w += step / self.half

    def select(self, index: Tensor) -> Tanh:
        self.origin, self.w, self.t = self.origin[index], self.w[index], self.t[index]
        return self
