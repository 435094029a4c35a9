"""Decoupled direction and norm (Rony et al. 2019): the direction follows the gradient, the norm shrinks after a success
and grows after a failure. Norm and steps are relative to each clip, where the paper has image constants. The nearest
class is sought first: the margin alone led half of the keywords to a farther one (by up to 40 %)."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attacks.core import Model, attack
from src.attacks.minimum_norm.search import Search, cosine, minimize
from src.random_streams import RandomStreams
from src.registry import Count, Fraction, Natural, Positive
from src.threat import ThreatModel, column, norm_of


@attack("ddn", kind="minimum_norm", norms=("l2",), access="gradients")
def ddn(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    steps: Count = 100,
    step: Positive = 1.0,
    gamma: Fraction = 0.1,
    candidates: Count = 3,
    shrink_steps: Natural = 10,
) -> Tensor:
    """Smallest l2 perturbation, by steps along the gradient on a sphere that shrinks and grows.

    Args:
        steps: gradient steps in all.
        step: length of the first step in radii of the sphere; it falls to a hundredth along a cosine.
        gamma: share by which the sphere first shrinks or grows; it falls to 0.001.
        candidates: most likely other classes, each tried with a tenth of the steps before the nearest gets the rest; 1
            follows the margin to whichever class comes next, as published.
        shrink_steps: forward passes of the final bisection.
    """

    def search(batch: Search) -> None:
        scout = steps // 10
        if batch.targeted or candidates == 1 or scout < 2:
            descend(batch, torch.zeros_like(batch.x), batch.reach, steps, step, gamma)
            return
        before = scout * candidates + 1
        last = batch.toward(nearest(batch, candidates, scout, step, gamma))
        eps = torch.where(batch.best.success, batch.size(), last.reach)
        descend(last, batch.best.x - batch.x, eps, steps - before, step, gamma)
        batch.take(last)

    return minimize(model, x, y, threat, rng, targeted, search, shrink_steps)


def nearest(batch: Search, candidates: int, steps: int, step: float = 1.0, gamma: float = 0.1) -> Tensor:
    """Of the `candidates` most likely other classes the one whose boundary is nearest, [batch], as far as `steps`
    gradients for each can tell; what they find becomes the best of the untargeted `batch`."""
    logits = batch.model(batch.x)
    ranked = logits.scatter(1, batch.y[:, None], -torch.inf).argsort(1, descending=True)
    target, least = ranked[:, 0], torch.full_like(batch.reach, torch.inf)
    for label in ranked[:, : min(candidates, logits.shape[1] - 1)].T:
        trial = batch.toward(label)
        descend(trial, torch.zeros_like(batch.x), trial.reach, steps - 1, step, gamma)
        target = torch.where(trial.size() < least, label, target)
        least = least.minimum(trial.size())
        batch.take(trial)
    return target


def descend(batch: Search, delta: Tensor, eps: Tensor, steps: int, step: float, gamma: float) -> None:
    """The published attack from `delta` [batch, ...] on spheres of radius `eps` [batch] at first."""
    for iteration in range(steps):
        grad, _, success = batch.probe(batch.x + delta)
        if iteration:
            change = cosine(iteration, steps, gamma, 0.001)
            eps = eps * torch.where(success, 1 - change, 1 + change)
        length = eps * cosine(iteration, steps, step, step / 100)
        delta = delta + column(length, delta) * batch.threat.ascent(grad)
        delta = delta * column(eps / norm_of(delta, "l2").clamp_min(1e-30), delta)
        delta = batch.threat.clip(batch.x + delta, batch.x) - batch.x
