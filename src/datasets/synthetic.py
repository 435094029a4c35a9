"""Synthetic speech, the default data: keywords spoken by espeak-ng (pip: espeakng-loader) in many voices, each in a
seeded room with seeded noise and level. No download; good for trying things out, not for claims about real speech."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from scipy.signal import fftconvolve

from src.datasets.source import Audio, Corpus, Recording, Sound
from src.datasets.store import SPLITS
from src.files import fingerprint
from src.random_streams import derive_seed
from src.registry import DATASETS, Count

VERSION = 2
"""Part of the stamp: increase it when the same settings give other samples."""
ACCENTS = ("en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc")
VOICE_SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}


@DATASETS.register("synthetic")
def synthetic(
    *,
    include: tuple[str, ...],
    default: tuple[str, ...],
    sample_rate: int,
    seconds: float,
    seed: int,
    train: Count = 90,
    validation: Count = 15,
    test: Count = 25,
    snr_low: float = 8.0,
    snr_high: float = 30.0,
) -> Corpus:
    """Synthetic speech: any words in include_dirs, spoken by espeak-ng; no voice is in two splits.

    Args:
        train: clips per word to train on.
        validation: clips per word to validate on.
        test: clips per word to test on.
        snr_low: lowest ratio of speech to noise, dB.
        snr_high: highest ratio of speech to noise, dB.
    """
    for word in include:
        if not re.fullmatch(r"[A-Za-z][A-Za-z' -]*", word):
            raise ValueError(f"'{word}' cannot be spoken by the synthetic source: use letters only")
    if len(set(include)) != len(include):
        raise ValueError(f"include_dirs names a class twice: {', '.join(include)}")
    if snr_low > snr_high:
        raise ValueError(f"snr_low = {snr_low:g} is above snr_high = {snr_high:g}")
    voices = split_voices(seed)
    counts = dict(zip(SPLITS, (train, validation, test), strict=True))
    recordings = tuple(
        Recording(f"{split}/{word}/{i}", word, split, _voice(voices[split], seed, f"{split}/{word}/{i}"))
        for word in include
        for split in SPLITS
        for i in range(counts[split])
    )

    def audio(wanted: Sequence[Recording]) -> Iterator[tuple[int, Audio]]:
        utterances = [_utterance(recording, seed) for recording in wanted]
        for i, speech in enumerate(speak(utterances, sample_rate)):
            rng = np.random.default_rng(derive_seed(seed, wanted[i].id, "scene"))
            x = scene(speech, round(seconds * sample_rate), sample_rate, (snr_low, snr_high), rng)
            yield i, Sound(x[:, None], sample_rate)

    stamp = fingerprint(VERSION, seed, snr_low, snr_high, *(recording.id for recording in recordings))
    return Corpus(stamp, include, recordings, audio, synthetic=True)


def split_voices(seed: int) -> dict[str, list[str]]:
    """The engine's voice variants, seeded into disjoint sets per split."""
    import espeakng_loader

    variants = sorted(path.name for path in Path(espeakng_loader.get_data_path(), "voices", "!v").iterdir())
    variants.sort(key=lambda name: derive_seed(seed, name, "voice"))
    first = round(VOICE_SHARES["train"] * len(variants))
    second = first + round(VOICE_SHARES["validation"] * len(variants))
    return {"train": variants[:first], "validation": variants[first:second], "test": variants[second:]}


def _voice(variants: Sequence[str], seed: int, clip: str) -> str:
    return variants[derive_seed(seed, clip, "variant") % len(variants)]


def _utterance(recording: Recording, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(derive_seed(seed, recording.id, "utterance"))
    return {
        "text": recording.label,
        "voice": f"{ACCENTS[rng.integers(len(ACCENTS))]}+{recording.speaker}",
        "rate": int(rng.integers(120, 240)),
        "pitch": int(rng.integers(10, 90)),
        "range": int(rng.integers(20, 90)),
    }


def speak(utterances: Sequence[dict[str, Any]], sample_rate: int) -> Iterator[np.ndarray]:
    """float32 [time] of each utterance, without leading and trailing silence, spoken in this order by a new process.

    Raises:
        OSError: the engine does not start or stops early.
    """
    with tempfile.TemporaryFile() as requests, tempfile.TemporaryFile() as errors:
        requests.write("".join(json.dumps(utterance) + "\n" for utterance in utterances).encode())
        requests.seek(0)
        command = [sys.executable, str(Path(__file__).with_name("espeak.py"))]
        with subprocess.Popen(command, stdin=requests, stdout=subprocess.PIPE, stderr=errors) as process:
            assert process.stdout

            def receive(n: int) -> bytes:
                content = process.stdout.read(n)  # type: ignore[union-attr]
                if len(content) < n:
                    errors.seek(0)
                    lines = errors.read().decode(errors="replace").strip().splitlines() or ["stopped unexpectedly"]
                    raise OSError(f"espeak-ng (pip package espeakng-loader): {lines[-1]}")
                return content

            try:
                (rate,) = struct.unpack("<i", receive(4))
                for utterance in utterances:
                    (n,) = struct.unpack("<i", receive(4))
                    if n <= 0:
                        raise OSError(f"espeak-ng does not speak '{utterance['text']}' as {utterance['voice']}")
                    x = np.frombuffer(receive(2 * n), "<i2").astype(np.float32) / 32768
                    loud = np.flatnonzero(np.abs(x) > 0.01 * np.abs(x).max())
                    yield soxr.resample(x[loud[0] : loud[-1] + 1], rate, sample_rate)
            finally:
                process.kill()


def scene(
    speech: np.ndarray, n_samples: int, sample_rate: int, snr: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """Speech at a random place in n_samples, in a room (noise that decays by 60 dB in 0.1 to 0.7 s), with colored noise
    and at a level of -32 to -12 dB. float32 [n_samples]."""
    decay = rng.uniform(0.1, 0.7)
    t = np.arange(int(decay * sample_rate)) / sample_rate
    room = rng.standard_normal(len(t)) * 10 ** (-3 * t / decay)
    room *= 10 ** (-rng.uniform(3, 20) / 20) / np.sqrt(np.square(room).sum())
    room[0] += 1
    x = np.zeros(n_samples)
    speech = speech[:n_samples]
    start = rng.integers(0, n_samples - len(speech) + 1)
    wet = fftconvolve(speech, room)[: n_samples - start]
    x[start : start + len(wet)] = wet
    # Colored noise: a power law of the frequency, from white to brown.
    spectrum = np.fft.rfft(rng.standard_normal(n_samples))
    spectrum *= np.maximum(1, np.arange(len(spectrum))) ** -rng.uniform(0, 1)
    noise = np.fft.irfft(spectrum, n_samples)
    speech_power = np.square(x[start : start + len(speech)]).mean()
    x += noise * np.sqrt(speech_power / np.square(noise).mean() / 10 ** (rng.uniform(*snr) / 10))
    x *= 10 ** (rng.uniform(-32, -12) / 20) / np.sqrt(np.square(x).mean())
    peak = np.abs(x).max()
    return (x * min(1, 0.99 / peak)).astype(np.float32)
