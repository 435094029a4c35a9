"""SirenAttack (Du et al. 2020): particle swarm optimisation of the perturbation, from scores alone. Particles start
uniformly in the ball; every epoch keeps the best and redraws the others, so that a swarm that has collapsed looks
elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.core import Model, attack
from src.random_streams import RandomStreams
from src.registry import Count, NonNegative
from src.threat import ThreatModel, column


@attack("siren", kind="budget", norms=("linf", "l2"), access="scores")
def siren(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    queries: Count = 2000,
    particles: Count = 25,
    iterations: Count = 30,
    pull: NonNegative = 1.4961,
    first_inertia: NonNegative = 0.9,
    last_inertia: NonNegative = 0.1,
) -> Tensor:
    """A swarm of perturbations, each drawn to its own best and to the swarm's best.

    Args:
        queries: most queries per example.
        particles: in the swarm.
        iterations: moves of the swarm per epoch.
        pull: of a particle's own best, and of the swarm's best.
        first_inertia: share of its speed that a particle keeps at the start of an epoch.
        last_inertia: the share at the end of an epoch.
    """
    batch = ActiveBatch(model, x, y, threat, rng, targeted)
    used, move, place = 1, 0, x[:, None]
    speed, own, own_value = place, place, batch.score(x)[:, None]
    while used < queries:
        place, speed, own, own_value = batch.keep(~batch.best.success, place, speed, own, own_value)
        if not len(batch):
            break
        step = move % iterations
        if step == 0:  # a new epoch
            drawn = [batch.threat.random_start(batch.x, batch.rng) for _ in range(2 * particles - 1)]
            first = batch.best.x if move else batch.threat.random_start(batch.x, batch.rng)
            place = torch.stack([first, *drawn[: particles - 1]], 1)
            speed = torch.stack(drawn[particles - 1 :], 1) - batch.x[:, None]
            own, own_value = place.clone(), place.new_full(place.shape[:2], -torch.inf)
        else:
            inertia = first_inertia + (last_inertia - first_inertia) * step / max(iterations - 1, 1)
            to_own = batch.rng.uniform(place) * (own - place)
            to_best = batch.rng.uniform(place) * (batch.best.x[:, None] - place)
            speed = inertia * speed + pull * (to_own + to_best)
            moved = place + speed
            place = torch.stack([batch.threat.project(p, batch.x) for p in moved.unbind(1)], 1)
        for i in range(min(particles, queries - used)):
            value = batch.score(place[:, i])
            better = value > own_value[:, i]
            own[:, i] = torch.where(column(better, batch.x), place[:, i], own[:, i])
            own_value[:, i] = torch.where(better, value, own_value[:, i])
        used += particles
        move += 1
    return batch.finish()
