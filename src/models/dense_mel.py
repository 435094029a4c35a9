"""Densely connected network on a mel spectrogram for sound events (Jeong and Lim, "Audio tagging system for DCASE 2018:
focusing on label noise, data augmentation and its efficient learning", 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from src.models.chunks import Chunked
from src.models.dense_blocks import FIRST, DenseNetwork
from src.models.width import scaled
from src.registry import MODELS, Natural, Positive


@MODELS.register("dense_mel")
class DenseMel(Chunked):
    """Densely connected blocks with squeeze and excitation on a mel spectrogram of short hops, and eight heads whose
    probabilities are averaged; its logits are the logarithms of the mean.

    11.1 M parameters at width 1 with 41 classes. Batch norm of each mel band is its first layer, that of the audio
    belongs to the front end. Not published, so ours: the hidden units of squeeze and excitation (half of the channels,
    which gives the published number of parameters), the averages over all positions before the heads (of one linear
    layer each), and chunks: as published a clip is one piece, of 2 s or more.

    Args:
        width: of the published channels 16, 32, ... 512, and of the 15 filters of the first layer; at least 8 each.
        chunk: frames of the chunks that a clip is cut into (500 are 2 s); the clip is predicted by the geometric mean
            of their probabilities. 0 for the whole clip at once.
    """

    front_end = "dense_mel"

    def __init__(self, *, n_classes: int, shape: tuple[int, ...], width: Positive = 1.0, chunk: Natural = 500):
        if len(shape) != 2:
            raise ValueError(f"dense_mel needs features [freq, time], this front end gives {len(shape)} dimension(s)")
        super().__init__(chunk, shape[1], 2)
        n_first = scaled(FIRST, width)
        self.bands = nn.BatchNorm1d(shape[0])
        self.enter = nn.Conv2d(1, n_first - 1, 3, padding=1)
        self.network = DenseNetwork(n_first, (3, 3), width, n_classes)

    def chunk_logits(self, x: Tensor) -> Tensor:
        """Chunks [n, freq, time] -> logits [n, n_classes]."""
        # Strides of channels_last, or the concatenation would fall back to the layout in which pooling is slow.
        x = self.bands(x).unsqueeze(-1).movedim(-1, 1)
        return self.network(torch.cat([x, self.enter(x)], 1))
