"""Genetic algorithm (Alzantot et al. 2018, "Did you hear that?"): a population of perturbed clips, with selection by
fitness, uniform crossover and mutation. The best member survives unchanged."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.core import finite_budgets
from src.attacks.model import Model
from src.attacks.registration import attack
from src.attacks.scores.space import search_space
from src.attacks.scores.tiles import SpaceName
from src.random_streams import RandomStreams
from src.registry import Count, Fraction, Positive
from src.threat import ThreatModel, column


@attack("genetic", kind="budget", norms=("linf", "l2"), access="scores", needs_sample_rate=True)
def genetic(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    sample_rate: int,
    queries: Count = 2000,
    population: Annotated[int, Ge(2)] = 20,
    mutation: Fraction = 0.05,
    mutation_size: Positive = 1.0,
    temperature: Positive = 0.3,
    space: SpaceName = "tiles",
    bands: Count = 8,
    tile_s: Positive = 0.08,
) -> Tensor:
    """Genetic search by selection, crossover and mutation; the fitness is the margin.

    Args:
        queries: largest number of queries per example.
        population: number of members.
        mutation: share of a child's entries that change.
        mutation_size: largest change of an entry, in units of eps (linf) or eps / sqrt(entries) (l2).
        temperature: of the selection of parents, in standard deviations of the fitness within the population.
        space: what is searched: weights of time-frequency tiles, as in a linf ball of eps 1, or the samples themselves;
            of a spectrogram always its bins.
        bands: tiles in frequency, equally wide on the mel scale.
        tile_s: seconds that a tile lasts.
    """
    searched = search_space(space, model, x, threat, rng, sample_rate=sample_rate, bands=bands, tile_s=tile_s)
    start, threat = searched.start, searched.threat
    unit = finite_budgets(threat, start) * mutation_size
    unit = unit if threat.norm == "linf" else unit / start[0].numel() ** 0.5
    batch = ActiveBatch(searched.model, start, y, threat, rng, targeted)
    # The fitness of the best member is known: only children take queries.
    members, fitness = start[:, None], batch.score(start)[:, None]
    used = 1
    while used < queries:
        unit, members, fitness = batch.keep(~batch.best.success, unit, members, fitness)
        if not len(batch):
            break
        new_members, new_fitness = [batch.best.x.clone()], [batch.best.value]
        if used == 1:
            children = [batch.threat.random_start(batch.x, batch.rng) for _ in range(population - 1)]
        else:
            children = [_child(batch, members, fitness, unit, mutation, temperature) for _ in range(population - 1)]
        for child in children[: queries - used]:
            new_fitness.append(batch.score(child))
            new_members.append(child)
            used += 1
        members, fitness = torch.stack(new_members, 1), torch.stack(new_fitness, 1)
    return searched.decode(batch.finish())


def _child(
    batch: ActiveBatch, members: Tensor, fitness: Tensor, unit: Tensor, mutation: float, temperature: float
) -> Tensor:
    """One child per example [batch, ...] of two parents selected by fitness, mutated and projected."""
    spread = fitness.nan_to_num(neginf=0.0).std(1, keepdim=True).clamp_min(1e-12)
    # Gumbel noise on the logits draws from their softmax.
    uniform = batch.rng.uniform(torch.stack([fitness, fitness], 2)).clamp(1e-7, 1 - 1e-7)
    parents = (fitness[:, :, None] / spread[:, :, None] / temperature - (-uniform.log()).log()).argmax(1)
    rows = torch.arange(len(members), device=members.device)
    first_parent, second_parent = members[rows, parents[:, 0]], members[rows, parents[:, 1]]
    child = torch.where(batch.rng.uniform(first_parent) < 0.5, first_parent, second_parent)
    change = (2 * batch.rng.uniform(child) - 1) * column(unit, child)
    child = child + torch.where(batch.rng.uniform(child) < mutation, change, 0)
    return batch.threat.project(child, batch.x)
