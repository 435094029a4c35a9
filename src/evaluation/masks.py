"""Where a perturbation may be: not in the padding, not in silence, so that silence stays exactly silent."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

FRAME_SECONDS = 0.02


def sample_mask(x: Tensor, valid: Tensor, kind: str, sample_rate: int, silence_db: float) -> Tensor | None:
    """Samples that may change, bool [batch, time]; None for all.

    Args:
        x: waveforms [batch, time].
        valid: True before the padding, [batch, time].
        kind: padding; silence (also without the 20-ms frames whose energy is `silence_db` or more below that of the
            clip's loudest frame, digital silence always among them); or none.
    """
    if kind == "none":
        return None
    if kind == "padding":
        return valid
    frame = round(FRAME_SECONDS * sample_rate)
    energy = F.pad(x, (0, -x.shape[1] % frame)).view(len(x), -1, frame).square().sum(-1)
    loud = energy > energy.amax(1, keepdim=True) * 10 ** (-silence_db / 10)
    return valid & loud.repeat_interleave(frame, 1)[:, : x.shape[1]]
