"""Fixtures: real clips where the shared recordings are beside the checkout, tiny made-up ones where they are not."""

from __future__ import annotations

import csv
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from src.datasets.store import Clips, to_int16
from src.defenses.codec import MissingLibraryError
from src.registry import DEFENSES
from src.victims.stage import Defense

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


def built_defense(name: str, sample_rate: int = SAMPLE_RATE, **options: object) -> Defense:
    """A defense by its name; the test is skipped where the native library of a codec is missing."""
    try:
        return DEFENSES[name](sample_rate=sample_rate, **options)
    except MissingLibraryError as error:
        pytest.skip(str(error))


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


CONFIG = """[DATA]
source = folder
data_dir = clips
include_dirs = yes, no, up, down
n_test = 6
[DATA.folder]
source_dir = wavs
[MODEL]
names = resnet
[MODEL.resnet]
widths = 8, 16, 24
[FRONTEND.log_mel]
hop_length = 320
n_mels = 40
normalize = band_mean
[TRAINING]
epochs = 20
learning_rate = 0.01
batch_size = 16
[ATTACK]
names = fgsm, pgd
eps = 0.001, 20 dB
wavs = 2
checks = 4
[ATTACK.pgd]
steps = 5
[CERTIFY]
sigma = 0.01
n0 = 20
n = 100
attack_steps = 2
attack_n = 100
"""


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wavs and a config, prepared and trained by the scripts."""
    folder = tmp_path_factory.mktemp("work")
    samples, labels, ids = recordings(12)
    for clip, label, name in zip(samples, labels, ids, strict=True):
        path = folder / "wavs" / WORDS[label] / f"speaker{name.split('/')[1]}_nohash_0.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, clip, SAMPLE_RATE, subtype="PCM_16")
    (folder / "config.ini").write_text(CONFIG)
    for script in ("prepare_dataset.py", "train_model.py"):
        done = shell(folder, script)
        assert done.returncode == 0, done.stderr
    return folder


def shell(folder: Path, script: str, *args: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    """Run a script from its own process, in `folder`."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *args],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **kwargs,  # type: ignore[call-overload]
    )


def call(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str, *args: str) -> int:
    """Run a script inside this process (quick); its exit code."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [script, *args])
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study on made-up clips (tests/small_study.py), prepared and trained."""
    from tests import small_study as study

    folder = tmp_path_factory.mktemp("study")
    study.make(folder)
    return folder
