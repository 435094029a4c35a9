"""The embedded speech: repeats exactly, keeps test voices apart, says that it is synthetic."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from src.datasets.prepare import DataSettings, prepare
from src.datasets.store import SPLITS, load
from src.datasets.synthetic import scene, speak, split_voices
from src.registry import DATASETS

SMALL = {"train": 3, "validation": 2, "test": 2}


def make(folder: Path, words: Sequence[str] = ("yes", "no"), seed: int = 0, workers: int = 2) -> dict[str, np.ndarray]:
    prepare(DataSettings(data_dir=folder, include_dirs=tuple(words), seed=seed), SMALL, workers=workers)
    return {split: np.array(load(folder, split).samples) for split in SPLITS}


def test_repeats_exactly_and_says_that_it_is_synthetic(tmp_path: Path) -> None:
    first, again = make(tmp_path / "1"), make(tmp_path / "2", workers=1)
    other_seed = make(tmp_path / "3", seed=1)
    for split in SPLITS:
        assert np.array_equal(first[split], again[split])
        assert not np.array_equal(first[split], other_seed[split])
    clips = load(tmp_path / "1", "train")
    assert clips.synthetic
    assert len(clips) == 6
    assert clips.n_samples == 16000
    level = 20 * np.log10(np.sqrt(np.square(clips.waveforms().numpy()).mean(1)))
    assert ((level > -34) & (level < -11)).all()


def test_no_voice_is_in_two_splits() -> None:
    voices = split_voices(0)
    assert not set(voices["train"]) & set(voices["test"])
    assert not set(voices["train"]) & set(voices["validation"])
    assert not set(voices["validation"]) & set(voices["test"])
    assert min(map(len, voices.values())) > 10


def test_a_word_that_cannot_be_spoken(tmp_path: Path) -> None:
    for word in ("_silence_", "42", "<audio src='x'/>"):
        with pytest.raises(ValueError, match="use letters only"):
            make(tmp_path / "x", (word,))
    assert not (tmp_path / "x").exists()


def test_a_scene_is_as_noisy_as_asked() -> None:
    """The quietest 10 ms of a scene are its noise: 40 dB more of SNR take 40 dB off it, relative to the loudest."""
    speech = np.sin(np.arange(2000) * 0.3).astype(np.float32)

    def floor(snr: float) -> float:
        x = scene(speech, 16000, 16000, (snr, snr), np.random.default_rng(3))
        assert x.dtype == np.float32
        assert np.abs(x).max() <= 1
        power = np.square(x.reshape(100, 160)).mean(1)
        return float(10 * np.log10(power.min() / power.max()))

    assert floor(0.0) - floor(40.0) == pytest.approx(40, abs=12)


def test_snr_keys_are_checked() -> None:
    program = {"include": ("yes",), "default": (), "sample_rate": 16000, "seconds": 1.0, "seed": 0}
    with pytest.raises(ValueError, match="snr_low"):
        DATASETS["synthetic"](**program, snr_low=3.0, snr_high=1.0)


def test_speech_does_not_depend_on_the_time_of_day(tmp_path: Path) -> None:
    """Left alone the engine seeds its random numbers with the second it starts in."""
    rng_voices = [f"en-us+{voice}" for voice in sorted(split_voices(0)["train"])[:12]]
    utterances = [{"text": "yes", "voice": voice, "rate": 160, "pitch": 50, "range": 50} for voice in rng_voices]
    first = list(speak(utterances, 16000))
    time.sleep(1.1)
    assert all(np.array_equal(a, b) for a, b in zip(first, speak(utterances, 16000), strict=True))
