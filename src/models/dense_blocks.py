"""What the densely connected sound-event networks have in common (Jeong and Lim, "Audio tagging system for DCASE 2018:
focusing on label noise, data augmentation and its efficient learning", 2018): blocks with squeeze and excitation whose
output is concatenated with their input, and several heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.losses import log_mean_probability
from src.models.width import scaled

BLOCKS, HEADS = 8, 8
FIRST, MOST = 16, 512
"""Published channels of the first block, doubled with each further one, and the most."""


class Excitation(nn.Module):
    """Channels weighted by what their means say (squeeze and excitation, Hu et al. 2018), with half as many hidden
    units."""

    def __init__(self, channels: int):
        super().__init__()
        self.weights = nn.Sequential(
            nn.Linear(channels, channels // 2), nn.ReLU(), nn.Linear(channels // 2, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, height, width] -> the same shape."""
        return x * self.weights(x.mean((2, 3)))[:, :, None, None]


class DenseBlock(nn.Module):
    """BN-ReLU-conv1-BN-ReLU-conv3 and squeeze and excitation, concatenated with the input, then the maximum of every
    two; an odd last one stays alone, so that axes of length 1 remain.

    Args:
        n_out: channels that are added.
        kernel: of the second convolution, (3, 3) or (1, 3).
    """

    def __init__(self, n_in: int, n_out: int, kernel: tuple[int, int]):
        super().__init__()
        self.path = nn.Sequential(
            nn.BatchNorm2d(n_in),
            nn.ReLU(),
            nn.Conv2d(n_in, n_out, 1),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
            nn.Conv2d(n_out, n_out, kernel, padding=(kernel[0] // 2, kernel[1] // 2)),
            Excitation(n_out),
        )
        self.pool = (2 if kernel[0] > 1 else 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """[n, n_in, height, width] -> [n, n_in + n_out, height / 2, width / 2], rounded up."""
        parts = (F.max_pool2d(part, self.pool, ceil_mode=True) for part in (self.path(x), x))
        return torch.cat(list(parts), 1)


class DenseNetwork(nn.Module):
    """Eight blocks, BN-ReLU, the mean over all positions, and eight linear heads whose probabilities are averaged.

    Args:
        n_in: channels of the input.
        kernel: of the blocks.
        width: of the published channels 16, 32, ... 512.
    """

    def __init__(self, n_in: int, kernel: tuple[int, int], width: float, n_classes: int):
        super().__init__()
        self.n_classes = n_classes
        layers: list[nn.Module] = []
        for i in range(BLOCKS):
            n_out = scaled(min(MOST, FIRST * 2**i), width)
            layers.append(DenseBlock(n_in, n_out, kernel))
            n_in += n_out
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(n_in), nn.ReLU())
        self.heads = nn.Linear(n_in, HEADS * n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[n, n_in, height, width] -> logarithms of the mean probabilities [n, n_classes]."""
        logits = self.heads(self.layers(x).mean((2, 3)))
        return log_mean_probability(logits.unflatten(1, (HEADS, self.n_classes)), 1)
