"""Clips at the sample rate and the length of another model, as prepare_dataset.py makes them from recordings: resampled
by soxr, cropped or padded, and 16 bits again."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import soxr
import torch

from src.datasets.decode import loudest_start
from src.datasets.store import Clips, to_int16


def resample(clips: Clips, sample_rate: int, n_samples: int | None = None, original: Clips | None = None) -> Clips:
    """The same clips at another sample rate and length, with their true lengths. Where they are too long, the loudest
    part is taken, and shorter ones are padded with zeros.

    Args:
        sample_rate: Hz.
        n_samples: of the new clips; None for as many as the old ones last.
        original: the clips that these were made from, in the same order; a crop then takes the loudest part of these,
            so that both are the same part of the recording.
    """
    ratio = sample_rate / clips.sample_rate
    n = math.ceil(clips.n_samples * ratio) if n_samples is None else n_samples
    if (sample_rate, n) == (clips.sample_rate, clips.n_samples):
        return clips
    samples, lengths = np.zeros((len(clips), n), np.int16), torch.zeros(len(clips), dtype=torch.long)
    for i, length in enumerate(clips.lengths.tolist()):
        x = _at(clips, i, sample_rate)
        start = loudest_start(x if original is None else _at(original, i, sample_rate), n) if len(x) > n else 0
        part = x[start : start + n]
        samples[i, : len(part)] = to_int16(part)
        lengths[i] = max(1, min(math.ceil(length * ratio) - start, len(part)))
    return replace(clips, samples=samples, lengths=lengths, sample_rate=sample_rate)


def _at(clips: Clips, i: int, sample_rate: int) -> np.ndarray:
    """The waveform [time] of one clip at this sample rate (Hz)."""
    x: np.ndarray = clips.waveforms([i])[0].numpy()
    return x if clips.sample_rate == sample_rate else soxr.resample(x, clips.sample_rate, sample_rate)
