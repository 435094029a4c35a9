"""SirenAttack (Du et al. 2020): particle swarm optimization of the perturbation from scores. Particles start uniformly
in the ball; every epoch keeps the best particle and redraws the others, which restarts a swarm that has collapsed."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.model import Model
from src.attacks.registration import attack
from src.attacks.scores.space import search_space
from src.attacks.scores.tiles import SpaceName
from src.random_streams import RandomStreams
from src.registry import Count, NonNegative, Positive
from src.threat import ThreatModel, column


@attack("siren", kind="budget", norms=("linf", "l2"), access="scores", needs_sample_rate=True)
def siren(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    sample_rate: int,
    queries: Count = 2000,
    particles: Count = 25,
    iterations: Count = 30,
    pull: NonNegative = 1.4961,
    first_inertia: NonNegative = 0.9,
    last_inertia: NonNegative = 0.1,
    space: SpaceName = "tiles",
    bands: Count = 8,
    tile_s: Positive = 0.08,
) -> Tensor:
    """Particle swarm search: each perturbation is attracted to its own best and to the best of the swarm.

    Args:
        queries: largest number of queries per example; published 300 epochs of 30 moves of 25 particles, 225001.
        particles: size of the swarm.
        iterations: moves of the swarm per epoch.
        pull: acceleration towards a particle's own best and towards the best of the swarm.
        first_inertia: share of its velocity that a particle keeps at the start of an epoch.
        last_inertia: the same share at the end of an epoch.
        space: what is searched: weights of time-frequency tiles, as in a linf ball of eps 1, or the samples themselves;
            of a spectrogram always its bins.
        bands: tiles in frequency, equally wide on the mel scale.
        tile_s: seconds that a tile lasts.
    """
    searched = search_space(space, model, x, threat, rng, sample_rate=sample_rate, bands=bands, tile_s=tile_s)
    batch = ActiveBatch(searched.model, searched.start, y, searched.threat, rng, targeted)
    used, moves, position = 1, 0, batch.x[:, None]
    velocity, particle_best, particle_best_value = position, position, batch.score(batch.x)[:, None]
    while used < queries:
        position, velocity, particle_best, particle_best_value = batch.keep(
            ~batch.best.success, position, velocity, particle_best, particle_best_value
        )
        if not len(batch):
            break
        step = moves % iterations
        if step == 0:  # a new epoch
            starts = [batch.threat.random_start(batch.x, batch.rng) for _ in range(2 * particles - 1)]
            first = batch.best.x if moves else batch.threat.random_start(batch.x, batch.rng)
            position = torch.stack([first, *starts[: particles - 1]], 1)
            velocity = torch.stack(starts[particles - 1 :], 1) - batch.x[:, None]
            particle_best, particle_best_value = position.clone(), position.new_full(position.shape[:2], -torch.inf)
        else:
            inertia = first_inertia + (last_inertia - first_inertia) * step / max(iterations - 1, 1)
            to_particle_best = batch.rng.uniform(position) * (particle_best - position)
            to_swarm_best = batch.rng.uniform(position) * (batch.best.x[:, None] - position)
            velocity = inertia * velocity + pull * (to_particle_best + to_swarm_best)
            moved = position + velocity
            position = torch.stack([batch.threat.project(p, batch.x) for p in moved.unbind(1)], 1)
        for i in range(min(particles, queries - used)):
            value = batch.score(position[:, i])
            better = value > particle_best_value[:, i]
            particle_best[:, i] = torch.where(column(better, batch.x), position[:, i], particle_best[:, i])
            particle_best_value[:, i] = torch.where(better, value, particle_best_value[:, i])
        used += particles
        moves += 1
    return searched.decode(batch.finish())
