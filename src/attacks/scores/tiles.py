"""Time-frequency tiles of clips, and perturbations that change their levels: each tile is made louder or softer by a
multiple of its own content, within a given L2 norm."""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
from torch import Tensor

from src.random_streams import RandomStreams
from src.stages.mdct import Mdct
from src.threat import column

SpaceName = Literal["tiles", "samples"]
"""What an attack without gradients searches."""
DEEPEST_CUT = 0.95
"""Largest share of a tile's content that is removed; its level stays finite."""


class Tiles:
    """The tiles of a batch of clips, in an orthonormal transform: changes of different tiles are orthogonal.

    Args:
        content: what the tiles change by multiples of itself, [batch, time].
        sample_rate: Hz.
        hop_s: seconds between the frames of the transform.
        tile_s: seconds that a tile lasts.
        bands: largest number of frequency bands, equally wide on the mel scale.

    Attributes:
        shape: (tiles in time, tiles in frequency).
        level: L2 norm of each tile's content, [batch, tiles].
    """

    def __init__(self, content: Tensor, sample_rate: int, hop_s: float, tile_s: float, bands: int):
        hop = max(1, round(hop_s * sample_rate))
        self.mdct = Mdct(content.shape[1], hop, content)
        coefficients = self.mdct.analyze(content)
        frames = torch.arange(self.mdct.n_frames, device=content.device) // max(1, round(tile_s / hop_s))
        band = _mel_bands(hop, sample_rate, bands).to(content.device)
        self.shape = (int(frames[-1]) + 1, int(band[-1]) + 1)
        self.tile = frames[:, None] * self.shape[1] + band
        power = coefficients.new_zeros(len(content), self.shape[0] * self.shape[1])
        power.index_add_(1, self.tile.flatten(), coefficients.square().flatten(1))
        self.level = power.sqrt()
        self.direction = coefficients / self.level[:, self.tile].clamp_min(1e-30)

    def select(self, index: Tensor) -> Self:
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part.level, part.direction = self.level[index], self.direction[index]
        return part

    def allocate(self, weight: Tensor, size: Tensor) -> Tensor:
        """Signed change of each tile's level [batch, tiles] that gains most for a model that is linear in the logarithm
        of the levels: a local maximum of sum(weight * log(level + change)) within an L2 norm of `size`, by bisection of
        the Lagrange multiplier.

        Args:
            weight: of each tile, [batch, tiles]; its sign says louder or softer.
            size: largest L2 norm of all changes, [batch]; it is used up unless all tiles are cut.
        """
        louder, level = weight > 0, self.level
        share = weight.abs() / weight.abs().mean(1, keepdim=True).clamp_min(1e-30)

        def change(log_multiplier: Tensor) -> Tensor:
            # The derivative weight / (level + change) equals the multiplier of change.
            product = 4 * share * log_multiplier.exp()[:, None]
            raised = (-level + (level.square() + product).sqrt()) / 2
            lowered = (level - (level.square() - product).clamp_min(0).sqrt()) / 2
            # Where no cut meets the condition, the gain per norm grows up to the deepest cut.
            lowered = torch.where(level.square() > product, lowered, DEEPEST_CUT * level)
            return torch.where(louder, raised, -lowered)

        low, high = size.log() * 2 - 20, size.log() * 2 + 5
        for _ in range(25):
            middle = (low + high) / 2
            too_large = change(middle).norm(dim=1) > size
            low, high = torch.where(too_large, low, middle), torch.where(too_large, middle, high)
        return change(low)

    def changes(self, rng: RandomStreams, like: Tensor) -> Tensor:
        """Random changes [batch, time] of the levels, independent and of the same size for every tile."""
        return self.synthesize(rng.normal(self.level))

    def synthesize(self, change: Tensor) -> Tensor:
        """The perturbation [batch, time] of these changes of the levels [batch, tiles]."""
        return self.mdct.synthesize(change[:, self.tile] * self.direction)


def tiles_of(x: Tensor, dither: Tensor, size: Tensor, sample_rate: int, tile_s: float, bands: int) -> Tiles:
    """Tiles of clips [batch, time] with frames every 10 ms. Dither, 60 dB below the size of the perturbation, gives
    digital silence a content that can be made louder.

    Args:
        x: clips, zero where they must not change.
        dither: white noise of unit variance, likewise.
        size: L2 norm of the perturbation, [batch].
    """
    return Tiles(x + dither * column(size * (1e-3 / math.sqrt(x.shape[1])), x), sample_rate, 0.01, tile_s, bands)


def _mel_bands(n_bins: int, sample_rate: int, bands: int) -> Tensor:
    """The band of each of the bins up to half the sample rate, [n_bins] long; bands without a bin are left out."""
    hz = (torch.arange(n_bins, dtype=torch.float64) + 0.5) * (sample_rate / 2 / n_bins)
    mel = torch.log1p(hz / 700) / math.log1p(sample_rate / 2 / 700)
    return torch.unique((mel * bands).long(), return_inverse=True)[1]
