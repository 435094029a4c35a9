"""Deltas: the slopes of features over time, by linear regression over a few frames (Furui 1986)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from src.victims.stage import Stage


class Deltas(Stage):
    """The features, their deltas and the deltas of those, one below the other.

    The delta at frame t is sum_n n (c[t + n] - c[t - n]) / (2 sum_n n^2) over n = 1 .. window; beyond its ends the clip
    holds its first and last frame.

    Args:
        window: frames on either side.
        order: 1 for deltas alone, 2 for deltas of deltas as well.
    """

    uses_mask = True

    def __init__(self, window: int = 2, order: int = 2, name: str = "delta"):
        super().__init__(name)
        self.window, self.order = window, order
        # |D|_2^2 <= |D|_1 |D|_inf of the linear map D to the deltas; at its ends a clip is shorter than the matrix.
        matrix = self._slope(torch.eye(6 * window + 1, dtype=torch.float64)).abs()
        slope = math.sqrt(float(matrix.sum(0).max() * matrix.sum(1).max()))
        self.lipschitz = math.sqrt(sum(slope ** (2 * k) for k in range(order + 1)))

    def _slope(self, x: Tensor) -> Tensor:
        """The deltas of x [..., frames]."""
        frames, window = x.shape[-1], self.window
        index = torch.arange(-window, frames + window, device=x.device).clamp(0, frames - 1)
        around = x[..., index].unfold(-1, 2 * window + 1, 1)
        n = torch.arange(-window, window + 1, dtype=x.dtype, device=x.device)
        return around @ (n / n.square().sum())

    def _held(self, x: Tensor) -> Tensor:
        """x with the first and the last valid frame in the place of the padding."""
        if self.valid is None:
            return x
        valid = self.valid.flatten(1, -2).any(1)
        frames = torch.arange(x.shape[-1], device=x.device)
        first = valid.int().argmax(1, keepdim=True)
        last = (valid * frames).amax(1, keepdim=True)
        index = frames.expand(len(valid), -1).clamp(first, last)
        return x.gather(-1, index[:, None].expand(*x.shape[:-1], -1))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, n, frames] -> [batch, (1 + order) n, frames]."""
        parts = [x]
        for _ in range(self.order):
            parts.append(self._slope(self._held(parts[-1])))
        return torch.cat(parts, 1)

    def inverse(self, y: Tensor, x: Tensor) -> Tensor:
        """The features of y without its deltas, which follow from them."""
        return y[:, : x.shape[1]]

    def mask(self, valid: Tensor) -> Tensor:
        """A frame is reached from `order` windows away."""
        reach = self.window * self.order
        rows = valid.flatten(1, -2).any(1, keepdim=True)
        return F.max_pool1d(rows.float(), 2 * reach + 1, 1, reach) > 0

    def valid_output(self, valid: Tensor) -> Tensor:
        return valid.flatten(1, -2).any(1, keepdim=True)
