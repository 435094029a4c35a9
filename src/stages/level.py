"""Level normalisation of the waveform: every clip to the same RMS, inside the model, so that no budget is inflated."""

from __future__ import annotations

from torch import Tensor

from src.victims.victim import Stage


class Level(Stage):
    """Scale each clip to a root mean square of `rms`; digital silence stays silent.

    Args:
        rms: of the output.
    """

    def __init__(self, rms: float):
        super().__init__("level")
        self.rms = rms

    def gain(self, x: Tensor) -> Tensor:
        return self.rms / (x.square().mean(-1, keepdim=True) + 1e-8).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time] -> [batch, time]."""
        return x * self.gain(x)

    def inverse(self, y: Tensor, x: Tensor) -> Tensor:
        """Undo the gain that x got."""
        return y / self.gain(x)
