"""A whole study on clips that are made on the spot: prepared, trained and then evaluated, attacked and certified by the
scripts in seconds. Nothing in it depends on recordings, so that its numbers can be compared with stored ones."""

from __future__ import annotations

import csv
import os
import runpy
import sys
from pathlib import Path

import pytest
import soundfile

from src.datasets.store import to_int16
from src.output import figures
from tests.conftest import ROOT, SAMPLE_RATE, WORDS, spoken

TAKES = 8
CONFIG = """[DATA]
source = folder
data_dir = clips
include_dirs = yes, no, up, down
n_test = 4
[DATA.folder]
source_dir = wavs
validation = 0.25
test = 0.25
[MODEL]
names = cnn
[FRONTEND]
name = log_mel
[FRONTEND.log_mel]
hop_length = 320
n_mels = 44
[TRAINING]
method = gaussian
stage = waveform
epochs = 20
optimizer = sgd
learning_rate = 0.002
batch_size = 4
keep = last
[TRAINING.gaussian]
sigma = 0.01
[ATTACK]
names = fgsm, pgd
eps = 0.002, 20 dB
wavs = 1
checks = 0
[ATTACK.pgd]
steps = 4
[CERTIFY]
sigma = 0.05, 0.35
n0 = 20
n = 100
batch_size = 16
attack_clips = 2
attack_steps = 3
attack_n = 100
radii = 0.05, 0.2
baselines = quantize
"""


def make(folder: Path) -> None:
    """Write the clips and the config of the study, prepare and train."""
    for label, word in enumerate(WORDS):
        for take in range(TAKES):
            path = folder / "wavs" / word / f"speaker{take}_nohash_0.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, to_int16(spoken(label, take)), SAMPLE_RATE, subtype="PCM_16")
    (folder / "config.ini").write_text(CONFIG)
    for script in ("prepare_dataset.py", "train_model.py"):
        run(folder, script)


def run(folder: Path, script: str, *overrides: str, args: tuple[str, ...] = ()) -> None:
    """Run a script in this process, in `folder`, without its figures; anything but success fails the test.

    Args:
        overrides: SECTION.key=value.
        args: further command-line arguments.
    """
    settings = [part for override in overrides for part in ("--set", override)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [script, *settings, *args])
        patch.setenv("EARSHOT_THREADS", os.environ.get("EARSHOT_THREADS", "1"))
        patch.setattr("src.output.figures.save", lambda figure, *_, **__: figures.plt.close(figure))
        code: object = 0
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
    assert code == 0, f"{script} ended with exit code {code}"


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
