"""What the sound-event networks of Iqbal et al. (DCASE 2018, task 2) have in common: five blocks of two convolutions,
in which batch norm follows the ReLU or the gate, and pooling."""

from __future__ import annotations

from torch import Tensor, nn

from src.models.chunks import Chunked
from src.models.width import scaled

CHANNELS = (64, 128, 256, 512, 512)
"""Published channels of the blocks; each block halves frequency and time."""
LEAST = 2 ** len(CHANNELS)
"""Frequency bands and frames that the blocks need."""


class Gate(nn.Module):
    """Linear half times the sigmoid of the other half of the channels (Dauphin et al. 2017)."""

    def forward(self, x: Tensor) -> Tensor:
        """[n, 2 channels, freq, time] -> [n, channels, freq, time]."""
        # On a CPU the backward pass of F.glu takes 2.5 times as long in channels_last.
        linear, gate = x.chunk(2, 1)
        return linear * gate.sigmoid()


def blocks(width: float, gated: bool = False) -> nn.Sequential:
    """The blocks, [n, 1, freq, time] -> [n, scaled(512, width), freq / 32, time / 32].

    Args:
        width: of the published channels.
        gated: a sigmoid gate, and for it twice as many filters, instead of the ReLU.
    """
    layers: list[nn.Module] = []
    n_in = 1
    for channels in CHANNELS:
        n_out = scaled(channels, width)
        for _ in range(2):
            convolution = nn.Conv2d(n_in, n_out * (2 if gated else 1), 3, padding=1)
            layers += [convolution, Gate() if gated else nn.ReLU(), nn.BatchNorm2d(n_out)]
            n_in = n_out
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class Tagger(Chunked):
    """The blocks, then what a subclass makes of them.

    Args:
        name: of the model, for messages.
        shape: of the features, [freq, time].
        chunk: frames per chunk.
        width: of the published channels.
        gated: see `blocks`.

    Attributes:
        n_features: channels behind the blocks.
    """

    front_end = "tagging_mel"

    def __init__(self, name: str, shape: tuple[int, ...], chunk: int, width: float, gated: bool = False):
        if len(shape) != 2 or shape[0] < LEAST:
            size = " x ".join(map(str, shape))
            raise ValueError(
                f"{name} needs features [freq, time] with {LEAST} bands or more, this front end gives {size}"
            )
        super().__init__(chunk, shape[1], LEAST)
        self.n_features = scaled(CHANNELS[-1], width)
        self.blocks = blocks(width, gated)

    def features(self, x: Tensor) -> Tensor:
        """Chunks [n, freq, time] -> [n, n_features, freq / 32, time / 32]."""
        return self.blocks(x.unsqueeze(1))
