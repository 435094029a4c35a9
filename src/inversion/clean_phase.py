"""Magnitudes by non-negative least squares with the phase of the clean signal."""

from __future__ import annotations

from torch import Tensor

from src.inversion.nnls import magnitudes
from src.inversion.spectrum import invert
from src.random_streams import RandomStreams
from src.registry import INVERSIONS, Count
from src.victims.chain import Chain


@INVERSIONS.register("clean_phase")
def clean_phase(head: Chain, z: Tensor, x: Tensor, *, rng: RandomStreams, nnls_steps: Count = 30) -> Tensor:
    """Magnitudes by non-negative least squares, phase of the clean signal; at magnitudes the same as gain_mask.

    Args:
        nnls_steps: gradient steps of the non-negative least squares.
    """
    return invert(head, z, x, rng, lambda stage: magnitudes(stage, nnls_steps))
