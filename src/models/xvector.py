"""The x-vector network (Snyder et al., "X-vectors: robust DNN embeddings for speaker recognition", 2018): a time-delay
network, mean and standard deviation over the frames, and an embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from src.models.short_clips import at_least
from src.registry import MODELS, Count, Fraction

LAYERS = ((5, 1), (5, 2), (7, 3), (1, 1), (1, 1))
"""Frames and dilation of the convolution of each layer."""
PUBLISHED_WIDTH, PUBLISHED_LAST = 512, 1500
FLOOR = 1e-5
"""Added to the variance over the frames, so that its root has a gradient at 0."""


@MODELS.register("xvector")
class XVector(nn.Module):
    """x-vector network: five layers over a growing context of 31 frames, the mean and the standard deviation of their
    output, and a linear embedding of `width` values.

    5.9 M parameters at the published width of 512 with 30 coefficients and 251 classes. Padding has no influence, and
    clips may be of any length; one of fewer than 31 frames counts as if followed by as many frames of 0 as it lacks.

    Args:
        width: channels of the first four layers and values of the embedding; the fifth layer has 1500 / 512 times as
            many.
        dropout: before the last layer, in training.
    """

    front_end = "xvector"
    uses_mask = True

    def __init__(
        self, *, n_classes: int, shape: tuple[int, ...], width: Count = PUBLISHED_WIDTH, dropout: Fraction = 0.0
    ):
        super().__init__()
        if len(shape) != 2:
            raise ValueError(f"xvector needs features [freq, time], this front end gives {len(shape)} dimension(s)")
        widths = [shape[0], width, width, width, width, round(width * PUBLISHED_LAST / PUBLISHED_WIDTH)]
        layers: list[nn.Module] = []
        for (kernel, dilation), n_in, n_out in zip(LAYERS, widths, widths[1:], strict=False):
            layers += [
                nn.Conv1d(n_in, n_out, kernel, dilation=dilation),
                nn.ReLU(),
                nn.BatchNorm1d(n_out, affine=False),
            ]
        self.frames = nn.Sequential(*layers)
        self.context = 1 + sum((kernel - 1) * dilation for kernel, dilation in LAYERS)
        self.embedding_size = width
        self.embedding = nn.Linear(2 * widths[-1], width)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, n_classes)

    def embed(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features [batch, freq, time] -> embeddings [batch, embedding_size].

        Args:
            mask: bool, the frames that are not padding, [batch, time] or [1, time].
        """
        x, valid = at_least(self.context, features, mask)
        if valid is None:
            return self.embedding(self.statistics(self.frames(x), None))
        # An output frame counts where the last frame of its context does; of a clip shorter than that, the first one.
        counted = valid[:, self.context - 1 :]
        counted = torch.cat([valid.any(1, keepdim=True), counted[:, 1:]], 1)
        return self.embedding(self.statistics(self.frames(x * valid[:, None]), counted[:, None]))

    def statistics(self, x: Tensor, counted: Tensor | None) -> Tensor:
        """Mean and standard deviation [batch, 2 n] of x [batch, n, time] over the counted frames
        [batch or 1, 1, time]."""
        if counted is None:
            mean = x.mean(2)
            variance = (x - mean[:, :, None]).square().mean(2)
        else:
            weights = counted / counted.sum(2, keepdim=True).clamp_min(1)
            mean = (x * weights).sum(2)
            variance = ((x - mean[:, :, None]).square() * weights).sum(2)
        return torch.cat([mean, (variance + FLOOR).sqrt()], 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features [batch, freq, time] and the mask of valid frames [batch, time] or [1, time]
        -> logits [batch, n_classes]."""
        return self.linear(self.dropout(self.embed(x, mask)))
