"""The residual CNN of Deep Speaker (Li et al. 2017), with the softmax head of O'Reilly's certified speaker study."""

from __future__ import annotations

from torch import Tensor, nn

from src.registry import MODELS, Count, Fraction

CEILING = 20.0


class Clip(nn.Hardtanh):
    """min(max(x, 0), 20)."""

    def __init__(self) -> None:
        super().__init__(0.0, CEILING)


class Block(nn.Module):
    """Two 3x3 convolutions, clipped before and after the identity is added."""

    def __init__(self, channels: int):
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            Clip(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            Clip(),
        )
        self.clip = Clip()

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, freq, time] -> the same shape."""
        return self.clip(self.path(x) + x)


@MODELS.register("rescnn")
class ResCnn(nn.Module):
    """Deep Speaker's residual CNN: four stages of a strided 5x5 convolution and three identity blocks.

    24.18 M parameters with 64 filters and 10 classes; a width of 16 is the narrow version for CPU work (1.5 M).

    Args:
        width: channels of the first stage; each next stage doubles them, and the dense layer has 8 times as many units.
        dropout: before the dense layer, in training.
    """

    front_end = "filterbank"

    def __init__(self, *, n_classes: int, shape: tuple[int, ...], width: Count = 64, dropout: Fraction = 0.5):
        super().__init__()
        if len(shape) != 2:
            raise ValueError(f"rescnn needs features [freq, time], this front end gives {len(shape)} dimension(s)")
        layers: list[nn.Module] = []
        channels, height = 1, shape[0]
        for stage in range(4):
            n_out = width << stage
            layers += [nn.Conv2d(channels, n_out, 5, 2, 2), nn.BatchNorm2d(n_out), Clip()]
            layers += [Block(n_out) for _ in range(3)]
            channels, height = n_out, (height + 1) // 2
        self.layers = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.embedding_size = 8 * width
        self.dense = nn.Linear(channels * height, 8 * width)
        self.linear = nn.Linear(8 * width, n_classes)

    def embed(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features [batch, freq, time] -> embeddings [batch, 8 width]; the mask is not used."""
        pooled = self.layers(features.unsqueeze(1)).mean(3).flatten(1)
        return self.dense(self.dropout(pooled))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, freq, time] -> logits [batch, n_classes]."""
        return self.linear(self.embed(x))
