"""Densely connected network on raw audio for sound events: the blocks of Jeong and Lim (2018) in one dimension. Their
version for raw audio is not published; this design is ours."""

from __future__ import annotations

import librosa
import numpy as np
import torch
from torch import Tensor, nn

from src.models.chunks import Chunked
from src.models.dense_blocks import DenseNetwork
from src.models.width import scaled
from src.registry import MODELS, Natural, Positive

FILTERS, LENGTH, HOP = 64, 256, 32
"""Of the first layer: filters at width 1, their samples (8 ms at 32 kHz), samples between outputs (1 ms)."""
RATE = 32000
"""Sample rate, Hz, that the first filters are made for; others move them in proportion."""


def gabor_filters(count: int) -> Tensor:
    """Windowed tones at equal distances on the mel scale from 50 Hz to 15 kHz, alternating between sine and cosine,
    of unit norm, [count, LENGTH]."""
    t = (np.arange(LENGTH) - LENGTH / 2) / RATE
    frequency = librosa.mel_frequencies(count, fmin=50.0, fmax=15000.0)[:, None]
    tones = np.cos(2 * np.pi * frequency * t + np.pi / 2 * (np.arange(count) % 2)[:, None]) * np.hanning(LENGTH)
    return torch.from_numpy(tones / np.linalg.norm(tones, axis=1, keepdims=True)).float()


@MODELS.register("dense_wav")
class DenseWav(Chunked):
    """Densely connected blocks with squeeze and excitation on raw audio, in one dimension, and eight heads whose
    probabilities are averaged; its logits are the logarithms of the mean. The design is ours.

    Batch norm of the audio, 64 filters of 256 samples at every 32nd sample, which start as Gabor filters on the mel
    scale, and eight blocks as of dense_mel along time.

    Args:
        width: of the channels of dense_mel and of the 64 first filters; at least 8 and 16.
        chunk: samples of the chunks that a clip is cut into (64000 are 2 s at 32 kHz); the clip is predicted by the
            geometric mean of their probabilities. 0 for the whole clip at once.
    """

    front_end = "waveform"
    silence = 0.0

    def __init__(self, *, n_classes: int, shape: tuple[int, ...], width: Positive = 1.0, chunk: Natural = 64000):
        if len(shape) != 1:
            raise ValueError(f"dense_wav needs a waveform, this front end gives {' x '.join(map(str, shape))} values")
        super().__init__(chunk, shape[0], LENGTH)
        n_filters = max(16, scaled(FILTERS, width))
        self.audio = nn.BatchNorm1d(1)
        self.enter = nn.Conv2d(1, n_filters, (1, LENGTH), (1, HOP), (0, LENGTH // 2), bias=False)
        with torch.no_grad():
            self.enter.weight.copy_(gabor_filters(n_filters)[:, None, None])
        self.network = DenseNetwork(n_filters, (1, 3), width, n_classes)

    def chunk_logits(self, x: Tensor) -> Tensor:
        """Chunks [n, time] -> logits [n, n_classes]."""
        return self.network(self.enter(self.audio(x.unsqueeze(1)).unsqueeze(1)))
