"""The space in which a score-based attack searches: the entries of the input, or weights of time-frequency tiles.

Some hundred queries say little about 16,000 samples. Weights of tiles are a few dozen numbers: each says how much a
tile gains by being louder or softer, and stands for the perturbation within the budget that is best for such weights
(`Tiles.allocate`). The attack itself stays as published: it moves in the box of the weights as it would in the linf
ball of the samples."""

from __future__ import annotations

import math
from typing import Protocol, Self

import torch
from torch import Tensor

from src.attacks.core import finite_budgets
from src.attacks.model import Model, draws_of, narrow, votes
from src.attacks.scores.tiles import SpaceName, Tiles, tiles_of
from src.random_streams import RandomStreams
from src.threat import ThreatModel


class Space(Protocol):
    """What an attack gets in place of its model, input and threat model.

    Attributes:
        model: from points of the space [batch, ...] to logits.
        start: the clean inputs as points, [batch, ...].
        threat: the points that the attack may try.
    """

    @property
    def model(self) -> Model: ...
    @property
    def start(self) -> Tensor: ...
    @property
    def threat(self) -> ThreatModel: ...

    def decode(self, points: Tensor) -> Tensor:
        """The inputs [batch, ...] that the points stand for."""
        ...


class SampleSpace:
    """The entries of the input themselves: samples, or bins of a spectrogram."""

    def __init__(self, model: Model, x: Tensor, threat: ThreatModel):
        self.model, self.start, self.threat = model, x, threat

    def decode(self, points: Tensor) -> Tensor:
        return points


class TileSpace:
    """Weights of the tiles of clips, each in [-1, 1]; all zero is the clean clip.

    Args:
        model: from clips [batch, time] to logits.
        x: clean clips.
        threat: of the clips.
        tiles: of the clips.
        size: L2 norm of the perturbations, [batch], before they are projected.
    """

    threat = ThreatModel("linf", 1.0)

    def __init__(self, model: Model, x: Tensor, threat: ThreatModel, tiles: Tiles, size: Tensor):
        self.model = TileModel(model, x, threat, tiles, size)
        self.start = torch.zeros_like(tiles.level)

    def decode(self, points: Tensor) -> Tensor:
        return self.model.decode(points)


class TileModel:
    """A model of clips as one of weights of their tiles; the arguments are those of `TileSpace`."""

    def __init__(self, model: Model, x: Tensor, threat: ThreatModel, tiles: Tiles, size: Tensor):
        self.model, self.x, self.threat, self.tiles, self.size = model, x, threat, tiles, size
        self.draws = draws_of(model)

    def decode(self, weight: Tensor) -> Tensor:
        """The clips [batch, time] with the perturbations that are best for these weights [batch, tiles]."""
        change = self.tiles.allocate(weight, self.size)
        change = torch.where((weight != 0).any(1, keepdim=True), change, 0)  # to the last bit
        return self.threat.project(self.x + self.tiles.synthesize(change), self.x)

    def __call__(self, weight: Tensor) -> Tensor:
        return self.model(self.decode(weight))

    def votes(self, weight: Tensor) -> Tensor | None:
        """As `Voter.votes`."""
        return votes(self.model, self.decode(weight))

    def select(self, index: Tensor) -> Self:
        return type(self)(
            narrow(self.model, index), self.x[index], self.threat.select(index), self.tiles.select(index),
            self.size[index],
        )  # fmt: skip


def search_space(
    name: SpaceName,
    model: Model,
    x: Tensor,
    threat: ThreatModel,
    rng: RandomStreams,
    *,
    sample_rate: int,
    bands: int,
    tile_s: float,
) -> Space:
    """The space `name` of an attack with a budget. Tiles are those of waveforms: of other inputs, all entries are
    searched.

    Args:
        sample_rate: Hz.
        bands, tile_s: as of `Tiles`.

    Raises:
        ValueError: both eps and the legal range are infinite.
    """
    if name == "samples" or x.dim() != 2:
        return SampleSpace(model, x, threat)
    size = perturbation_size(x, threat)
    return TileSpace(model, x, threat, clip_tiles(x, threat, size, rng, sample_rate, tile_s, bands), size)


def perturbation_size(x: Tensor, threat: ThreatModel) -> Tensor:
    """L2 norm of what a search in tiles tries, [batch]. The corners of the linf box have half the norm given here: the
    loudest samples leave the box and are cut off."""
    eps = finite_budgets(threat, x)
    return eps if threat.norm == "l2" else 2 * eps * math.sqrt(x.shape[1])


def clip_tiles(
    x: Tensor, threat: ThreatModel, size: Tensor, rng: RandomStreams, sample_rate: int, tile_s: float, bands: int
) -> Tiles:
    """The tiles of the clips' legal part, dithered from the streams."""
    return tiles_of(threat.masked(x), threat.masked(rng.normal(x)), size, sample_rate, tile_s, bands)
