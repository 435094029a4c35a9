"""Gated convolutional network for sound events (Iqbal et al., "General-purpose audio tagging from noisy labels using
convolutional neural networks", DCASE 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from src.models.tagging_blocks import Tagger
from src.registry import MODELS, Natural, Positive


@MODELS.register("gcnn")
class Gcnn(Tagger):
    """VGG13 with gated convolutions: half of the filters, times the sigmoid of the other half, then batch norm.

    18.8 M parameters at width 1 with 41 classes.

    Args:
        width: of the published channels 64, 128, 256, 512, 512; at least 8 each.
        chunk: frames of the chunks that a clip is cut into, 128 as published; the clip is predicted by the geometric
            mean of their probabilities. 0 for the whole clip at once.
    """

    def __init__(self, *, n_classes: int, shape: tuple[int, ...], width: Positive = 1.0, chunk: Natural = 128):
        super().__init__("gcnn", shape, chunk, width, gated=True)
        self.linear = nn.Linear(self.n_features, n_classes)

    def chunk_logits(self, x: Tensor) -> Tensor:
        """Chunks [n, freq, time] -> logits [n, n_classes]."""
        return self.linear(self.features(x).mean((2, 3)))
