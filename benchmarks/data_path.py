"""Data path: clips per second from disk to model input, and over a training epoch, against a loader that reads every
file and computes its mel spectrogram with librosa each time the clip is used.

Both sides use one thread, the same clips, the same front-end parameters and a warm disk cache, and their features are
compared first. Ours is the Source of the training loop: it computes the features of a split once and keeps them in
memory, or computes them in every epoch where the waveform is augmented."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import librosa
import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from benchmarks.timing import seconds
from src.datasets.prepare import DataSettings, prepare
from src.datasets.store import load
from src.registry import FRONTENDS
from src.training.batches import Source
from src.victims.chain import Chain

SAMPLE_RATE, BATCH, EPOCHS = 16000, 64, 10
Batches = Iterator[tuple[Tensor, Tensor]]


def librosa_log_mel(path: str) -> np.ndarray:
    x, _ = librosa.load(path, sr=SAMPLE_RATE)
    x = librosa.util.fix_length(x, size=SAMPLE_RATE)
    mel = librosa.feature.melspectrogram(
        y=x, sr=SAMPLE_RATE, n_fft=512, win_length=480, hop_length=160, n_mels=40, pad_mode="constant"
    )
    return np.log(mel + 1e-6)


def librosa_linear_mel(path: str) -> np.ndarray:
    x, _ = librosa.load(path, sr=SAMPLE_RATE)
    x = librosa.util.fix_length(x, size=2 * SAMPLE_RATE)
    return (
        librosa.feature.melspectrogram(y=x, sr=SAMPLE_RATE, n_fft=2048, hop_length=100, n_mels=128, pad_mode="constant")
        / 3569
    )


PEERS: dict[str, Callable[[str], np.ndarray]] = {"log_mel": librosa_log_mel, "linear_mel": librosa_linear_mel}


def small_net(classes: int) -> nn.Module:
    """A keyword spotter of about 10 k parameters, so that convolutions do not dominate an epoch."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=4, padding=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, classes),
    )


def recordings(data_dir: Path | None, folder: Path, per_class: int) -> None:
    """Link `per_class` wavs of each class below `folder`; without recordings, write noise instead."""
    if data_dir and (data_dir / "speech_commands").is_dir():
        data_dir = data_dir / "speech_commands"
    rng = np.random.default_rng(0)
    words = sorted(p for p in data_dir.iterdir() if p.is_dir() and p.name.isalpha()) if data_dir else []
    for word in words or [Path("a"), Path("b")]:
        (folder / word.name).mkdir(parents=True)
        for i in range(per_class):
            file = folder / word.name / f"{i}.wav"
            if words:
                file.symlink_to(sorted(word.glob("*.wav"))[i].resolve())
            else:
                soundfile.write(file, 0.1 * rng.standard_normal(SAMPLE_RATE), SAMPLE_RATE)


def train_on(batches: Callable[[], Batches], classes: int) -> Callable[[], None]:
    """One epoch of a small net over (features, labels) batches."""
    torch.manual_seed(0)
    model = small_net(classes)
    optimizer = torch.optim.Adam(model.parameters())

    def epoch() -> None:
        for x, y in batches():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[:, None]), y).backward()
            optimizer.step()

    return epoch


def measure(front_end: str, files: Path, store: Path, repeats: int) -> list[dict[str, Any]]:
    """The rows of one front end; the time of several epochs is a sum over the first and the later ones, timed apart."""
    clips = load(store, "train")
    stages = FRONTENDS[front_end](sample_rate=SAMPLE_RATE, n_samples=clips.n_samples)
    head = Chain([stage.frozen() for stage in stages]).eval()  # as training takes it
    peer, paths = PEERS[front_end], [str(files / name) for name in clips.ids]
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(0)).split(BATCH)

    def source(changing: bool) -> Source:
        return Source(load(store, "train"), head, torch.device("cpu"), changing)

    def ours(source: Source) -> Batches:
        return ((source(index)[0], clips.labels[index]) for index in order)

    def by_librosa() -> Batches:
        for index in order:
            yield torch.from_numpy(np.stack([peer(paths[i]) for i in index.tolist()])).float(), clips.labels[index]

    kept, computing = source(changing=False), source(changing=True)
    assert kept.cached is not None
    assert computing.cached is None
    kept_z, computed_z, librosa_z = (next(side)[0] for side in (ours(kept), ours(computing), by_librosa()))
    torch.testing.assert_close(kept_z, computed_z, rtol=1e-5, atol=1e-6)
    error = float((kept_z - librosa_z).abs().max() / librosa_z.abs().max())
    assert error < 1e-3, f"the two sides compute different features ({error:g})"

    n, classes = len(clips), len(clips.classes)
    theirs = n / seconds(lambda: list(by_librosa()), repeats)
    their_epoch = seconds(train_on(by_librosa, classes), repeats)
    sides: dict[str, Callable[[], Batches]] = {
        "first epoch (computed)": lambda: ours(source(changing=False)),
        "later epochs (kept)": lambda: ours(kept),
        "every epoch where nothing can be kept (computed)": lambda: ours(computing),
    }
    rows, epochs, speeds = [], [], []
    for name, side in sides.items():
        speed = n / seconds(lambda side=side: list(side()), repeats)  # type: ignore[misc]
        rows.append(row(f"disk to {front_end}, {name}", speed, theirs, "clips/s", speed / theirs))
        speeds.append(speed)
        epochs.append(seconds(train_on(side, classes), repeats))
    mean = EPOCHS / (1 / speeds[0] + (EPOCHS - 1) / speeds[1])
    rows.append(
        row(
            f"disk to {front_end}, mean of {EPOCHS} epochs, kept after the first",
            mean,
            theirs,
            "clips/s",
            mean / theirs,
        )
    )
    first, later, every = epochs
    for name, taken in (("kept after the first", first + (EPOCHS - 1) * later), ("nothing kept", EPOCHS * every)):
        task = f"training of {EPOCHS} epochs, {front_end}, {name}"
        rows.append(row(task, taken, EPOCHS * their_epoch, f"s per {n} clips", EPOCHS * their_epoch / taken))
    return rows


def row(task: str, ours: float, peer: float, unit: str, ratio: float) -> dict[str, Any]:
    return {"benchmark": "data path", "what": task, "ours": ours, "peer": peer, "unit": unit, "ratio": ratio}


def run(data_dir: Path | None, repeats: int, per_class: int = 13) -> list[dict[str, Any]]:
    """The rows of this benchmark.

    Args:
        data_dir: folder of recordings, one per class (or one that holds `speech_commands`); None generates noise.
        repeats: measurements of each number; the median is reported.
        per_class: recordings per class.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            files, store = Path(scratch, "files"), Path(scratch, "store")
            recordings(data_dir, files, per_class)
            prepare(DataSettings(source="folder", data_dir=store), {"source_dir": files})
            return [r for front_end in PEERS for r in measure(front_end, files, store, repeats)]
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    recorded = Path(__file__).resolve().parents[1] / "data/raw/speech_commands"
    parser.add_argument("--data-dir", type=Path, default=recorded if recorded.is_dir() else None)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for line in run(args.data_dir, args.repeats):
        print(f"{line['what']:70} {line['ours']:10.4g} {line['peer']:10.4g} {line['unit']:20} {line['ratio']:8.1f}x")
