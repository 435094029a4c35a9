"""The attacked model with the inversion in the loop: it gets every iterate as the 16-bit wav that would be written of
it, analyzed again, so that a success at a spectrum is one that survives on the wav. The gradient passes the way to
audio and back unchanged (BPDA: where an inversion is exact, that way is the identity)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from src.attacks.model import Model, draws_of, narrow, votes
from src.datasets.store import FULL_SCALE
from src.victims.adaptive import straight_through

ToAudio = Callable[[Tensor, Tensor, Tensor, tuple[str, ...]], Tensor]
"""(representation [batch, ...], clean waveforms [batch, time], their valid samples, ids) -> audio [batch, time]."""


class ThroughAudio:
    """A model of a representation that sees what is left of its input on the wav.

    Args:
        model: from the representation [batch, ...] to logits.
        head: from waveforms and their valid samples to the representation.
        to_audio: the inversion.
        x: clean waveforms, [batch, time].
        valid: bool, their samples before the padding.
        ids: of the clips.
    """

    def __init__(
        self,
        model: Model,
        head: Callable[[Tensor, Tensor], Tensor],
        to_audio: ToAudio,
        x: Tensor,
        valid: Tensor,
        ids: tuple[str, ...],
    ):
        self.model, self.head, self.to_audio = model, head, to_audio
        self.x, self.valid, self.ids = x, valid, ids
        self.draws = draws_of(model)

    def heard(self, z: Tensor) -> Tensor:
        """The representation of the wav, [batch, ...]."""
        with torch.no_grad():
            audio = self.to_audio(z.detach(), self.x, self.valid, self.ids)
            steps = (audio * FULL_SCALE).round_().clamp_(-FULL_SCALE, FULL_SCALE - 1)
            return self.head(steps / FULL_SCALE, self.valid)

    def __call__(self, z: Tensor) -> Tensor:
        return self.model(straight_through(self.heard(z), z) if torch.is_grad_enabled() else self.heard(z))

    def votes(self, z: Tensor) -> Tensor | None:
        """As `Voter.votes`, of the wav."""
        return votes(self.model, self.heard(z))

    def select(self, index: Tensor) -> Self:
        chosen = tuple(self.ids[i] for i in index.tolist())
        return type(self)(narrow(self.model, index), self.head, self.to_audio, self.x[index], self.valid[index], chosen)
