"""Normalization of features: by a constant, by statistics of the training set, or by those of the clip itself."""

from __future__ import annotations

import torch
from torch import Tensor

from src.victims.stage import Stage

AXES = {"clip": (-2, -1), "band": (-1,), "frame": (-2,)}


class Scale(Stage):
    """Division by a constant.

    Args:
        divisor: positive.
        bounds: of the input.
    """

    def __init__(self, divisor: float, bounds: tuple[float, float], name: str = "scale"):
        super().__init__(name)
        self.divisor = divisor
        self.bounds = (bounds[0] / divisor, bounds[1] / divisor)
        self.lipschitz = 1 / divisor

    def forward(self, x: Tensor) -> Tensor:
        """[batch, ...] -> the same shape."""
        return x / self.divisor

    def inverse(self, y: Tensor, x: Tensor) -> Tensor:
        return y * self.divisor


class DatasetNormalize(Stage):
    """(x - mean) / std with statistics of the training set, one scalar pair or one per band; kept in the checkpoint.

    Args:
        n_bands: 1 for scalars, else the number of rows of the features.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, n_bands: int = 1, name: str = "normalize"):
        super().__init__(name)
        self.register_buffer("mean", torch.zeros(n_bands, 1))
        self.register_buffer("std", torch.ones(n_bands, 1))

    @property
    def lipschitz(self) -> float:  # type: ignore[override]
        return float(1 / self.std.min())

    def fit(self, x: Tensor) -> None:
        """Set the statistics from features [batch, bands, frames]."""
        bands = x.transpose(0, 1).flatten(1)
        if len(self.mean) == 1:
            bands = bands.reshape(1, -1)
        self.mean.copy_(bands.mean(1, keepdim=True))
        self.std.copy_(bands.std(1, keepdim=True).clamp_min(1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, bands, frames] -> the same shape."""
        return (x - self.mean) / self.std

    def inverse(self, y: Tensor, x: Tensor) -> Tensor:
        return y * self.std + self.mean


class AudioNormalize(DatasetNormalize):
    """The same for a waveform: one mean and one standard deviation of all samples of the training set."""

    fills_padding = True

    def __init__(self, name: str = "audio"):
        super().__init__(name=name)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time] -> the same shape."""
        return super().forward(x)


class ClipNormalize(Stage):
    """Subtract the clip's own mean and, with `scale`, divide by its own standard deviation.

    Args:
        axis: clip (one pair), band (one per row, cepstral mean normalisation) or frame (one per column).
        scale: divide by the standard deviation too.
    """

    uses_mask = True

    def __init__(self, axis: str = "clip", scale: bool = True, name: str = "normalize"):
        super().__init__(name)
        if axis not in AXES:
            raise ValueError(f"unknown axis '{axis}' (choices: {', '.join(AXES)})")
        self.dims, self.scale = AXES[axis], scale
        # Subtracting a mean is a projection; division by a standard deviation has no useful global constant.
        self.lipschitz = None if scale else 1.0

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation) over the axis, with its dimensions kept; 1 for the deviation without `scale`."""
        mean = self._average(x)
        if not self.scale:
            return mean, torch.ones_like(mean)
        return mean, (self._average((x - mean).square()) + 1e-12).sqrt()

    def _average(self, x: Tensor) -> Tensor:
        """The mean over the axis, of the valid frames alone."""
        if self.valid is None or -1 not in self.dims:
            return x.mean(self.dims, keepdim=True)
        valid = self.valid.expand(-1, x.shape[1], -1) if len(self.dims) == 2 else self.valid
        return (x * valid).sum(self.dims, keepdim=True) / valid.sum(self.dims, keepdim=True).clamp_min(1)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, bands, frames] -> the same shape."""
        mean, std = self.statistics(x)
        return (x - mean) / std

    def inverse(self, y: Tensor, x: Tensor) -> Tensor:
        mean, std = self.statistics(x)
        return y * std + mean
