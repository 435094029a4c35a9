"""i-vectors (Dehak et al. 2011): a Gaussian mixture, the factor by which an utterance moves its means, and a linear
discriminant on it. Nothing is trained by gradients, but the scores have a gradient down to the waveform."""

from __future__ import annotations

import math
import warnings
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor, nn

from src.models.total_variability import Statistics, estimate_loadings, posterior
from src.registry import MODELS, Count

CHUNK = 64
"""Utterances whose statistics are computed at a time."""


@MODELS.register("ivector")
class IVector(nn.Module):
    """i-vector system: a full-covariance Gaussian mixture and a total variability matrix, both estimated by expectation
    maximization, and a linear discriminant on the posterior mean of the factor. Padding has no influence.

    Args:
        components: of the mixture.
        rank: values of an i-vector.
        frames: most training frames that the mixture is fitted to, drawn with the seed.
        mixture_steps: most steps of the mixture's expectation maximization.
        factor_steps: steps of that of the total variability matrix.
    """

    front_end = "ivector"
    uses_mask = True
    log_weights: Tensor
    means: Tensor
    whitening: Tensor
    loadings: Tensor

    def __init__(
        self,
        *,
        n_classes: int,
        shape: tuple[int, ...],
        components: Count = 32,
        rank: Count = 64,
        frames: Annotated[int, Ge(100)] = 50_000,
        mixture_steps: Count = 30,
        factor_steps: Count = 10,
    ):
        super().__init__()
        if len(shape) != 2:
            raise ValueError(f"ivector needs features [freq, time], this front end gives {len(shape)} dimension(s)")
        self.frames, self.mixture_steps, self.factor_steps = frames, mixture_steps, factor_steps
        self.embedding_size = rank
        size = shape[0]
        self.register_buffer("log_weights", torch.full((components,), -math.log(components)))
        self.register_buffer("means", torch.randn(components, size))
        self.register_buffer("whitening", torch.eye(size).repeat(components, 1, 1))
        self.register_buffer("loadings", 0.1 * torch.randn(components, size, rank))
        self.linear = nn.Linear(rank, n_classes)

    def responsibilities(self, x: Tensor) -> Tensor:
        """Posterior probability of each component at each frame of x [batch, frames, size],
        [batch, frames, components]."""
        scale = self.whitening.diagonal(dim1=1, dim2=2).log().sum(1) + self.log_weights
        # One component at a time: all whitened frames at once would be the largest tensor of the model.
        components = zip(self.means, self.whitening, strict=True)
        distances = [((x - mean) @ white).square().sum(2) for mean, white in components]
        return (scale - 0.5 * torch.stack(distances, 2)).softmax(2)

    def statistics(self, features: Tensor, mask: Tensor | None = None) -> Statistics:
        """Baum-Welch statistics of features [batch, size, frames]."""
        x = features.transpose(1, 2)
        shares = self.responsibilities(x)
        if mask is not None:
            shares = shares * mask[:, :, None]
        counts = shares.sum(1)
        firsts = shares.transpose(1, 2) @ x - counts[:, :, None] * self.means
        return Statistics(counts, torch.einsum("bkd,kde->bke", firsts, self.whitening))

    def embed(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features [batch, size, frames] -> i-vectors [batch, rank], the posterior mean of the factor.

        Args:
            mask: bool, the frames that are not padding, [batch, frames] or [1, frames].
        """
        return posterior(self.statistics(features, mask), self.loadings)[0]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features [batch, size, frames] and the mask of valid frames [batch, frames] or [1, frames]
        -> logits [batch, n_classes]."""
        return self.linear(self.embed(x, mask))

    @torch.no_grad()
    def estimate(self, features: Tensor, labels: Tensor, mask: Tensor, seed: int) -> list[float]:
        """Estimate all parameters from training utterances.

        Args:
            features: [n, size, frames].
            labels: [n].
            mask: bool, the frames that are not padding, [n, frames].
            seed: of the frames that are drawn and of the initial values.

        Returns:
            The mean log-likelihood of the utterances before each step of the factor's expectation maximization and
            after the last, up to a constant.

        Raises:
            ValueError: fewer frames than the mixture has parameters to fit, or a class without utterances.
        """
        missing = set(range(self.linear.out_features)) - set(labels.tolist())
        if missing:
            raise ValueError(f"ivector needs training clips of every class, there are none of {len(missing)} of them")
        self.fit_mixture(features.transpose(1, 2)[mask].cpu().double().numpy(), seed)
        parts = [self.statistics(x, valid) for x, valid in zip(features.split(CHUNK), mask.split(CHUNK), strict=True)]  # type: ignore[no-untyped-call]
        statistics = Statistics(*(torch.cat(part).cpu().double() for part in zip(*parts, strict=True)))
        generator = torch.Generator().manual_seed(seed)
        loadings, likelihoods = estimate_loadings(statistics, self.embedding_size, self.factor_steps, generator)
        self.loadings.copy_(loadings)
        self.fit_discriminant(posterior(statistics, loadings)[0].numpy(), labels.cpu().numpy())
        return likelihoods

    def fit_mixture(self, frames: np.ndarray, seed: int) -> None:
        """Set weights, means and whitening to those of the mixture that is fitted to frames [n, size]."""
        from sklearn.exceptions import ConvergenceWarning  # slow to import, and needed for training only
        from sklearn.mixture import GaussianMixture
        from threadpoolctl import threadpool_limits

        components, size = self.means.shape
        if len(frames) < 2 * components * size:
            raise ValueError(
                f"ivector needs at least {2 * components * size} training frames for {components} components, "
                f"there are {len(frames)}"
            )
        rng = np.random.default_rng(seed)
        chosen = frames[rng.permutation(len(frames))[: self.frames]]
        # Standardized, so that the regularization of the covariances is the same for every coefficient.
        center, scale = chosen.mean(0), chosen.std(0) + 1e-8
        mixture = GaussianMixture(
            components, covariance_type="full", reg_covar=1e-3, max_iter=self.mixture_steps, random_state=seed % 2**32
        )
        # One thread: faster for matrices of this size, and the same bytes whatever the number of threads.
        with threadpool_limits(1, "blas"), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # mixture_steps is a limit that is meant to be reached
            mixture.fit((chosen - center) / scale)
        self.log_weights.copy_(torch.from_numpy(np.log(mixture.weights_)))
        self.means.copy_(torch.from_numpy(mixture.means_ * scale + center))
        self.whitening.copy_(torch.from_numpy(mixture.precisions_cholesky_ / scale[:, None]))

    def fit_discriminant(self, vectors: np.ndarray, labels: np.ndarray) -> None:
        """Set the linear layer to the linear discriminant of i-vectors [n, rank] with a shared, shrunk covariance."""
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        discriminant = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(vectors, labels)
        weight, bias = discriminant.coef_, discriminant.intercept_
        if len(weight) == 1:  # scikit-learn keeps only the difference of two classes
            weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
        self.linear.weight.copy_(torch.from_numpy(weight))
        self.linear.bias.copy_(torch.from_numpy(bias))
