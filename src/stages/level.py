"""Level normalization of the waveform inside the model: every clip is scaled to the same RMS, and a perturbation budget
still refers to the recorded level."""

from __future__ import annotations

from torch import Tensor

from src.victims.stage import Stage


class Level(Stage):
    """Scale each clip to a root mean square of `rms`; digital silence stays silent.

    Args:
        rms: root mean square of the output.
    """

    uses_mask = True

    def __init__(self, rms: float):
        super().__init__("level")
        self.rms = rms

    def gain(self, x: Tensor) -> Tensor:
        """The factor of each clip: [batch, time] -> [batch, 1]."""
        if self.valid is None:
            power = x.square().mean(-1, keepdim=True)
        else:
            power = (x * self.valid).square().sum(-1, keepdim=True) / self.valid.sum(-1, keepdim=True).clamp_min(1)
        return self.rms / (power + 1e-8).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time] -> [batch, time]."""
        return x * self.gain(x)

    def inverse(self, y: Tensor, x: Tensor) -> Tensor:
        """Divide y by the gain of x."""
        return y / self.gain(x)
