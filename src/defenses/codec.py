"""What all codecs share: 16-bit clips in memory, a pool of threads over the batch, native libraries by their Debian
package, and the fitted STFT gain as a gradient."""

from __future__ import annotations

import ctypes
import functools
import os
from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.stages.stft_mask import stft_mask_substitute
from src.victims.stage import Defense

Samples = NDArray[np.int16]
Decoded = NDArray[np.float32]


class MissingLibraryError(ValueError):
    """A codec's native library is not installed; the message names its Debian package."""


class Codec(Defense):
    """Encode and decode every clip. A codec starts anew with each clip, so the output repeats bit for bit, alone, in a
    batch and with any number of threads."""

    bounds = (-1.0, 1.0)
    differentiable = False

    @abstractmethod
    def round_trip(self, samples: Samples) -> Decoded:
        """16-bit samples [time] -> decoded ones in [-1, 1], their delay removed; missing or extra ones at the end are
        filled or cut by `forward`. It runs in several threads at once."""

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time] -> [batch, time]."""
        if x.numel() == 0:
            return x
        out = np.zeros(x.shape, np.float32)
        for row, decoded in zip(out, in_threads(self.round_trip, to_samples(x)), strict=True):
            decoded = decoded[: len(row)]
            row[: len(decoded)] = decoded
        return torch.from_numpy(out).clamp_(-1, 1).to(x)

    def substitute(self, x: Tensor, value: Tensor) -> Tensor:
        """The STFT gain fitted to what the codec did; the identity is a poor gradient for speech codecs."""
        return stft_mask_substitute(x, value)


def to_samples(x: Tensor) -> Samples:
    """[batch, time] in [-1, 1] -> 16-bit samples; +1 becomes 32767, as 32768 would wrap around."""
    return (x.detach() * 32768).round().clamp(-32768, 32767).to(torch.int16).cpu().contiguous().numpy()


def frames_of(samples: Samples, length: int, delay: int) -> Samples:
    """[time] -> [n, length], with zeros for the delay and to fill the last frame."""
    n = -(-(len(samples) + delay) // length)
    return np.pad(samples, (0, n * length - len(samples))).reshape(n, length)


def to_float(frames: Samples, delay: int) -> Decoded:
    """Decoded 16-bit frames [n, length] -> samples [time] without the delay."""
    return frames.reshape(-1)[delay:].astype(np.float32) / np.float32(32768)


def in_threads(work: Callable[[Samples], Decoded], clips: Sequence[Samples] | Samples) -> list[Decoded]:
    """`work` on each clip, in order. The codecs release the interpreter's lock while they compute."""
    if len(clips) < 2 or processors() < 2:
        return [work(clip) for clip in clips]
    return list(_pool(os.getpid()).map(work, clips))


def processors() -> int:
    """CPU cores of this process, shared with the other processes that torchrun started on the machine."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, available // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """One pool per process, as threads do not survive a fork."""
    return ThreadPoolExecutor(processors(), thread_name_prefix="codec")


@functools.cache
def library(file: str, package: str, functions: tuple[tuple[str, Any, tuple[Any, ...] | None], ...]) -> ctypes.CDLL:
    """A native library with the types of its functions declared.

    Args:
        file: its name for the linker, such as libopus.so.0.
        package: the Debian package that holds it.
        functions: (name, type of the result, types of the arguments) each; None for a variable number of arguments.

    Raises:
        MissingLibraryError: not installed.
    """
    try:
        loaded = ctypes.CDLL(file)
    except OSError:
        raise MissingLibraryError(
            f"{file} is not installed: it is in the Debian package {package} (apt-get install {package})"
        ) from None
    for name, result, arguments in functions:
        function = getattr(loaded, name)
        function.restype = result
        if arguments is not None:
            function.argtypes = arguments
    return loaded


def check_choice(codec: str, what: str, value: int, choices: Collection[int]) -> None:
    """Refuse a setting that the codec does not have.

    Raises:
        ValueError: lists the choices.
    """
    if value not in choices:
        raise ValueError(f"{codec} has no {what} {value} (choices: {', '.join(map(str, sorted(choices)))})")


def check_range(codec: str, what: str, value: int, low: int, high: int) -> None:
    """Refuse a setting outside of [low, high].

    Raises:
        ValueError: says the range.
    """
    if not low <= value <= high:
        raise ValueError(f"{codec} has no {what} {value} (choices: {low} to {high})")
