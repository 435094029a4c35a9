"""Cosine of the angle between two embeddings."""

from __future__ import annotations

from torch import Tensor

from src.registry import BACK_ENDS
from src.speaker.back_end import BackEnd
from src.speaker.projection import Dimensions, resolve


@BACK_ENDS.register("cosine")
class Cosine(BackEnd):
    """Cosine between embeddings, after the mean of the background speakers is subtracted.

    Args:
        lda_dimensions: of a linear discriminant analysis before the cosine; 0 for none, auto for one less than the
            background speakers, at most 150.
    """

    def __init__(self, *, embedding_size: int, n_background: int, lda_dimensions: Dimensions = 0):
        super().__init__(embedding_size, resolve(lda_dimensions, embedding_size, n_background))

    def pairwise(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b.T
