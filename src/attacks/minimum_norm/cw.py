"""Carlini and Wagner's smallest L2 perturbation (2017): minimise ||delta||^2 + c * max(0, confidence - margin), with a
binary search for c per example.

Image defaults fail on waveforms (one Adam step of 0.01 on 16,000 samples has an L2 norm of 1.26), so lengths are
measured in the norm r of a first success that is found along the gradient: a step moves an example by `learning_rate`
* r, and c is a multiple of 2 r^2 / margin, which balances both terms at r where the model is linear. Adam's second
moment is one number per example, so that a step follows the gradient instead of its signs: sign-like steps spread over
silent samples and cost L2. The descents start from what a short search for the nearest class found."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.core import Best, Model, attack, every, gradient
from src.attacks.minimum_norm.ddn import nearest
from src.attacks.minimum_norm.search import SLACK, Search
from src.losses import margin
from src.random_streams import RandomStreams
from src.registry import Count, NonNegative, Positive
from src.threat import ThreatModel, column, norm_of

SCOUT_STEPS = 20
"""Gradients for each class that may be the nearest."""
CROSSING_STEPS, GROWTH = 20, 1.4
"""Steps that look for a first success, and how much longer each is than the one before."""
SHRINK = 0.99
"""An objective that falls by less within a tenth of the steps has converged."""


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
) -> Tensor:
    """Smallest l2 perturbation that changes the decision, by penalty and binary search.

    Args:
        search_steps: values of c tried per example.
        steps: gradient steps per value of c.
        learning_rate: length of the first steps, in norms of the first success found; it decays to zero.
        initial_c: first weight of the misclassification term, in units of the one that balances a linear model.
        confidence: margin between the logits that a success must have.
        candidates: most likely other classes among which a few gradients seek the nearest, which then is the target; 1
            follows the margin to whichever class comes next, as published.
        abort_early: an example stops when a tenth of the steps lowers its objective by less than 1 %.
    """
    best = Best.of(x)
    if candidates > 1 and not targeted:
        grad, value, _ = gradient(model, x, lambda logits: margin(logits, y, False))
        scouts = Search(ActiveBatch(model, x, y, threat, rng, False), grad, value, SLACK * value.abs())
        y, targeted = nearest(scouts, candidates, SCOUT_STEPS), True
        if not confidence:
            best.update(scouts.best.x, -scouts.size().square(), scouts.best.success, first=False)
    start = best.x.clone()
    reach, needed, goal = _first_crossing(model, x, y, threat, best, confidence, targeted)
    c = initial_c * 2 * reach.square() / needed
    low, high = torch.zeros_like(c), torch.full_like(c, math.inf)
    for _ in range(search_steps):
        found = _descend(
            ActiveBatch(model, x, y, threat, rng, targeted, best),
            start,
            c,
            goal,
            reach * learning_rate,
            steps,
            abort_early,
        )
        high = torch.where(found, c, high)
        low = torch.where(found, low, c)
        c = torch.where(high.isinf(), c * 10, torch.where(low == 0, high / 10, (low * high).sqrt()))
    return best.x


def _first_crossing(
    model: Model, x: Tensor, y: Tensor, threat: ThreatModel, best: Best, confidence: float, targeted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Follow the gradient of the margin in growing steps until it is large enough; the first step is 1 % longer than
    a linear model would need. Successes go into `best`.

    Returns:
        norm of the first success (or of the last try), margin to gain, margin to reach; [batch] each.
    """
    x_adv, reach = x.clone(), norm_of(best.x - x, "l2")
    needed = goal = length = reach
    for trial in range(CROSSING_STEPS + 1):
        grad, value, _ = gradient(model, x_adv, lambda logits: margin(logits, y, targeted))
        if trial == 0:
            goal = confidence + SLACK * value.abs()
            needed = (goal - value).clamp_min(1e-12)
            length = needed / norm_of(threat.masked(grad), "l2").clamp_min(1e-20)
            # A saturated model predicts absurd lengths: 20 dB below the clip is loud.
            level = norm_of(x, "l2") / 10
            length = length.minimum(torch.where(level > 0, level, math.inf)).nan_to_num(posinf=1.0) * 1.01
        done = best.success
        size = norm_of(x_adv - x, "l2")
        reach = torch.where(done, reach, size)
        best.update(x_adv, -size.square(), value > goal, first=True)
        if trial == CROSSING_STEPS or (trial % every(x) == 0 and bool(best.success.all())):
            break
        direction = threat.masked(grad)
        direction = direction / column(norm_of(direction, "l2"), x).clamp_min(1e-30)
        x_adv = threat.clip(x_adv + direction * column(length * GROWTH**trial, x), x)
    return reach.clamp_min(1e-12), needed, goal


