"""Fixtures: real clips where the shared recordings are beside the checkout, tiny made-up ones where they are not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from src.datasets.store import Clips, to_int16

torch.set_num_threads(int(os.environ.get("EARSHOT_THREADS", "1")))
ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("EARSHOT_SHARED", ROOT.parent / "shared")) / "data"
WORDS = ("yes", "no", "up", "down")
SAMPLE_RATE = 16000


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the shared recordings; the test is skipped where they are missing."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the recordings at {SHARED}")
    return SHARED


def spoken(word: int, take: int) -> np.ndarray:
    """A second of something that differs by class: a chord that glides, with noise and silence around it."""
    rng = np.random.default_rng(1000 * word + take)
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    pitch = (200 + 180 * word) * (1 + 0.1 * rng.standard_normal()) * (1 + 0.2 * (word % 2) * t)
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    envelope = np.exp(-(((t - 0.5 + 0.05 * rng.standard_normal()) / 0.15) ** 2))
    tone = sum(np.sin(k * phase) / k for k in (1, 2, 3, 5))
    return 0.2 * envelope * tone + 0.003 * rng.standard_normal(SAMPLE_RATE)


def recordings(takes: int) -> tuple[np.ndarray, list[int], list[str]]:
    """`takes` seconds of each of WORDS: real keywords, or the made-up ones."""
    samples, labels, ids = [], [], []
    for label, word in enumerate(WORDS):
        files = sorted((SHARED / "speech_commands" / word).glob("*.wav"))[:takes]
        for take in range(takes):
            x = soundfile.read(files[take])[0] if files else spoken(label, take)
            samples.append(to_int16(np.pad(x, (0, SAMPLE_RATE))[:SAMPLE_RATE]))
            labels.append(label)
            ids.append(f"{word}/{take}")
    return np.stack(samples), labels, ids


def make_clips(takes: int) -> Clips:
    samples, labels, ids = recordings(takes)
    lengths = torch.full((len(ids),), SAMPLE_RATE)
    return Clips(samples, torch.tensor(labels), lengths, tuple(ids), WORDS, SAMPLE_RATE, False, "test")


@pytest.fixture(scope="session")
def clips() -> Clips:
    """16 clips of 4 words, 1 s at 16 kHz."""
    return make_clips(4)


@pytest.fixture(scope="session")
def many_clips() -> Clips:
    """96 clips of 4 words, 1 s at 16 kHz: enough to train a tiny net on."""
    return make_clips(24)


@pytest.fixture(scope="session")
def trained_net(many_clips: Clips) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """(frozen log-mel net trained in seconds, 16 waveforms it classifies rightly, their labels)."""
    from src.stages.front_ends import log_mel
    from src.victims.victim import Victim

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv1d(40, 24, 5, 2), torch.nn.BatchNorm1d(24), torch.nn.ReLU(),
            torch.nn.Conv1d(24, 24, 5, 2), torch.nn.BatchNorm1d(24), torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten(), torch.nn.Linear(24, len(WORDS)),
        )  # fmt: skip
        stages = log_mel(sample_rate=SAMPLE_RATE, n_samples=SAMPLE_RATE, normalize="clip_mean")
        victim = Victim(stages, net, classes=WORDS, sample_rate=SAMPLE_RATE, n_samples=SAMPLE_RATE)
        x, y = many_clips.waveforms(), many_clips.labels
        with torch.no_grad():
            features = x
            for stage in stages:
                features = stage(features)
        optimizer = torch.optim.Adam(net.parameters(), 5e-3)
        for _ in range(30):
            for index in torch.randperm(len(y)).split(32):
                loss = torch.nn.functional.cross_entropy(net(features[index]), y[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    frozen = victim.frozen()
    with torch.no_grad():
        right = (frozen(x).argmax(1) == y).nonzero().flatten()
    chosen = right[:: max(1, len(right) // 16)][:16]
    return frozen, x[chosen], y[chosen]
