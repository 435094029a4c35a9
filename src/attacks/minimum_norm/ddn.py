"""Decoupled direction and norm (Rony et al. 2019): the direction follows the gradient, the norm shrinks after a success
and grows after a failure. Norm and step sizes are relative to each clip, where the paper has constants for images. A
first search selects the nearest class: the margin alone led half of the keywords to one up to 40 % farther away."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attacks.core import cosine
from src.attacks.minimum_norm.search import Search, minimize
from src.attacks.model import Model
from src.attacks.registration import attack
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
    """Smallest l2 perturbation, by steps along the gradient on a sphere of adaptive radius.

    Args:
        steps: total number of gradient steps.
        step: length of the first step in units of the radius; it decays to a hundredth along a cosine.
        gamma: share by which the radius shrinks or grows at first; it decays to 0.001.
        candidates: most likely other classes, each tried with a tenth of the steps; the nearest gets the remaining
            steps. 1 maximizes the margin over all classes, as published.
        shrink_steps: forward passes of the final bisection.
    """

    def search(batch: Search) -> None:
        scout_steps = steps // 10
        if batch.targeted or candidates == 1 or scout_steps < 2:
            descend(batch, torch.zeros_like(batch.x), batch.reach, steps, step, gamma)
            return
        steps_used = scout_steps * candidates + 1
        targeted_search = batch.toward(nearest(batch, candidates, scout_steps, step, gamma))
        eps = torch.where(batch.best.success, batch.size(), targeted_search.reach)
        descend(targeted_search, batch.best.x - batch.x, eps, steps - steps_used, step, gamma)
        batch.take(targeted_search)

    return minimize(model, x, y, threat, rng, targeted, search, shrink_steps)


def nearest(batch: Search, candidates: int, steps: int, step: float = 1.0, gamma: float = 0.1) -> Tensor:
    """The class with the nearest boundary among the `candidates` most likely other classes, [batch], as estimated by
    `steps` gradient steps for each; their successes update the best of the untargeted `batch`."""
    logits = batch.model(batch.x)
    ranked = logits.scatter(1, batch.y[:, None], -torch.inf).argsort(1, descending=True)
    target, smallest = ranked[:, 0], torch.full_like(batch.reach, torch.inf)
    for label in ranked[:, : min(candidates, logits.shape[1] - 1)].T:
        class_search = batch.toward(label)
        descend(class_search, torch.zeros_like(batch.x), class_search.reach, steps - 1, step, gamma)
        target = torch.where(class_search.size() < smallest, label, target)
        smallest = smallest.minimum(class_search.size())
        batch.take(class_search)
    return target


def descend(batch: Search, delta: Tensor, eps: Tensor, steps: int, step: float, gamma: float) -> None:
    """The published attack, starting from `delta` [batch, ...] on spheres of initial radius `eps` [batch]."""
    for iteration in range(steps):
        grad, _, success = batch.probe(batch.x + delta)
        if iteration:
            change = cosine(iteration, steps, gamma, 0.001)
            eps = eps * torch.where(success, 1 - change, 1 + change)
        length = eps * cosine(iteration, steps, step, step / 100)
        delta = delta + column(length, delta) * batch.threat.ascent(grad)
        delta = delta * column(eps / norm_of(delta, "l2").clamp_min(1e-30), delta)
        delta = batch.threat.clip(batch.x + delta, batch.x) - batch.x