def _descend(
    batch: ActiveBatch, start: Tensor, c: Tensor, goal: Tensor, pace: Tensor, steps: int, abort_early: bool
) -> Tensor:
    """One c per example, from `start`; smaller successes become the best. Returns who succeeded, [batch] bool."""
    space = (Tanh if all(map(math.isfinite, batch.threat.bounds)) else Direct)(batch, start)
    found = torch.zeros_like(c, dtype=torch.bool)
    reached, first, second = found.clone(), torch.zeros_like(batch.x), torch.zeros_like(c)
    previous = torch.full_like(c, math.inf)
    for iteration in range(steps):
        x_adv = space.point()
        grad, value, _ = gradient(batch.model, x_adv, lambda logits: margin(logits, batch.y, batch.targeted))
        delta = x_adv - batch.x
        square = delta.flatten(1).square().sum(1)
        success = value > goal
        reached |= success
        batch.best.update(x_adv, -square, success, first=False)
        objective = square + c * (goal - value).clamp_min(0)
        # The hinge pulls only while the margin is short.
        grad = delta.mul_(2).sub_(grad * column(c * (value <= goal), grad))
        grad = space.chain(batch.threat.masked(grad))
        first.mul_(0.9).add_(grad, alpha=0.1)
        second = 0.99 * second + 0.01 * grad.flatten(1).square().sum(1)
        scale = (second / (1 - 0.99 ** (iteration + 1))).sqrt().clamp_min(1e-30)
        decay = 0.5 * (1 + math.cos(math.pi * iteration / steps)) / (1 - 0.9 ** (iteration + 1))
        space.move(first * column(-decay * pace / scale, first))
        if abort_early and iteration % max(steps // 10, every(grad)) == 0:
            found[batch.index] = reached
            space, c, goal, pace, reached, first, second, previous = batch.keep(
                objective < SHRINK * previous, space, c, goal, pace, reached, first, second, objective
            )
            if not len(batch):
                return found
    found[batch.index] = reached
    batch.finish()
    return found


class Direct:
    """The perturbed input itself, clipped after every move."""

    def __init__(self, batch: ActiveBatch, start: Tensor):
        self.batch, self.x_adv = batch, start.clone()

    def point(self) -> Tensor:
        return self.x_adv

    def chain(self, grad: Tensor) -> Tensor:
        """The gradient with respect to what moves."""
        return grad

    def move(self, by: Tensor) -> None:
        self.x_adv = self.batch.threat.clip(self.x_adv + by, self.batch.x)

    def select(self, index: Tensor) -> Direct:
        self.x_adv = self.x_adv[index]
        return self


class Tanh:
    """The change of variables for finite bounds: x = middle + half * tanh(w), w scaled so that near the middle a move
    of w is a move of x."""

    def __init__(self, batch: ActiveBatch, start: Tensor):
        low, high = batch.threat.bounds
        self.middle, self.half = (low + high) / 2, (high - low) / 2
        self.batch = batch
        self.origin = ((batch.x - self.middle) / self.half).clamp(-1 + 1e-6, 1 - 1e-6)
        self.t = ((start - self.middle) / self.half).clamp(-1 + 1e-6, 1 - 1e-6)
        self.w = self.t.atanh()

    def point(self) -> Tensor:
        self.t = self.w.tanh()
        # The difference keeps an unmoved entry exactly as it was.
        return self.batch.threat.clip(self.batch.x + self.half * (self.t - self.origin), self.batch.x)

    def chain(self, grad: Tensor) -> Tensor:
        return grad * (1 - self.t.square())

    def move(self, by: Tensor) -> None:
        self.w += by / self.half

    def select(self, index: Tensor) -> Tanh:
        self.origin, self.w, self.t = self.origin[index], self.w[index], self.t[index]
        return self
