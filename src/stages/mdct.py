"""Modified discrete cosine transform (Princen and Bradley 1987) with a sine window: an orthonormal basis of short
cosines, in which time-frequency tiles of a signal are orthogonal to each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from src.stages.stft import overlap_add


class Mdct:
    """The transform of signals of one length.

    Args:
        n_samples: of the signals.
        hop_length: samples between frames, and coefficients per frame; a frame spans two hops.
        like: device and dtype.

    >>> x = torch.randn(2, 100)
    >>> mdct = Mdct(100, 16, x)
    >>> mdct.analyze(x).shape, torch.allclose(mdct.synthesize(mdct.analyze(x)), x, atol=1e-5)
    (torch.Size([2, 8, 16]), True)
    """

    def __init__(self, n_samples: int, hop_length: int, like: Tensor):
        self.n_samples, self.hop_length = n_samples, hop_length
        self.n_frames = -(-n_samples // hop_length) + 1
        sample = torch.arange(2 * hop_length, dtype=torch.float64)[:, None] + 0.5
        frequency = torch.arange(hop_length, dtype=torch.float64) + 0.5
        window = torch.sin(math.pi / (2 * hop_length) * sample)
        cosines = torch.cos(math.pi / hop_length * (sample + hop_length / 2) * frequency)
        self.basis = (math.sqrt(2 / hop_length) * window * cosines).to(like)

    def analyze(self, x: Tensor) -> Tensor:
        """[batch, n_samples] -> [batch, n_frames, hop_length]."""
        padded = F.pad(x, (self.hop_length, self.n_frames * self.hop_length - self.n_samples))
        frames = padded.unfold(1, 2 * self.hop_length, self.hop_length)
        # One product per example, so that the result does not depend on the batch.
        return torch.bmm(frames, self.basis.expand(len(x), -1, -1))

    def synthesize(self, y: Tensor) -> Tensor:
        """The inverse: [batch, n_frames, hop_length] -> [batch, n_samples]."""
        frames = torch.bmm(y, self.basis.T.expand(len(y), -1, -1))
        return overlap_add(frames, self.hop_length)[:, self.hop_length : self.hop_length + self.n_samples]
