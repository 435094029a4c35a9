"""BC-ResNet (Kim et al., "Broadcasted residual learning for efficient keyword spotting", Interspeech 2021)."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn import functional as F

from src.registry import MODELS, Fraction

BANDS = 5
STAGES = ((2, 1.0, 1), (2, 1.5, 2), (4, 2.0, 2), (4, 2.5, 1))
"""Number of blocks, channels in units of 8 * width and frequency stride of each stage; stage i has dilation 2^i."""


class SubSpectralNorm(nn.Module):
    """Batch norm with separate statistics for each of five frequency bands (Chang et al. 2021)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels * BANDS)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, freq, time], freq a multiple of 5 -> the same shape."""
        batch, channels, freq, time = x.shape
        return self.norm(x.reshape(batch, channels * BANDS, freq // BANDS, time)).reshape(x.shape)


class Block(nn.Module):
    """A frequency convolution plus a temporal one of its mean over frequency, broadcast back to all frequencies."""

    def __init__(self, n_in: int, n_out: int, stride: int, dilation: int, dropout: float, transition: bool):
        super().__init__()
        self.transition = transition
        self.enter = (
            nn.Sequential(nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU())
            if transition
            else nn.Identity()
        )
        self.frequency = nn.Conv2d(n_out, n_out, (3, 1), (stride, 1), (1, 0), groups=n_out, bias=False)
        self.norm = SubSpectralNorm(n_out)
        self.temporal = nn.Sequential(
            nn.Conv2d(n_out, n_out, (1, 3), padding=(0, dilation), dilation=(1, dilation), groups=n_out, bias=False),
            nn.BatchNorm2d(n_out),
            nn.SiLU(),
            nn.Conv2d(n_out, n_out, 1, bias=False),
            nn.Dropout2d(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[batch, n_in, freq, time] -> [batch, n_out, freq / stride, time]."""
        auxiliary = self.norm(self.frequency(self.enter(x)))
        out = auxiliary + self.temporal(auxiliary.mean(2, keepdim=True))
        return F.relu(out if self.transition else out + x)


@MODELS.register("bc_resnet")
class BcResNet(nn.Module):
    """Broadcasted-residual network, the most accurate keyword spotter for its size.

    9.2 k, 54.2 k and 321 k parameters at width 1, 3 and 8 for 12 classes.

    Args:
        width: channels in units of 8, the number in the published names BC-ResNet-1 to -8.
        dropout: probability that a channel of the temporal path is dropped in training.
    """

    front_end = "log_mel"

    def __init__(
        self,
        *,
        n_classes: int,
        shape: tuple[int, ...],
        width: Annotated[int, Ge(1), Le(8)] = 3,
        dropout: Fraction = 0.1,
    ):
        super().__init__()
        if len(shape) != 2:
            raise ValueError(f"bc_resnet needs features [freq, time], this front end gives {len(shape)} dimension(s)")
        height = (shape[0] + 1) // 2
        for _, _, stride in STAGES:
            height = -(-height // stride)
            if height % BANDS:
                raise ValueError(
                    f"bc_resnet needs a number of frequency bands that stays a multiple of {BANDS} when halved "
                    f"(40 or 80, say), this front end gives {shape[0]}"
                )
        base = 8 * width
        layers: list[nn.Module] = [
            nn.Conv2d(1, 2 * base, 5, (2, 1), 2, bias=False),
            nn.BatchNorm2d(2 * base),
            nn.ReLU(),
        ]
        channels = 2 * base
        for stage, (blocks, factor, stride) in enumerate(STAGES):
            n_out = int(factor * base)
            for block in range(blocks):
                first = block == 0
                layers.append(Block(channels, n_out, stride if first else 1, 2**stage, dropout, first))
                channels = n_out
        layers += [
            nn.Conv2d(channels, channels, 5, padding=(0, 2), groups=channels, bias=False),
            nn.Conv2d(channels, 4 * base, 1, bias=False),
            nn.BatchNorm2d(4 * base),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(4 * base, n_classes, 1),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, freq, time] -> logits [batch, n_classes]."""
        return self.layers(x.unsqueeze(1)).flatten(1)
