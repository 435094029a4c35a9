"""Probabilistic linear discriminant analysis, the two-covariance model (Prince and Elder 2007; Bruemmer and de Villiers
2010): an embedding is mean + y + e, the speaker y ~ N(0, B) the same in all utterances, e ~ N(0, W) new in each."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from src.registry import BACK_ENDS, Count
from src.speaker.back_end import BackEnd
from src.speaker.projection import Dimensions, resolve

FLOOR = 1e-6
"""Smallest variance within speakers, as a share of the largest: fewer utterances than dimensions leave some at zero."""


@BACK_ENDS.register("plda")
class Plda(BackEnd):
    """PLDA behind LDA and length normalization: the logarithm of how much likelier two embeddings are if one speaker
    made both than if two did, in closed form.

    In coordinates where W is the identity and B diagonal, with the variances psi, the score of u and v is a sum over
    the coordinates: log(1 + psi) - log(1 + 2 psi) / 2 + psi u v / (1 + 2 psi)
    - psi^2 (u^2 + v^2) / (2 (1 + psi) (1 + 2 psi)).

    Args:
        lda_dimensions: of the linear discriminant analysis before; 0 for none, auto for one less than the background
            speakers, at most 150.
        iterations: of the EM algorithm that estimates B and W.
    """

    center: Tensor
    transform: Tensor
    between: Tensor

    def __init__(
        self,
        *,
        embedding_size: int,
        n_background: int,
        lda_dimensions: Dimensions = "auto",
        iterations: Count = 20,
    ):
        if n_background < 2:
            raise ValueError(f"plda compares background speakers: it needs at least 2 of them, there is {n_background}")
        super().__init__(embedding_size, resolve(lda_dimensions, embedding_size, n_background))
        self.iterations = iterations
        self.register_buffer("center", torch.zeros(self.size))
        self.register_buffer("transform", torch.zeros(self.size, self.size))
        self.register_buffer("between", torch.zeros(self.size))

    def pairwise(self, a: Tensor, b: Tensor) -> Tensor:
        u, v, psi = (a - self.center) @ self.transform, (b - self.center) @ self.transform, self.between
        product = (u * (psi / (1 + 2 * psi))) @ v.T
        squares = psi**2 / (2 * (1 + psi) * (1 + 2 * psi))
        constant = (torch.log1p(psi) - torch.log1p(2 * psi) / 2).sum()
        return constant + product - (u**2 @ squares)[:, None] - (v**2 @ squares)[None, :]

    def fit(self, embeddings: Tensor, labels: Tensor) -> None:
        super().fit(embeddings, labels)
        x = self.project(embeddings.float()).double().numpy()
        mean, between, within = two_covariances(x, labels.numpy(), self.iterations)
        self.set_covariances(mean, between, within)

    def set_covariances(self, mean: np.ndarray, between: np.ndarray, within: np.ndarray) -> None:
        """Take the model with this mean [size] and the covariances B and W [size, size] of projected embeddings."""
        # B v = psi W v with v' W v = 1: both become diagonal.
        psi, directions = scipy.linalg.eigh(between, within)
        signs = np.sign(directions[np.abs(directions).argmax(0), np.arange(len(psi))])
        self.center.copy_(torch.from_numpy(mean))
        self.transform.copy_(torch.from_numpy(directions * signs))
        self.between.copy_(torch.from_numpy(psi.clip(0)))


def two_covariances(x: np.ndarray, labels: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean [d], covariance between speakers and within speakers [d, d] of embeddings [n, d], by the EM algorithm from
    the moments; for equal numbers of utterances the moments are already the maximum of the likelihood.

    Args:
        labels: the speakers' numbers [n].

    Raises:
        ValueError: the embeddings of each speaker are all the same, or there is but one of each.
    """
    _, speaker, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.stack([np.bincount(speaker, column) for column in x.T], 1) / counts[:, None]
    n_speakers, d = means.shape
    mean = means.mean(0)
    residual = x - means[speaker]
    if np.abs(residual).max() < 1e-6:  # of vectors of length 1, in float32
        raise ValueError(
            f"plda: the projected embeddings of each of the {n_speakers} background speakers are all the same, so that "
            "nothing is known of how much they vary; take more clips of each or another lda_dimensions"
        )
    within = floored(residual.T @ residual / max(len(x) - n_speakers, 1))
    spread = (means - mean).T @ (means - mean) / n_speakers
    between = positive(spread - within * (1 / counts).mean())
    for _ in range(iterations):
        # B (B + W / n)^-1 gives the posterior of each speaker without an inverse of B, which may be singular.
        posterior = np.empty_like(means)
        covariances = np.zeros((n_speakers, d, d))
        for n in np.unique(counts):
            rows = counts == n
            gain = np.linalg.solve(between + within / n, between).T
            posterior[rows] = mean + (means[rows] - mean) @ gain.T
            covariances[rows] = between - gain @ between
        mean = posterior.mean(0)
        between = positive((covariances.sum(0) + (posterior - mean).T @ (posterior - mean)) / n_speakers)
        residual = x - posterior[speaker]
        within = floored((residual.T @ residual + np.tensordot(counts, covariances, 1)) / len(x))
    return mean, between, within


def positive(matrix: np.ndarray, least: float = 0.0) -> np.ndarray:
    """The symmetric matrix with no eigenvalue below `least`."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return np.asarray((vectors * values.clip(least)) @ vectors.T)


def floored(matrix: np.ndarray) -> np.ndarray:
    """The covariance with no variance below FLOOR times the largest."""
    return positive(matrix, FLOOR * float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[-1]))
