"""The keyword network of Pintor's study of adversarial spectrograms: two convolutions and three dense layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from src.registry import MODELS


@MODELS.register("cnn")
class Cnn(nn.Module):
    """Keyword network of Pintor's study: conv 6@9x9, pool 4, conv 16@6x6, pool 4, dense 1024-256-classes.

    On its published input, 128 x 321, and 10 classes it has 2.04 M parameters; the first dense layer follows the shape.
    """

    front_end = "linear_mel"
    embedding_size = 256

    def __init__(self, *, n_classes: int, shape: tuple[int, ...]):
        super().__init__()
        if len(shape) != 2:
            raise ValueError(f"cnn needs features [freq, time], this front end gives {len(shape)} dimension(s)")
        height, width = ((((size - 8) // 4) - 5) // 4 for size in shape)
        if min(height, width) < 1:
            raise ValueError(
                f"cnn needs features of at least 44 x 44, this front end gives {' x '.join(map(str, shape))}"
            )
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 9), nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(6, 16, 6), nn.ReLU(), nn.MaxPool2d(4)
        )
        self.classifier = nn.Sequential(
            nn.Linear(16 * height * width, 1024),
            nn.ReLU(),
            nn.Linear(1024, 256),
            nn.ReLU(),
            nn.Linear(256, n_classes),
        )

    def embed(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features [batch, freq, time] -> embeddings [batch, 256]; the mask is not used."""
        x = torch.flatten(self.features(features.unsqueeze(1)), 1)
        for layer in list(self.classifier)[:-1]:
            x = layer(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """[batch, freq, time] -> logits [batch, n_classes]."""
        return self.classifier[-1](self.embed(x))
