"""Selection of voiced frames, before statistics are taken over them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from src.victims.stage import Stage


class Voiced(Stage):
    """The loudest frames of the clip, in the order of time: those with the largest first row, the log energy of MFCCs.

    A fixed share is kept, not the frames above a threshold: all clips of a length then keep the same number of frames,
    so that batches stay rectangular and a clip has the same output alone and in a batch; and no attack gains by moving
    frames across a threshold until few are left. Where the frames stand under a sliding mean, loudness counts relative
    to the surroundings.

    Args:
        share: of the frames that are kept.
    """

    uses_mask = True

    def __init__(self, share: float, name: str = "final"):
        super().__init__(name)
        self.share = share

    def kept(self, n_frames: int) -> int:
        """How many of this number of frames are kept."""
        return max(1, math.ceil(self.share * n_frames - 1e-9))

    def selected(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(index of each kept frame, whether it is one), [batch, kept]: the frames of the clip in the order of time,
        then places that a shorter clip does not fill."""
        frames = x.shape[-1]
        loudness = x[:, 0].detach()
        counts = torch.full((1, 1), self.kept(frames), device=x.device)
        if self.valid is not None:
            valid = self.valid.flatten(1, -2).any(1)
            loudness = loudness.masked_fill(~valid, -math.inf)
            counts = self._counts(valid)[:, None]
        # Stable, so that of frames with the same loudness, such as silence, the first ones are kept.
        order = loudness.argsort(dim=-1, descending=True, stable=True)[:, : self.kept(frames)]
        is_kept = torch.arange(order.shape[1], device=x.device) < counts
        index = order.masked_fill(~is_kept, frames).sort(-1).values
        return index.clamp(max=frames - 1), index < frames

    def forward(self, x: Tensor) -> Tensor:
        """[batch, n, frames] -> [batch, n, kept frames]."""
        index, is_kept = self.selected(x)
        frames = x.gather(-1, index[:, None].expand(-1, x.shape[1], -1))
        return frames if self.valid is None else frames * is_kept[:, None]

    def inverse(self, y: Tensor, x: Tensor) -> Tensor:
        """x with the frames of y in the place of those that are kept of it."""
        index, is_kept = self.selected(x)
        index = index[:, None].expand(-1, x.shape[1], -1)
        return x.scatter(-1, index, torch.where(is_kept[:, None], y, x.gather(-1, index)))

    def mask(self, valid: Tensor) -> Tensor:
        """Every kept frame may be any one of the input."""
        rows = valid.flatten(1, -2).any(1, keepdim=True)
        return rows.any(-1, keepdim=True).expand(-1, -1, self.kept(valid.shape[-1]))

    def valid_output(self, valid: Tensor) -> Tensor:
        rows = valid.flatten(1, -2).any(1)
        counts = self._counts(rows)[:, None, None]
        return torch.arange(self.kept(valid.shape[-1]), device=valid.device) < counts

    def _counts(self, valid: Tensor) -> Tensor:
        """Kept frames of each clip with these valid frames, [batch, frames] -> [batch] long."""
        return torch.tensor([self.kept(n) for n in valid.sum(1).tolist()], dtype=torch.long, device=valid.device)
