"""Feature compression (FeCo of the speaker-recognition study; Chen et al. 2022, "Towards understanding and mitigating
audio adversarial examples for speaker recognition"): frames are clustered, each cluster's mean is a new frame."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Le
from torch import Tensor

from src.defenses.clustering import TRIALS, kmeans, mean_weights, plus_plus_start, random_start, warped_kmeans
from src.random_streams import RandomStreams
from src.registry import DEFENSES, Count
from src.victims.stage import Defense

LARGEST = 2**22
"""Entries of the distances between the frames of the clips that are clustered at once: what a cache holds."""


@DEFENSES.register("feco")
class FeCo(Defense):
    """The means of clusters of frames, in the order of their first frames: fewer frames than before.

    The gradient flows through the means, with the clusters fixed. Padding does not count: a clip whose true length is
    known is clustered as if it stood alone, and the frames of zeros behind its clusters are masked.

    Args:
        method: kmeans (random start, any frames) or warped (consecutive frames, no randomness).
        ratio: clusters per frame.
        start: of kmeans: k-means++ or frames chosen at random.
        iterations: of kmeans, at most: of Hartigan's exchange after one step of Lloyd's algorithm. 3 end below the
            squared error of Lloyd's algorithm alone after any number.
    """

    waveform_only = False
    frames_only = True
    shortens = True
    uses_mask = True

    def __init__(
        self,
        *,
        sample_rate: int,
        method: Literal["kmeans", "warped"] = "kmeans",
        ratio: Annotated[float, Gt(0), Le(1)] = 0.2,
        start: Literal["k-means++", "random"] = "k-means++",
        iterations: Count = 3,
    ):
        super().__init__("feco")
        self.method, self.ratio, self.start, self.iterations = method, ratio, start, iterations
        self.randomized = method == "kmeans"

    def forward(self, x: Tensor) -> Tensor:
        """[batch, ..., n] -> [batch, ..., floor(n * ratio)], at least one frame; random starts from torch's global
        stream."""
        return self._compress(x, torch.rand(len(x), dtype=torch.float64) if self.randomized else None)

    def draw(self, x: Tensor, rng: RandomStreams) -> Tensor:
        """The same with random starts from the examples' own streams, one number each."""
        like = torch.empty(len(x), dtype=torch.float64)
        return self._compress(x, rng.uniform(like) if self.randomized else None)

    def mask(self, valid: Tensor) -> Tensor:
        """[batch, (bands,) n] -> [batch, (1,) clusters]: as many as the valid frames give."""
        frames = valid if valid.dim() == 2 else valid.flatten(1, -2).any(1)
        clusters = torch.arange(self.clusters(valid.shape[-1]), device=valid.device) < self._counts(frames)[:, None]
        return clusters if valid.dim() == 2 else clusters.view(len(valid), *[1] * (valid.dim() - 2), clusters.shape[1])

    def inverse(self, y: Tensor, x: Tensor) -> Tensor:
        raise ValueError(f"the stage '{self.name}' has no inverse: it merges frames")

    def clusters(self, n: int) -> int:
        """Clusters of n frames."""
        return min(n, max(1, math.floor(n * self.ratio + 1e-9)))

    def _counts(self, frames: Tensor) -> Tensor:
        """Clusters of each clip, from its valid frames bool [batch, n]."""
        return torch.tensor([self.clusters(n) for n in frames.sum(1).tolist()], device=frames.device, dtype=torch.long)

    def _compress(self, x: Tensor, random: Tensor | None) -> Tensor:
        n, valid = x.shape[-1], self.valid
        if not len(x):
            return x[..., : self.clusters(n)]
        rows = x.flatten(1, -2)
        if valid is None:
            frames = torch.ones(len(x), n, dtype=torch.bool, device=x.device)
        else:
            frames = (valid if valid.dim() == 2 else valid.flatten(1, -2).any(1)).expand(len(x), -1)
        random = torch.zeros(len(x)) if random is None else random
        at_once = max(1, LARGEST // (n * n))
        weights = [
            mean_weights(self._labels(part.detach().transpose(1, 2).contiguous(), inside, seeds), self.clusters(n))
            for part, inside, seeds in zip(
                *(torch.split(whole, at_once) for whole in (rows, frames, random)), strict=True
            )
        ]
        return (rows @ torch.cat(weights).to(x).transpose(1, 2)).view(*x.shape[:-1], self.clusters(n))

    def _labels(self, frames: Tensor, valid: Tensor, random: Tensor) -> Tensor:
        """The cluster of each frame [batch, n, d], -1 where it is not valid."""
        counts, most = self._counts(valid), self.clusters(frames.shape[1])
        if self.method == "warped":
            return warped_kmeans(frames, valid, counts)
        # Distances lose fewer digits around the mean.
        frames = frames - (frames * valid[..., None]).sum(1, keepdim=True) / valid.sum(1).clamp_min(1)[:, None, None]
        # A clip needs the same numbers whatever the padding, and takes one from its stream however many those are.
        shape = (most, 1 + TRIALS) if self.start == "k-means++" else (frames.shape[1],)
        uniform = torch.stack([_uniform(seed, shape) for seed in random.tolist()]).to(frames)
        if self.start == "k-means++":
            centers = plus_plus_start(frames, valid, uniform)
        else:
            centers = random_start(frames, valid, uniform, most)
        return kmeans(frames, valid, counts, centers, self.iterations)


def _uniform(number: float, shape: tuple[int, ...]) -> Tensor:
    """Uniform numbers in [0, 1) that one such number decides; the first ones are the same for every shape."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(int(number * 2**53)))
