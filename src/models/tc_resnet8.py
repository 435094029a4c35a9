"""TC-ResNet8 (Choi et al., "Temporal convolution for real-time keyword spotting on mobile devices", 2019)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from src.registry import MODELS, Fraction, Positive

CHANNELS = (16, 24, 32, 48)
KERNEL = 9


class Block(nn.Module):
    """Two temporal convolutions, the first with stride 2, and a 1x1 shortcut."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv1d(n_in, n_out, KERNEL, 2, KERNEL // 2, bias=False),
            nn.BatchNorm1d(n_out),
            nn.ReLU(),
            nn.Conv1d(n_out, n_out, KERNEL, 1, KERNEL // 2, bias=False),
            nn.BatchNorm1d(n_out),
        )
        self.shortcut = nn.Sequential(nn.Conv1d(n_in, n_out, 1, 2, bias=False), nn.BatchNorm1d(n_out), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """[batch, n_in, time] -> [batch, n_out, time / 2]."""
        return F.relu(self.path(x) + self.shortcut(x))


@MODELS.register("tc_resnet8")
class TcResNet8(nn.Module):
    """Temporal convolutions whose channels are the cepstral coefficients; fast on CPU.

    66 k parameters with 40 coefficients and 12 classes.

    Args:
        multiplier: of the published channel numbers (1.5 is TC-ResNet8-1.5).
        dropout: before the linear layer, in training.
    """

    front_end = "mfcc"

    def __init__(self, *, n_classes: int, shape: tuple[int, ...], multiplier: Positive = 1.0, dropout: Fraction = 0.5):
        super().__init__()
        if len(shape) != 2:
            raise ValueError(f"tc_resnet8 needs features [freq, time], this front end gives {len(shape)} dimension(s)")
        channels = [max(1, int(number * multiplier)) for number in CHANNELS]
        self.enter = nn.Conv1d(shape[0], channels[0], 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*map(Block, channels[:-1], channels[1:]))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, freq, time] -> logits [batch, n_classes]."""
        return self.linear(self.dropout(self.blocks(self.enter(x)).mean(2)))
