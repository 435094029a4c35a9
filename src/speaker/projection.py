"""The space in which speakers are compared: embeddings minus the mean of background speakers, in the directions of a
linear discriminant analysis, on the unit sphere (Garcia-Romero and Espy-Wilson 2011)."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn
from torch.nn import functional as F

Dimensions = Annotated[int, Ge(0)] | Literal["auto"]
MOST_DIMENSIONS = 150


def resolve(dimensions: Dimensions, embedding_size: int, n_speakers: int) -> int:
    """The number of LDA dimensions that `auto` stands for; 0 for no LDA.

    Raises:
        ValueError: more dimensions than an LDA of so many speakers or an embedding of this size has.
    """
    if dimensions == "auto":
        return min(n_speakers - 1, embedding_size, MOST_DIMENSIONS)
    if dimensions > n_speakers - 1:
        raise ValueError(
            f"lda_dimensions = {dimensions}: an LDA of {n_speakers} background speakers has at most {n_speakers - 1} "
            "dimensions; take fewer, or more background speakers"
        )
    if dimensions > embedding_size:
        raise ValueError(f"lda_dimensions = {dimensions}: the embeddings have only {embedding_size} values")
    return dimensions


class Projection(nn.Module):
    """Mean subtraction, LDA and length normalization; differentiable in every part.

    Args:
        embedding_size: values per embedding.
        dimensions: of the LDA; 0 for none.
    """

    mean: Tensor
    lda: Tensor

    def __init__(self, embedding_size: int, dimensions: int):
        super().__init__()
        self.dimensions = dimensions
        self.size = dimensions or embedding_size
        self.register_buffer("mean", torch.zeros(embedding_size))
        if dimensions:
            self.register_buffer("lda", torch.zeros(embedding_size, dimensions))

    def forward(self, embeddings: Tensor) -> Tensor:
        """[batch, embedding_size] -> [batch, size], of length 1."""
        centered = embeddings - self.mean
        return F.normalize(centered @ self.lda if self.dimensions else centered, dim=1)

    def fit(self, embeddings: Tensor, labels: Tensor) -> None:
        """Estimate mean and LDA from background embeddings [n, embedding_size] with the speakers' numbers [n].

        The covariance within speakers is shrunk as by Ledoit and Wolf (2004): a network has often more embedding
        values than there are background utterances.

        Raises:
            ValueError: an LDA of one utterance per speaker.
        """
        speakers = len(np.unique(labels.numpy()))
        if self.dimensions and len(labels) <= speakers:
            raise ValueError(
                f"an LDA needs several background clips of a speaker, there are {len(labels)} of {speakers} speakers"
            )
        x = embeddings.double().numpy()
        self.mean.copy_(torch.from_numpy(x.mean(0)))
        if self.dimensions:
            analysis = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto", n_components=self.dimensions)
            directions = analysis.fit(x - x.mean(0), labels.numpy()).scalings_[:, : self.dimensions]
            # An eigenvector has either sign; one rule gives the same file on every machine.
            signs = np.sign(directions[np.abs(directions).argmax(0), np.arange(self.dimensions)])
            self.lda.copy_(torch.from_numpy(directions * signs))
