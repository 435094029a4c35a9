"""Each script end to end, as a person runs it: from a folder of wavs to rows, tables, figures and wavs; then every
mistake a person makes: one clear line, exit code 2, nothing lost."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from src import config
from src.attacks import fitted
from tests.conftest import ROOT, WORDS, call, rows


def test_second_run_does_the_work_once(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in (workspace / "clips").iterdir()}
    model = (workspace / "data/models/resnet.pt").read_bytes()
    assert call(workspace, monkeypatch, "prepare_dataset.py") == 0
    assert call(workspace, monkeypatch, "train_model.py") == 0
    assert {path: path.stat().st_mtime_ns for path in (workspace / "clips").iterdir()} == before
    assert (workspace / "data/models/resnet.pt").read_bytes() == model


def test_evaluate(workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(workspace, monkeypatch, "evaluate_model.py", "--split", "validation") == 0
    assert "accuracy" in capsys.readouterr().out
    assert list((workspace / "data").rglob("*confusion*.png"))
    assert list((workspace / "data").rglob("*confusion*.csv"))


def test_attack_writes_rows_tables_figures_and_wavs(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(workspace, monkeypatch, "attack.py") == 0
    results = workspace / "data/results/attack"
    attack_rows = rows(results / "rows.csv")
    assert {row["attack"] for row in attack_rows} >= {"fgsm", "pgd", "random_signs"}
    assert {row["eps"] for row in attack_rows} == {"0.001", "20 dB"}
    for row in attack_rows:
        assert row["feasible"] == "1"
        if row["eps"] == "0.001":
            assert float(row["linf"]) <= 0.001 * 1.0001
    wavs = list(results.rglob("*.wav"))
    assert wavs
    for wav in wavs:
        assert soundfile.info(wav).subtype == "PCM_16"
    assert list((workspace / "data").rglob("*.png"))
    assert (results / "manifest.json").exists()


def test_attack_at_mel_goes_back_to_audio(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [
        "ATTACK.stage=log_mel",
        "ATTACK.eps=0.5",
        "ATTACK.names=fgsm",
        "RESULTS.results_dir=mel",
        "DATA.n_test=2",
    ]
    args = [part for override in overrides for part in ("--set", override)]
    assert call(workspace, monkeypatch, "attack.py", *args) == 0
    attack_rows = rows(workspace / "mel/attack/rows.csv")
    assert all(np.isfinite(float(row["snr"])) for row in attack_rows if row["correct"] == "1")
    assert {"success_stage", "success_audio", "success_wav"} <= set(attack_rows[0])


def test_attack_resumes_to_the_same_rows(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ["--set", "RESULTS.results_dir=again", "--set", "ATTACK.eps=0.001"]
    assert call(workspace, monkeypatch, "attack.py", *args) == 0
    path = workspace / "again/attack/rows.csv"
    uninterrupted = rows(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 2]) + "cut sho")
    assert call(workspace, monkeypatch, "attack.py", *args) == 0
    timeless = lambda table: sorted(str({k: v for k, v in row.items() if k != "seconds"}) for row in table)  # noqa: E731
    assert timeless(rows(path)) == timeless(uninterrupted)
    manifest = json.loads((path.parent / "manifest.json").read_text())
    check = "src.evaluation.sanity_checks.check"
    monkeypatch.setattr(check, lambda *args, **kwargs: pytest.fail("the same search again"))
    assert call(workspace, monkeypatch, "attack.py", *args) == 0
    assert repr(json.loads((path.parent / "manifest.json").read_text())["signs"]) == repr(manifest["signs"])
    searching: list[object] = []
    monkeypatch.setattr(check, lambda *args, **kwargs: searching.append(args) or [])
    assert call(workspace, monkeypatch, "attack.py", *args, "--set", "ATTACK.checks=1") == 0
    assert len(searching) == 2  # fgsm and pgd, on other clips than before


def test_certify(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(workspace, monkeypatch, "certify.py", "--set", "DATA.n_test=3") == 0
    (path,) = (workspace / "data/results/certify").rglob("*rows*.csv")
    certified_rows = rows(path)
    assert len(certified_rows) == 3
    for row in certified_rows:
        assert float(row["radius"]) <= 0.01 * 4
        assert row["predict"] != "-1" or row["correct"] == "0"
    assert list((workspace / "data/results/certify").rglob("*.md"))


def test_interrupt_leaves_rows_and_says_so(workspace: Path) -> None:
    overrides = ["RESULTS.results_dir=stopped", "ATTACK.pgd.steps=3000", "ATTACK.pgd.early_exit=no"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "attack.py"), *(part for override in overrides for part in ("--set", override))],
        cwd=workspace, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
        # A shell that runs the tests in the background makes them, and what they start, ignore Ctrl-C.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    path = workspace / "stopped/attack/rows.csv"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not (path.exists() and len(path.read_text().splitlines()) > 3):
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert len(rows(path)) >= 3


MISTAKES = [
    ("prepare_dataset.py", ["--set", "DATA.folder.source_dir=nowhere", "--set", "DATA.data_dir=x"], "nowhere"),
    ("prepare_dataset.py", ["--set", "DATA.include_dirs=yes,npo", "--set", "DATA.data_dir=x"], "npo"),
    ("prepare_dataset.py", ["--config", "none.ini"], "no such config file"),
    ("train_model.py", ["--set", "TRAINING.epochs=-1"], "epochs"),
    ("train_model.py", ["--set", "TRAINING.epoch=1"], "did you mean 'epochs'"),
    ("train_model.py", ["--set", "DATA.data_dir=nowhere"], "prepare_dataset.py"),
    ("train_model.py", ["--set", "MODEL.names=cmn"], "did you mean 'cnn'"),
    ("evaluate_model.py", ["--model", "nothing"], "trained models there: resnet"),
    ("evaluate_model.py", ["--split", "tset"], "test"),
    ("attack.py", ["--set", "ATTACK.stage=meld"], "no representation 'meld'"),
    ("attack.py", ["--set", "ATTACK.eps=-1"], "budget"),
    ("attack.py", ["--set", "RESULTS.model_dir=nowhere"], "nowhere"),
    ("certify.py", ["--set", "CERTIFY.stage=meld"], "no representation 'meld'"),
    ("certify.py", ["--set", "CERTIFY.alpha=0"], "alpha"),
]


@pytest.mark.parametrize(("script", "args", "message"), MISTAKES, ids=[" ".join([m[0], *m[1]]) for m in MISTAKES])
def test_mistakes(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
    args: list[str],
    message: str,
) -> None:
    files = sorted(str(path) for path in workspace.rglob("*"))
    assert call(workspace, monkeypatch, script, *args) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert sorted(str(path) for path in workspace.rglob("*")) == files, "a refused run leaves nothing behind"


def test_foreign_checkpoint(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = workspace / "foreign"
    folder.mkdir(exist_ok=True)
    (folder / "other.pt").write_bytes(b"not a checkpoint")
    assert call(workspace, monkeypatch, "evaluate_model.py", "--set", "RESULTS.model_dir=foreign") == 2
    assert "not an Earshot checkpoint" in capsys.readouterr().err


SMALL = {
    "prepare_dataset.py": ["DATA.data_dir=read/clips"],
    "train_model.py": ["RESULTS.model_dir=read", "TRAINING.epochs=1", "DEFENSE.names=quantize"],
    "evaluate_model.py": ["DEFENSE.names=quantize"],
    "attack.py": [
        "DEFENSE.names=quantize",
        "ATTACK.stage=log_mel",
        "ATTACK.eps=0.5",
        "ATTACK.names=fgsm",
        "DATA.n_test=2",
    ],
    "certify.py": ["DATA.n_test=1", "DEFENSE.names=quantize"],
}
"""Settings under which a script reads all its sections in a short run."""


@pytest.mark.parametrize("script", SMALL)
def test_help_lists_the_sections_that_are_read(
    script: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(ROOT, monkeypatch, script, "--help") == 0
    text = capsys.readouterr().out
    assert "--set SECTION.key=value" in text
    sections_read: set[str] = set()
    components_read: set[str] = set()

    class Recorded(config.Config):
        def __getattribute__(self, name: str) -> Any:
            if name.upper() in config.SECTIONS:
                sections_read.add(name.upper())
            return super().__getattribute__(name)

        def component(self, section: str, name: str) -> dict[str, Any]:
            sections_read.add(section)
            components_read.add(section)
            return super().component(section, name)

    load = config.load
    monkeypatch.setattr(config, "load", lambda *args: Recorded(**vars(load(*args))))
    args = [part for override in [*SMALL[script], "RESULTS.results_dir=read"] for part in ("--set", override)]
    assert call(workspace, monkeypatch, script, *args) == 0
    assert set(re.findall(r"^\[(\w+)\]$", text, re.M)) == sections_read
    assert components_read == set(re.findall(r"sub-sections \[(\w+)\.<name>\]", text))


@pytest.mark.parametrize("threads", ["abc", "0", "-1", ""])
def test_a_wrong_number_of_threads_is_one_line(
    threads: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EARSHOT_THREADS", threads)
    assert call(workspace, monkeypatch, "evaluate_model.py") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: EARSHOT_THREADS = ")


def test_a_fitted_attack_learns_from_training_clips(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ["ATTACK.names=universal", "ATTACK.eps=0.01", "ATTACK.fit_clips=9", "ATTACK.universal.steps=6"]
    keys += ["RESULTS.results_dir=universal", "ATTACK.speech=no", "ATTACK.wavs=0"]
    args = [argument for key in keys for argument in ("--set", key)]
    assert call(workspace, monkeypatch, "attack.py", *args) == 0
    assert "DO NOT TRUST" not in capsys.readouterr().out
    results = workspace / "universal/attack"
    (path,) = results.rglob("fitted/*/universal_0.01_*.pt")
    entry = fitted.load(path)
    assert entry.tensors["delta"].shape == (1, 16000)
    assert entry.weights == hashlib.sha256((workspace / f"data/models/{entry.victim}.pt").read_bytes()).hexdigest()
    written = [row for row in rows(results / "rows.csv") if row["attack"] == "universal"]
    assert len(written) == 6
    assert all(row["feasible"] == "1" and row["backwards"] == "0" for row in written)
    before = path.stat().st_mtime_ns, (results / "rows.csv").read_bytes()
    assert call(workspace, monkeypatch, "attack.py", *args) == 0
    assert before == (path.stat().st_mtime_ns, (results / "rows.csv").read_bytes())
    # Another set of clips to fit to: the rows no longer hold.
    assert call(workspace, monkeypatch, "attack.py", *args, "--set", "ATTACK.fit_clips=10") == 0
    assert len(list(results.rglob("fitted/*/*.pt"))) == 2


def test_data_with_other_class_order_or_fewer_classes(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of a clip do not depend on which other classes the prepared data have, nor on their order."""
    by_id: dict[str, dict[str, dict[str, dict[str, str]]]] = {}
    keys = ["DATA.n_test=100", "ATTACK.names=pgd", "ATTACK.eps=0.001", "ATTACK.checks=0", "ATTACK.wavs=0"]
    keys += ["ATTACK.targeted=yes", "ATTACK.speech=no", "CERTIFY.attack_clips=0", "CERTIFY.batch_size=64"]
    common = [argument for key in keys for argument in ("--set", key)]
    for name, words in (("same", WORDS), ("shuffled", ("down", "yes", "up", "no")), ("subset", ("up", "yes"))):
        data = ["--set", f"DATA.include_dirs={','.join(words)}", "--set", f"DATA.data_dir=clips.{name}"]
        data += ["--set", f"RESULTS.results_dir=results.{name}", "--set", f"RESULTS.plot_dir=plots.{name}"]
        for script in ("prepare_dataset.py", "evaluate_model.py", "attack.py", "certify.py"):
            assert call(workspace, monkeypatch, script, *data, *common) == 0
        folder = workspace / f"results.{name}"
        by_id[name] = {
            "attack": {row["id"] + row["attack"]: row for row in rows(folder / "attack" / "rows.csv")},
            "certify": {row["id"]: row for row in rows(next((folder / "certify").glob("*.waveform.0.01.rows.csv")))},
            "class": {row["class"]: row for row in rows(next((folder / "evaluate").glob("*.per_class.csv")))},
            "accuracy": {"": rows(folder / "evaluate" / "accuracy.test.csv")[0]},
        }
    same, subset = by_id["same"], by_id["subset"]
    assert len(same["attack"]) == 2 * len(same["certify"]) > 0
    assert {row["target"] for row in subset["attack"].values()} - {"0", "2"}  # targets of the model, not of the data
    exact = ("label", "target", "prediction", "correct", "prediction_wav", "success_wav", "predict", "radius", "recall")
    for other in ("shuffled", "subset"):
        for table, of in by_id[other].items():
            if other == "shuffled":
                assert of.keys() == same[table].keys()
            for key, row in of.items():
                if other == "shuffled" or table in ("attack", "certify"):
                    kept = [column for column in row if column in exact or (table == "accuracy" and column != "model")]
                    assert kept
                    assert {c: row[c] for c in kept} == {c: same[table][key][c] for c in kept}
    for word, row in subset["class"].items():
        assert (row["support"] == "0") == (word not in ("up", "yes"))
        if row["support"] != "0":
            assert row["recall"] == same["class"][word]["recall"]


def test_data_with_a_class_that_the_model_does_not_know(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / "more").mkdir()
    for word, source in (("yes", "yes"), ("cat", "no")):
        (workspace / "more" / word).symlink_to(workspace / "wavs" / source)
    data = ["--set", "DATA.include_dirs=yes,cat", "--set", "DATA.data_dir=clips.more"]
    assert call(workspace, monkeypatch, "prepare_dataset.py", *data, "--set", "DATA.folder.source_dir=more") == 0
    for script in ("evaluate_model.py", "attack.py", "certify.py"):
        assert call(workspace, monkeypatch, script, *data) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert "does not know the class 'cat' (its classes: yes, no, up, down)" in message
