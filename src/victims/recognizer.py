"""Speaker recognizers as classifiers: scores against enrolled speakers and, where one may be rejected, the threshold as
one more logit. A recognizer that rejects below theta has the logits [s_1 .. s_N, theta] and the last class "nobody"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from src.registry import BACK_ENDS
from src.victims.embedder import NOBODY, Embedder
from src.victims.victim import Victim

Task = Literal["csi", "sv", "osi"]


@dataclass(frozen=True)
class Enrollment:
    """What a checkpoint says about a recognizer, besides its tensors.

    Attributes:
        speakers: the enrolled ones, in the order of the logits.
        thresholded: whether there is a threshold, and so the class "nobody". Its value, 0 included, does not matter.
        back_end: name of the back end.
        options: its config keys.
        n_background: background speakers that it was estimated from.
        cohort: background utterances of the score normalization; 0 for no normalization.
        cohort_top: those of them that count for a score.
    """

    speakers: tuple[str, ...]
    thresholded: bool
    back_end: str
    options: Mapping[str, Any] = field(default_factory=dict)
    n_background: int = 0
    cohort: int = 0
    cohort_top: int = 0

    @property
    def task(self) -> Task:
        """csi: closed-set identification; sv: verification, one speaker; osi: open-set identification."""
        return ("sv" if len(self.speakers) == 1 else "osi") if self.thresholded else "csi"

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the logits."""
        return (*self.speakers, NOBODY) if self.thresholded else self.speakers

    def plain(self) -> dict[str, Any]:
        """The same as plain values, as a checkpoint's recipe holds them."""
        return {**asdict(self), "speakers": list(self.speakers), "options": dict(self.options)}


class Embedding(nn.Module):
    """The embedding of a network as a classifier of its own: features -> [batch, embedding_size]."""

    def __init__(self, embedder: nn.Module):
        super().__init__()
        check_embeds(embedder)
        self.embedder = embedder

    @property
    def uses_mask(self) -> bool:
        return bool(getattr(self.embedder, "uses_mask", False))

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        embeddings: Tensor = self.embedder.embed(features, mask)  # type: ignore[operator]
        return embeddings


class Recognizer(Embedding):
    """From features to logits, by the scores of the embedding against the enrolled speakers.

    Args:
        embedder: the network, see src.victims.embedder.
        enrollment: who is enrolled and how scores are made.

    Attributes:
        back_end: what makes the scores, see src.speaker.back_end.
        enrolled: models of the speakers, [N, size], as the back end makes them.
        theta: the threshold, a scalar, in units of the scores.
    """

    enrolled: Tensor
    theta: Tensor

    def __init__(self, embedder: nn.Module, enrollment: Enrollment):
        super().__init__(embedder)
        self.enrollment = enrollment
        self.back_end = BACK_ENDS[enrollment.back_end](
            embedding_size=embedder.embedding_size, n_background=enrollment.n_background, **enrollment.options
        )
        size = self.back_end.size
        if enrollment.cohort:
            self.back_end.normalize_by(torch.zeros(enrollment.cohort, size), enrollment.cohort_top)
        self.register_buffer("enrolled", torch.zeros(len(enrollment.speakers), size))
        if enrollment.thresholded:
            self.register_buffer("theta", torch.zeros(()))

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features [batch, ...] -> scores [batch, N] or, thresholded, [batch, N + 1] with theta in the last column."""
        return self.logits(super().forward(features, mask))

    def logits(self, embeddings: Tensor) -> Tensor:
        """The same from embeddings [batch, embedding_size]."""
        scores: Tensor = self.back_end(embeddings, self.enrolled)
        return torch.cat([scores, self.theta.expand(len(scores), 1)], 1) if self.enrollment.thresholded else scores


def recognizer_of(victim: Victim) -> Recognizer | None:
    """The recognizer at the end of a victim, None for an ordinary classifier."""
    return victim.classifier if isinstance(victim.classifier, Recognizer) else None


def check_embeds(network: nn.Module | None) -> None:
    """Refuse a network that no speaker can be enrolled with.

    Raises:
        ValueError: says why.
    """
    if isinstance(network, Recognizer):
        raise ValueError("speakers are enrolled in it already")
    if not isinstance(network, Embedder):
        raise ValueError("this model gives no embeddings (it has no `embed`), so no speaker can be enrolled with it")
