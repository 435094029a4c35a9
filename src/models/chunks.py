"""Long clips in chunks: the network sees chunks of equal length, and the clip is predicted by the geometric mean of
their probabilities (Iqbal et al., "General-purpose audio tagging from noisy labels using convolutional neural
networks", DCASE 2018). It is a part of the classifier, so that attacks, certificates and evaluation act on the whole
clip."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LEFT_OUT = 4
"""A remainder of less than this fraction of a chunk is left out (as published, 32 of 128 frames)."""


def starts_of(n_frames: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Where the chunks of clips begin: (first frames [batch, most chunks], number of chunks [batch]).

    A clip shorter than a chunk has one, which is filled up. Behind the whole chunks of a longer one a short remainder
    is left out, half of it at each end of the clip; a longer remainder gives one more chunk, the last frames of the
    clip, which overlaps the one before. So every chunk of a longer clip is full of frames of the clip.

    Args:
        n_frames: of each clip, [batch] integers.
        chunk: frames per chunk.

    >>> starts_of(torch.tensor([300, 270, 90]), 128)
    (tensor([[  0, 128, 172],
            [  7, 135, 142],
            [  0,   0,   0]]), tensor([3, 2, 1]))
    """
    remainder = n_frames % chunk
    short = remainder * LEFT_OUT < chunk
    counts = (n_frames // chunk + ~short).where(n_frames >= chunk, 1)
    first = torch.where(short, remainder // 2, 0)[:, None]
    position = torch.arange(int(counts.max()) if len(counts) else 1, device=n_frames.device)
    last = (n_frames[:, None] - chunk).clamp_min(0)
    return (first + position * chunk).minimum(last), counts


def to_front(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Frames [batch, ..., time], those that count moved to the front, and their number [batch]."""
    mask = mask.expand(len(x), -1)
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
        x = x.gather(-1, _beside(order, x).expand_as(x))
    return x, mask.sum(1).clamp_min(1)


def _beside(of_frames: Tensor, x: Tensor) -> Tensor:
    """Values [batch, time] of the frames of x [batch, ..., time], with the dimensions of x."""
    return of_frames.view(len(x), *[1] * (x.dim() - 2), of_frames.shape[1])


def cut(x: Tensor, n_frames: Tensor, chunk: int, silence: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """The chunks of all clips, [n, ..., chunk]; the row and the column of each in a table of clips and their chunks, as
    one index [n]; the number of chunks of each clip [batch].

    Args:
        x: frames [batch, ..., time].
        n_frames: that count, from the first on, [batch].
        silence: the value that fills up clips shorter than a chunk; None for the lowest value of the clip.
    """
    starts, counts = starts_of(n_frames, chunk)
    most = starts.shape[1]
    longest = x.shape[-1]
    if len(x) and int(n_frames.min()) == int(n_frames.max()) >= chunk:  # slices: a gather is slow in the backward pass
        pieces = torch.stack([x[..., start : start + chunk] for start in starts[0].tolist()], 1)
        return pieces.flatten(0, 1), torch.arange(len(x) * most, device=x.device), counts
    time = starts[:, :, None] + torch.arange(chunk, device=x.device)
    inside = (time < n_frames[:, None, None]).flatten(1)
    index = time.clamp_max(longest - 1).flatten(1)
    pieces = x.gather(-1, _beside(index, x).expand(*x.shape[:-1], -1))
    filling: Tensor | float = silence or 0.0
    if silence is None:
        valid = torch.arange(longest, device=x.device) < n_frames[:, None]
        filling = _beside(x.masked_fill(~_beside(valid, x), math.inf).flatten(1).amin(1, keepdim=True), x)
    pieces = torch.where(_beside(inside, x), pieces, filling)
    pieces = pieces.view(*x.shape[:-1], most, chunk).movedim(-2, 1).flatten(0, 1)
    rows = (torch.arange(most, device=x.device) < counts[:, None]).flatten().nonzero()[:, 0]
    return pieces[rows], rows, counts


class Chunked(nn.Module):
    """A classifier of chunks, as one of whole clips.

    The logits of a clip are the mean over its chunks of the log-softmax of their logits: those of the geometric mean of
    the chunk probabilities. The cross-entropy of the training is that of this prediction, so it is normalized over the
    classes; without that it would be the mean of the cross-entropies of the chunks.

    With chunks the classifier declares `uses_mask`: clips may be of any length, padding has no influence, neither on
    the logits nor on batch norm in training, and frames that do not count at the beginning are skipped. The whole clip
    at once is seen with its padding.

    Args:
        chunk: frames per chunk; 0 for the whole clip at once.
        frames: of the clips that the classifier is built for.
        least: frames that the network needs.

    Attributes:
        silence: what fills up clips shorter than a chunk; None for the lowest value of the clip.
        clip_of: the clip of each chunk at the latest call, [n], for those who look at what a layer gave; None where the
            layers see whole clips.
    """

    silence: float | None = None
    clip_of: Tensor | None = None

    def __init__(self, chunk: int, frames: int, least: int):
        super().__init__()
        if 0 < chunk < least:
            raise ValueError(f"chunk = {chunk}: need at least {least}, or 0 for the whole clip")
        if not chunk and frames < least:
            raise ValueError(f"chunk = 0 needs clips of at least {least} frames, this front end gives {frames}")
        self.chunk, self.uses_mask = chunk, chunk > 0

    def chunk_logits(self, x: Tensor) -> Tensor:
        """Chunks [n, ..., frames] -> logits [n, n_classes]."""
        raise NotImplementedError

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features [batch, ..., frames] and, with chunks, the mask of valid frames [batch, frames] or [1, frames]
        -> logits [batch, n_classes]."""
        if not self.chunk:
            return self.chunk_logits(x)
        if mask is None:
            n_frames = torch.full((len(x),), x.shape[-1], device=x.device)
        else:
            x, n_frames = to_front(x, mask)
        pieces, rows, counts = cut(x, n_frames, self.chunk, self.silence)
        most = int(counts.max()) if len(counts) else 1
        self.clip_of = rows // most
        logs = self.chunk_logits(pieces).log_softmax(1)
        if len(rows) < len(x) * most:
            logs = logs.new_zeros(len(x) * most, logs.shape[1]).index_copy(0, rows, logs)
        return logs.view(len(x), most, logs.shape[1]).sum(1) / counts[:, None]
