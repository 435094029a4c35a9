"""Auto-PGD (Croce and Hein 2020): PGD with momentum and a step size per example, halved at fixed checkpoints when the
loss oscillates or stalls; the iteration then restarts from the best point. In l1 the sparse variant of Croce and
Hein (2021) with an adaptive share of changed entries, run in balls of three, two and one times eps; its steps are
proportional to the gradient where the paper takes signs, because equal steps never concentrate on one entry. The first
step size is 2 eps: with far fewer than 100 steps it is weaker than plain PGD."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch, Objective
from src.attacks.core import Best, check_interval, finite_budgets, gradient, likeliest_others
from src.attacks.gradients.pgd import check_restarts
from src.attacks.model import Model, succeeds
from src.attacks.registration import attack
from src.losses import LOSSES, LossName
from src.random_streams import RandomStreams
from src.registry import Count
from src.threat import ThreatModel, column, norm_of

MOMENTUM = 0.75
FALLING = 0.75
"""The step size is halved when fewer than this share of the steps since the last checkpoint raised the loss."""


@attack("apgd", kind="budget", norms=("linf", "l2", "l1"), access="gradients", check_options=check_restarts)
def apgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    steps: Count = 100,
    restarts: Count = 1,
    random_start: bool = True,
    loss: LossName = "cross_entropy",
    early_exit: bool = True,
) -> Tensor:
    """PGD with an adaptive step size; returns the best point of all steps and restarts.

    Args:
        steps: gradient steps per restart; the step size schedule is designed for 100.
        restarts: independent runs from random starts; each example keeps its best point.
        random_start: start from a random point of the ball.
        loss: objective that the steps maximize.
        early_exit: an example stops at its first success; otherwise its loss is maximized to the end.
    """
    threat = replace(threat, eps=finite_budgets(threat, x))
    best = Best.of(x)
    for _ in range(restarts):
        maximize(
            ActiveBatch(model, x, y, threat, rng, targeted, best), y, random_start=random_start, steps=steps,
            early_exit=early_exit, objective=lambda logits, y, _: LOSSES[loss](logits, y, targeted),
        )  # fmt: skip
    return best.x


@attack("apgd_targeted", kind="budget", norms=("linf", "l2", "l1"), access="gradients", targetable=False)
def apgd_targeted(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    steps: Count = 100,
    targets: Count = 9,
    random_start: bool = True,
    early_exit: bool = True,
) -> Tensor:
    """APGD with the targeted DLR loss towards each of the most likely other classes in turn; any wrong label counts.

    With fewer than 4 classes the loss is the difference of the two logits.

    Args:
        steps: gradient steps per target.
        targets: number of other classes that are tried, the most likely first.
        random_start: start from a random point of the ball.
        early_exit: an example stops at its first success; otherwise its loss is maximized to the end.
    """
    threat = replace(threat, eps=finite_budgets(threat, x))
    others = likeliest_others(model, x, y)[:, :targets]
    best = Best.of(x)
    for target in others.unbind(1):
        # Loss values of different targets are not comparable, so every run ranks its failures afresh.
        best.value.fill_(-torch.inf)
        maximize(
            ActiveBatch(model, x, y, threat, rng, False, best), target, random_start=random_start, steps=steps,
            early_exit=early_exit, objective=towards,
        )  # fmt: skip
    return best.x


def towards(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted DLR: logit of the target minus the label's, over the largest minus the mean of third and fourth."""
    gap = (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
    if logits.shape[1] < 4:
        return gap
    top = logits.topk(4, dim=1).values
    return gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def maximize(
    batch: ActiveBatch, target: Tensor, *, random_start: bool, steps: int, early_exit: bool, objective: Objective
) -> None:
    """One run of APGD, with `early_exit` only on the examples without a success; updates the best of the batch."""
    if early_exit:
        (target,) = batch.keep(~batch.best.success, target)
        if not len(batch):
            return
    x, threat, x_adv = batch.x, batch.threat, batch.x
    balls = [(steps, 1.0)]
    if threat.norm == "l1" and steps >= 10:
        wide_steps = int(0.3 * steps)
        balls = [(wide_steps, 3.0), (wide_steps, 2.0), (steps - 2 * wide_steps, 1.0)]
    for ball_index, (length, scale) in enumerate(balls):
        ball = replace(threat, eps=threat.budgets(x) * scale)
        if ball_index == 0 and random_start:
            x_adv = ball.random_start(x, batch.rng)
        outside = scale > 1  # exceeds the budget: only the starting point for the next ball
        best = Best.of(x) if outside else batch.best
        run = _Run(ActiveBatch(batch.model, x, batch.y, ball, batch.rng, batch.targeted, best), objective, length)
        x_adv = run.maximize(target, ball.project(x_adv, x), early_exit and not outside)
    batch.finish()


@dataclass
class _State:
    """State of the active examples, [batch] or [batch, ...] each."""

    target: Tensor
    x_adv: Tensor
    previous: Tensor
    """The point before x_adv."""
    grad: Tensor
    value: Tensor
    """Loss at x_adv."""
    top: Tensor
    """Highest loss so far; then the point and the gradient there."""
    top_x: Tensor
    top_grad: Tensor
    step: Tensor
    rises: Tensor
    """Steps since the last checkpoint that raised the loss."""
    checked: Tensor
    """Highest loss at the last checkpoint; then whether the step was halved there."""
    halved: Tensor
    density: Tensor
    """l1: share of the entries that a step changes; then the entries changed at the last checkpoint."""
    entries: Tensor
    low: Tensor
    """linf: the box that the iterates stay in; otherwise unused."""
    high: Tensor

    def select(self, index: Tensor) -> _State:
        return _State(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


class _Run:
    """One run of APGD inside one ball."""

    def __init__(self, batch: ActiveBatch, objective: Objective, steps: int):
        self.batch, self.objective, self.steps = batch, objective, steps
        self.sparse = batch.threat.norm == "l1"

    def maximize(self, target: Tensor, x_adv: Tensor, early_exit: bool) -> Tensor:
        """Update the best; returns the points of highest loss, [batch, ...] (active examples only if `early_exit`)."""
        batch, x = self.batch, self.batch.x
        grad, value = self._gradient_at(x_adv, target, early_exit)
        eps, zeros = batch.threat.budgets(x), torch.zeros_like(value)
        low, high = batch.threat.box(x) if batch.threat.norm == "linf" else (x, x)
        s = _State(
            target=target, x_adv=x_adv, previous=x_adv, grad=grad, value=value, top=value, top_x=x_adv,
            top_grad=grad, step=eps if self.sparse else 2 * eps, rises=zeros, checked=value, halved=zeros + 1,
            density=zeros + 0.2, entries=zeros + x[0].numel(), low=low, high=high,
        )  # fmt: skip
        window = max(int((0.04 if self.sparse else 0.22) * self.steps), 1)
        since = 0
        for iteration in range(self.steps):
            if early_exit and iteration % check_interval(x) == 0:
                (s,) = batch.keep(~batch.best.success, s)
                if not len(batch):
                    break
            next_x = self._sparse_step(s) if self.sparse else self._step(s, 1.0 if iteration == 0 else MOMENTUM)
            s.previous, s.x_adv = s.x_adv, next_x
            s.grad, value = self._gradient_at(next_x, s.target, early_exit)
            s.rises = s.rises + (value > s.value)
            higher = value > s.top
            s.value, s.top = value, torch.where(higher, value, s.top)
            s.top_x = torch.where(column(higher, x), next_x, s.top_x)
            s.top_grad = torch.where(column(higher, x), s.grad, s.top_grad)
            since += 1
            if since == window:
                restarting = self._adapt_sparse(s) if self.sparse else self._adapt(s, window)
                s.x_adv = torch.where(column(restarting, x), s.top_x, s.x_adv)
                s.grad = torch.where(column(restarting, x), s.top_grad, s.grad)
                if not self.sparse:
                    window = max(window - max(int(0.03 * self.steps), 1), max(int(0.06 * self.steps), 1))
                since = 0
        batch.finish()
        return s.top_x

    def _gradient_at(self, x_adv: Tensor, target: Tensor, first: bool) -> tuple[Tensor, Tensor]:
        """(gradient [batch, ...], value [batch]) of the objective at x_adv; updates the best."""
        batch = self.batch
        grad, value, logits = gradient(batch.model, x_adv, lambda logits: self.objective(logits, batch.y, target))
        batch.best.update(x_adv, value, succeeds(batch.model, x_adv, logits, batch.y, batch.targeted), first)
        return grad, value

    def _step(self, s: _State, share: float) -> Tensor:
        x, threat = self.batch.x, self.batch.threat
        if threat.norm == "linf":
            projected = s.grad.sign().mul_(column(s.step, x)).add_(s.x_adv).clamp_(s.low, s.high)
            momentum = s.x_adv.lerp(projected, share).add_(s.x_adv - s.previous, alpha=1 - share)
            return momentum.clamp_(s.low, s.high)
        projected = threat.project(s.x_adv + column(s.step, x) * threat.ascent(s.grad), x)
        return threat.project(s.x_adv + share * (projected - s.x_adv) + (1 - share) * (s.x_adv - s.previous), x)

    def _adapt(self, s: _State, window: int) -> Tensor:
        """Halve the step sizes of examples that oscillate or stall; returns which, [batch] bool."""
        stalls = (s.halved == 0) & (s.checked >= s.top)
        halve = (s.rises <= FALLING * window) | stalls
        s.step = torch.where(halve, s.step / 2, s.step)
        s.halved, s.checked, s.rises = halve.to(s.value.dtype), s.top, torch.zeros_like(s.rises)
        return halve

    def _sparse_step(self, s: _State) -> Tensor:
        x, threat = self.batch.x, self.batch.threat
        flat = threat.masked(s.grad).abs().flatten(1)
        count = (s.density * flat.shape[1]).long().clamp(1, flat.shape[1])
        threshold = flat.sort(1, descending=True).values.gather(1, count[:, None] - 1)
        direction = threat.masked(s.grad) * (flat >= threshold).view_as(s.grad)
        direction = direction / column(norm_of(direction, "l1"), x).clamp_min(1e-30)
        return threat.project(s.x_adv + column(s.step, x) * direction, x)

    def _adapt_sparse(self, s: _State) -> Tensor:
        """Restart with the full step size where fewer entries were needed, else shrink it; returns which, [batch]."""
        x = self.batch.x
        eps, entries = self.batch.threat.budgets(x), norm_of(s.top_x - x, "l0")
        fewer = entries < 0.95 * s.entries
        s.density, s.entries = entries / x[0].numel() / 1.5, entries
        s.step = torch.where(fewer, eps, (s.step / 1.5).maximum(eps / 10))
        return fewer
