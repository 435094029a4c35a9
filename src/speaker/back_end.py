"""What every back end is: a projection of embeddings, a score of pairs in the projected space, models of enrolled
speakers, and scores against them, normalized by a cohort or not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.speaker.projection import Projection
from src.speaker.score_norm import as_norm


class BackEnd(nn.Module, ABC):
    """Scores embeddings of unknown speakers against those of enrolled ones. A subclass gives `pairwise`, and `fit`
    where it has more to estimate than the projection.

    Args:
        embedding_size: values per embedding.
        dimensions: of the LDA; 0 for none.

    Attributes:
        size: values per projected embedding.
        cohort: projected background utterances [cohort, size] of the score normalization, or None.
        top: those of them that count for a score.
    """

    cohort: Tensor | None
    top = 0

    def __init__(self, embedding_size: int, dimensions: int):
        super().__init__()
        self.project = Projection(embedding_size, dimensions)
        self.size = self.project.size
        self.register_buffer("cohort", None)

    @abstractmethod
    def pairwise(self, a: Tensor, b: Tensor) -> Tensor:
        """Similarity of projected embeddings a [n, size] and b [m, size]: [n, m], larger for the same speaker, and
        symmetric: pairwise(a, b) = pairwise(b, a).T."""

    def forward(self, embeddings: Tensor, enrolled: Tensor) -> Tensor:
        """Scores [batch, speakers] of embeddings [batch, embedding_size] against speakers' models [speakers, size]."""
        test = self.project(embeddings)
        scores = self.pairwise(test, enrolled)
        if self.cohort is None:
            return scores
        return as_norm(scores, self.pairwise(test, self.cohort), self.pairwise(enrolled, self.cohort), self.top)

    def fit(self, embeddings: Tensor, labels: Tensor) -> None:
        """Estimate everything from background embeddings [n, embedding_size] with the speakers' numbers [n]."""
        self.project.fit(embeddings, labels)

    def enroll(self, embeddings: Sequence[Tensor]) -> Tensor:
        """One model per speaker from embeddings [utterances, embedding_size] each: the mean of the projected ones,
        again of length 1; [speakers, size]."""
        return F.normalize(torch.stack([self.project(e).mean(0) for e in embeddings]), dim=1)

    def normalize_by(self, cohort: Tensor, top: int) -> None:
        """Normalize scores by this cohort of projected embeddings [cohort, size], of which `top` count for a score.

        Raises:
            ValueError: a cohort of fewer than `top`.
        """
        if top > len(cohort):
            raise ValueError(f"cohort_top = {top}: there are only {len(cohort)} background clips")
        self.register_buffer("cohort", cohort)
        self.top = top
