"""Networks whose last hidden layer says who speaks: the contract between speaker networks and the back ends that score
their embeddings."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

NOBODY = "nobody"
"""The class of a recognizer that stands for every speaker it does not know."""


@runtime_checkable
class Embedder(Protocol):
    """A classifier that is a linear layer on an embedding; its classes are the speakers it was trained on.

    An utterance of a speaker it never saw has an embedding too, so a back end can compare it with those of enrolled
    speakers.

    Attributes:
        embedding_size: values per embedding.
    """

    embedding_size: int

    def embed(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features [batch, freq, time] -> embeddings [batch, embedding_size]; `forward` applies a linear layer to them.

        Args:
            mask: bool, the frames that are not padding, [batch, time] or [1, time]; a network that does not declare
                `uses_mask` ignores it.
        """
