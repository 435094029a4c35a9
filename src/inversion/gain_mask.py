"""A time-varying gain on the clean STFT: it keeps phase and fine structure, and gives x for an unchanged
representation."""

from __future__ import annotations

from torch import Tensor

from src.inversion.spectrum import invert
from src.random_streams import RandomStreams
from src.registry import INVERSIONS
from src.victims.chain import Chain


@INVERSIONS.register("gain_mask")
def gain_mask(head: Chain, z: Tensor, x: Tensor, *, rng: RandomStreams) -> Tensor:
    """Gains on the clean STFT that move its mel values to the target; keeps the clean phase and fine structure."""
    return invert(head, z, x, rng)
