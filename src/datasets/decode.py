"""Decoding: a recording of any format, rate and channel count becomes one clip of 16-bit samples."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from src.datasets.source import Audio, Sound
from src.datasets.store import to_int16


class DamagedError(ValueError):
    """A recording that cannot be used; the message says why."""


def read(audio: Audio, part: tuple[int, int] | None = None) -> Sound:
    """Decode a file, its content, or a part (first frame, frames) of it.

    Raises:
        DamagedError: unreadable, truncated, empty, or with NaN or infinite samples.
    """
    if isinstance(audio, Sound):
        sound = audio
    else:
        try:
            _check_complete(audio)
            with soundfile.SoundFile(io.BytesIO(audio) if isinstance(audio, bytes) else audio) as file:
                if part:
                    file.seek(part[0])
                samples = file.read(part[1] if part else -1, dtype="float32", always_2d=True)
                if not part and len(samples) < file.frames:
                    raise DamagedError(f"truncated: {len(samples)} of {file.frames} samples")
                sound = Sound(samples, file.samplerate)
        except DamagedError:
            raise
        except (OSError, RuntimeError) as error:  # soundfile's errors are RuntimeErrors
            raise DamagedError(f"unreadable ({' '.join(str(error).split(':')[-1].split())})") from None
    if not sound.samples.size:
        raise DamagedError("empty (no samples)")
    if not np.isfinite(sound.samples).all():
        raise DamagedError("NaN or infinite samples")
    return sound


def _check_complete(audio: Path | bytes) -> None:
    """libsndfile reads a truncated wav without an error, so the length is compared with the one in the header."""
    if isinstance(audio, bytes):
        header, size = audio[:8], len(audio)
    else:
        with audio.open("rb") as file:
            header, size = file.read(8), audio.stat().st_size
    if not size:
        raise DamagedError("empty (no bytes)")
    expected = int.from_bytes(header[4:8], "little") + 8
    streamed = expected in (8, 0xFFFFFFFF + 8, 0x7FFFFFFF + 8)  # written to a pipe, length never filled in
    if header[:4] == b"RIFF" and not streamed and size < expected - 1:  # some writers count a missing pad byte
        raise DamagedError(f"truncated: {size} of {expected} bytes")


def loudest_start(x: np.ndarray, n: int) -> int:
    """Where the n consecutive samples with the most energy begin; the earliest such part on a tie.

    >>> loudest_start(np.array([0.0, 0, 1, 2, 0]), 2)
    2
    """
    energy = np.concatenate([[0.0], np.cumsum(np.square(x, dtype=np.float64))])
    return int(np.argmax(energy[n:] - energy[:-n]))


def loudest(x: np.ndarray, n: int) -> np.ndarray:
    """The n consecutive samples with the most energy.

    >>> loudest(np.array([0.0, 0, 1, 2, 0]), 2)
    array([1., 2.])
    """
    start = loudest_start(x, n)
    return x[start : start + n]


def to_clip(sound: Sound, sample_rate: int, n_samples: int) -> tuple[np.ndarray, int]:
    """(int16 [n_samples], samples before the padding): channels averaged, resampled by soxr, cropped to the loudest
    part or padded with zeros at the end. A mono 16-bit recording of this rate and length stays the same, bit by bit."""
    x = sound.samples[:, 0] if sound.samples.shape[1] == 1 else sound.samples.mean(1)
    if sound.sample_rate != sample_rate:
        x = soxr.resample(x, sound.sample_rate, sample_rate)
        if not len(x):
            raise DamagedError("empty at the new sample rate")
    x = loudest(x, n_samples) if len(x) > n_samples else x
    clip: np.ndarray[Any, np.dtype[np.int16]] = np.zeros(n_samples, np.int16)
    clip[: len(x)] = to_int16(x)
    return clip, len(x)
