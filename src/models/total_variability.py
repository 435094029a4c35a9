"""The total variability model of i-vectors (Dehak et al., "Front-end factor analysis for speaker verification", 2011):
in each utterance the means of a Gaussian mixture are moved by T w, with w ~ N(0, I).

All statistics are whitened: frames, centered on the mean of their component, are multiplied by P with
P P' = the inverse of its covariance. T is kept in the same coordinates, T_k = P_k' T of each component k."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Statistics(NamedTuple):
    """Baum-Welch statistics of n utterances.

    Attributes:
        counts: posterior mass of each component, [n, components].
        firsts: sum of its whitened frames, weighted by their posteriors, [n, components, dimensions].
    """

    counts: Tensor
    firsts: Tensor


def posterior(statistics: Statistics, loadings: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [n, rank] and Cholesky factor of the precision [n, rank, rank] of w given the statistics.

    Args:
        loadings: T, [components, dimensions, rank].
    """
    products = loadings.transpose(1, 2) @ loadings
    unit = torch.eye(loadings.shape[2], dtype=loadings.dtype, device=loadings.device)
    precision = unit + torch.einsum("nk,krs->nrs", statistics.counts, products)
    factor = torch.linalg.cholesky(precision)
    projected = torch.einsum("nkd,kdr->nr", statistics.firsts, loadings)
    return torch.cholesky_solve(projected[:, :, None], factor)[:, :, 0], factor


def log_likelihood(statistics: Statistics, loadings: Tensor) -> Tensor:
    """log p(frames | assignment to components) of each utterance, up to a constant that does not depend on T, [n]:
    -1/2 log |L| + 1/2 b' L^-1 b with the precision L and b = T' F."""
    mean, factor = posterior(statistics, loadings)
    projected = torch.einsum("nkd,kdr->nr", statistics.firsts, loadings)
    return 0.5 * (projected * mean).sum(1) - factor.diagonal(dim1=1, dim2=2).log().sum(1)


def em_step(statistics: Statistics, loadings: Tensor) -> Tensor:
    """The loadings after one step of expectation maximization, with the covariance of w as a further parameter that is
    taken back into T at once (Liu et al., "Parameter expansion to accelerate EM", 1998): plain steps need hundreds of
    iterations to find the scale of T."""
    mean, factor = posterior(statistics, loadings)
    # E-step: the second moments of w; M-step: T_k = (sum_n F_k w') (sum_n N_k E[w w'])^-1.
    second = torch.cholesky_inverse(factor) + mean[:, :, None] * mean[:, None]
    moments = torch.einsum("nk,nrs->krs", statistics.counts, second)
    crossed = torch.einsum("nkd,nr->kdr", statistics.firsts, mean)
    # A component that no frame belongs to keeps loadings of 0.
    unit = torch.eye(loadings.shape[2], dtype=loadings.dtype, device=loadings.device)
    loadings = torch.linalg.solve(moments + 1e-8 * unit, crossed, left=False)
    return loadings @ torch.linalg.cholesky(second.mean(0))


def estimate_loadings(
    statistics: Statistics, rank: int, iterations: int, generator: torch.Generator
) -> tuple[Tensor, list[float]]:
    """T [components, dimensions, rank] by expectation maximization from random loadings, and the mean log-likelihood
    before each step and after the last."""
    shape = (*statistics.firsts.shape[1:], rank)
    loadings = 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)
    likelihoods = [float(log_likelihood(statistics, loadings).mean())]
    for _ in range(iterations):
        loadings = em_step(statistics, loadings)
        likelihoods.append(float(log_likelihood(statistics, loadings).mean()))
    return loadings, likelihoods
