"""Background noise for training: a folder of recordings, cut into pieces as long as a clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from src.datasets.decode import DamagedError, read
from src.datasets.source import Sound
from src.datasets.store import FULL_SCALE, to_int16


def load_noise(folder: Path, sample_rate: int, n_samples: int) -> Tensor:
    """float32 [pieces, n_samples] of every recording in `folder`, in the order of their names.

    A recording shorter than a piece is repeated; the end of a longer one that fills no piece is
    dropped; silent pieces are left out.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no readable recording with sound in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"noise_dir: {folder}: no such folder")
    extensions = {f".{name.lower()}" for name in soundfile.available_formats()}
    pieces: list[np.ndarray] = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in extensions:
            continue
        try:
            sound: Sound = read(path)
        except DamagedError as error:
            raise ValueError(f"{path}: {error}") from None
        x = sound.samples.mean(1)
        if sound.sample_rate != sample_rate:
            x = soxr.resample(x, sound.sample_rate, sample_rate)
        if len(x) < n_samples:
            x = np.tile(x, -(-n_samples // len(x)))
        count = len(x) // n_samples
        pieces += [piece for piece in x[: count * n_samples].reshape(count, n_samples) if piece.any()]
    if not pieces:
        raise ValueError(f"noise_dir: {folder}: no recording with sound in it")
    # Rounded to 16 bits, so that the same recordings give the same numbers whatever the resampler's rounding errors.
    return torch.from_numpy(to_int16(np.stack(pieces)).astype(np.float32) / FULL_SCALE)
