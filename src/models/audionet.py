"""AudioNet, the speaker network of the SEC4SR benchmark (Chen et al. 2022, after Becker et al. 2018): convolutions over
time on a log-mel spectrogram, and the maximum over all frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.short_clips import at_least
from src.registry import MODELS

LAYERS = ((64, True), (128, False), (128, False), (128, True), (128, False), (64, True), (32, False))
"""Channels of each convolution, and whether its frames are pooled in pairs."""


class Layer(nn.Module):
    """Convolution over three frames, batch norm, ReLU and, with `pool`, the maximum of every two frames."""

    uses_mask = True

    def __init__(self, n_in: int, n_out: int, pool: bool, padding: int):
        super().__init__()
        self.convolution = nn.Sequential(nn.Conv1d(n_in, n_out, 3, padding=padding), nn.BatchNorm1d(n_out))
        self.pool, self.padding = pool, padding

    def forward(self, x: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[batch, n_in, time] -> [batch, n_out, shorter time], and the mask of its frames, [batch or 1, 1, time].

        Args:
            keep: the frames of the clip, bool; beyond them x is 0, as beyond the end of a clip without padding.
        """
        x = F.relu(self.convolution(x))
        if keep is not None and not self.padding:
            # The last of its three frames decides; of a clip that is too short for three, the first one counts.
            keep = torch.cat([keep.any(-1, keepdim=True), keep[..., 3:]], -1)
        if self.pool:
            x = F.max_pool1d(x, 2)
            # The last frame of an odd number is dropped.
            keep = None if keep is None else keep[..., 1::2]
        return (x if keep is None else x * keep), keep


@MODELS.register("audionet")
class AudioNet(nn.Module):
    """AudioNet of the SEC4SR benchmark: a 5 x 5 convolution, seven convolutions over time, the maximum over the frames.

    219,223 parameters with 32 bands and 251 classes. Its embedding has 32 values. Padding has no influence, and clips
    may be of any length; one of fewer than 24 frames counts as if followed by as many frames of 0 as it lacks.
    """

    front_end = "audionet"
    uses_mask = True
    embedding_size = LAYERS[-1][0]
    min_frames = 24

    def __init__(self, *, n_classes: int, shape: tuple[int, ...]):
        super().__init__()
        if len(shape) != 2:
            raise ValueError(f"audionet needs features [freq, time], this front end gives {len(shape)} dimension(s)")
        self.enter = nn.Sequential(nn.Conv2d(1, 1, 5, padding=2), nn.BatchNorm2d(1))
        widths = [shape[0], *(channels for channels, _ in LAYERS)]
        last = len(LAYERS) - 1
        self.layers = nn.ModuleList(
            Layer(widths[i], channels, pool, padding=int(i < last)) for i, (channels, pool) in enumerate(LAYERS)
        )
        self.linear = nn.Linear(self.embedding_size, n_classes)

    def embed(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features [batch, freq, time] -> embeddings [batch, 32].

        Args:
            mask: bool, the frames that are not padding, [batch, time] or [1, time].
        """
        x, keep = at_least(self.min_frames, features, mask)
        keep = None if keep is None else keep[:, None]
        if keep is not None:
            x = x * keep
        x = self.enter(x[:, None])[:, 0]
        if keep is not None:
            x = x * keep
        for layer in self.layers:
            x, keep = layer(x, keep)
        # All values are positive, so that the zeros of the padding are no maximum of their own.
        return x.amax(2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features [batch, freq, time] and the mask of valid frames [batch, time] or [1, time]
        -> logits [batch, n_classes]."""
        return self.linear(self.embed(x, mask))
