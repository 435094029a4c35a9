"""Search over the levels of time-frequency tiles by Thompson sampling of a linear bandit (Agrawal and Goyal 2013).

A spectral front end hardly notices the phase, and a classifier sees levels: the search space is some hundred gains of
tiles instead of all samples. The margin is modeled as linear in the logarithm of the levels, with a Gaussian prior that
is smooth in time and frequency; every query updates the posterior, and the next one tries what a sample of the
posterior says is best within the budget."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.model import Model
from src.attacks.registration import attack
from src.attacks.scores.space import clip_tiles, perturbation_size
from src.random_streams import RandomStreams
from src.registry import Count, NonNegative, Positive
from src.threat import ThreatModel, column

SMOOTHNESS = (2.0, 1.5)
"""Correlation lengths of the prior, in tiles: time and frequency."""
INDEPENDENT = 0.1
"""Share of the prior variance that neighboring tiles do not have in common."""
PRIOR_SCALE = 0.0025
"""Prior standard deviation of a weight, in units of the clean margin per unit of log level."""


class Posterior:
    """Gaussian posterior of a linear function's weights, per example.

    Args:
        noise: variance of an observation.
        root: Cholesky factor of the prior covariance, [tiles, tiles].
        mean: of the weights, [batch, tiles].
        covariance: of the weights, [batch, tiles, tiles].
    """

    def __init__(self, noise: float, root: Tensor, mean: Tensor, covariance: Tensor):
        self.noise, self.root, self.mean, self.covariance = noise, root, mean, covariance

    @classmethod
    def prior(cls, shape: tuple[int, int], noise: float, like: Tensor) -> Self:
        """Before any observation.

        Args:
            shape: (tiles in time, tiles in frequency); weights of neighbors are correlated.
            noise: variance of an observation, in units of the prior variance summed over all weights.
            like: [batch, ...], for batch, device and dtype.
        """
        time, frequency = (_correlation(size, length).to(like) for size, length in zip(shape, SMOOTHNESS, strict=True))
        prior = torch.kron(time, frequency) * (1 - INDEPENDENT)
        prior += INDEPENDENT * torch.eye(len(prior)).to(like)
        mean, covariance = like.new_zeros(len(like), len(prior)), prior.repeat(len(like), 1, 1)
        return cls(noise * len(prior), torch.linalg.cholesky(prior), mean, covariance)

    def select(self, index: Tensor) -> Self:
        return type(self)(self.noise, self.root, self.mean[index], self.covariance[index])

    def sample(self, rng: RandomStreams, exploration: float) -> Tensor:
        """Weights [batch, tiles]: noise with the correlation of the prior, scaled to the standard deviations of the
        posterior, which spares a factorization per query.

        Args:
            exploration: factor of the standard deviations.
        """
        noise = torch.bmm(self.root.expand(len(self.mean), -1, -1), rng.normal(self.mean)[:, :, None])[:, :, 0]
        deviation = self.covariance.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
        return self.mean + exploration * deviation * noise

    def observe(self, features: Tensor, value: Tensor) -> None:
        """Condition on values [batch] of the function at the features [batch, tiles]. Values that are not finite tell
        nothing."""
        spread = torch.bmm(self.covariance, features[:, :, None])[:, :, 0]
        gain = spread / ((features * spread).sum(1) + self.noise)[:, None]
        gain = torch.where(value.isfinite()[:, None], gain, 0)
        residual = value.nan_to_num(0.0, 0.0, 0.0) - (features * self.mean).sum(1)
        self.mean = self.mean + gain * residual[:, None]
        self.covariance = self.covariance - gain[:, :, None] * spread[:, None, :]


def _correlation(size: int, length: float) -> Tensor:
    """Correlations that decay exponentially with the distance, [size, size]."""
    position = torch.arange(size)
    return torch.exp(-(position[:, None] - position).abs() / length)


@attack("tile_bandit", kind="budget", norms=("l2", "linf"), access="scores", stages="waveform", needs_sample_rate=True)
def tile_bandit(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    sample_rate: int,
    queries: Count = 1000,
    bands: Count = 16,
    tile_s: Positive = 0.04,
    exploration: NonNegative = 0.5,
    noise: Positive = 0.03,
    floor: Positive = 0.02,
) -> Tensor:
    """Thompson sampling over the levels of time-frequency tiles, from scores.

    Args:
        queries: largest number of queries per example.
        bands: tiles in frequency, equally wide on the mel scale; the time per query grows with the square of the tiles.
        tile_s: seconds that a tile lasts.
        exploration: standard deviations of the posterior by which a sample may differ from its mean.
        noise: variance of what the linear model leaves unexplained, in units of the prior variance.
        floor: levels below this share of the perturbation count as equal.
    """
    size, batch = perturbation_size(x, threat), ActiveBatch(model, x, y, threat, rng, targeted)
    tiles = clip_tiles(x, threat, size, rng, sample_rate, tile_s, bands)
    clean = batch.score(x)
    size, clean, tiles = batch.keep(~batch.best.success, size, clean, tiles)
    posterior = Posterior.prior(tiles.shape, noise, size)
    for _ in range(queries - 1):
        if not len(batch):
            break
        change = tiles.allocate(posterior.sample(batch.rng, exploration), size)
        x_adv = batch.threat.project(batch.x + tiles.synthesize(change), batch.x)
        value = batch.score(x_adv)
        least = floor * column(size, change).clamp_min(1e-12)  # neither budget nor content: no rise
        rise = ((tiles.level + change + least) / (tiles.level + least)).log()
        posterior.observe(rise, (value - clean) / (PRIOR_SCALE * clean.abs()).clamp_min(1e-12))
        size, clean, tiles, posterior = batch.keep(~batch.best.success, size, clean, tiles, posterior)
    return batch.finish()
