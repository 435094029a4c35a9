"""The results of every script on a small study, compared with stored ones in tests/golden: text exactly, numbers to a
relative tolerance of 1e-3, because threads and CPUs differ in the last digits. Columns of times are left out.

EARSHOT_WRITE_GOLDEN=1 writes the files anew; read the difference before it is committed."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from src.output.results import cell
from src.victims import checkpoint
from tests import small_study
from tests.conftest import ROOT

GOLDEN = ROOT / "tests/golden"
WRITE = bool(os.environ.get("EARSHOT_WRITE_GOLDEN"))
TOLERANCE = 1e-3
LEFT_OUT = {"seconds", "time", "s/clip", "checkpoint"}
"""Columns that differ from run to run and from machine to machine: times, and the hash of the weights."""
Rows = Sequence[Mapping[str, Any]]


def differs(expected: str, actual: str) -> bool:
    """Whether two cells differ: numbers with a decimal point by more than the tolerance, anything else as text."""
    if expected == actual:
        return False
    try:
        numbers = float(expected), float(actual)
    except ValueError:
        return True
    if all(text.lstrip("-").isdigit() for text in (expected, actual)):  # labels, decisions, counts
        return True
    return not math.isclose(*numbers, rel_tol=TOLERANCE, abs_tol=1e-6)


def compare(name: str, rows: Rows) -> None:
    """Compare rows with tests/golden/NAME.csv, or write that file."""
    path = GOLDEN / f"{name}.csv"
    fields = [field for field in rows[0] if field not in LEFT_OUT]
    lines = [{field: cell(row[field]) for field in fields} for row in rows]
    if WRITE:
        path.parent.mkdir(exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fields, lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
        return
    assert path.is_file(), f"{path} is missing; EARSHOT_WRITE_GOLDEN=1 writes it"
    golden = small_study.rows(path)
    assert list(golden[0]) == fields
    assert len(golden) == len(lines)
    wrong = [
        f"line {i + 2}, {field}: {expected[field]} expected, is {line[field]}"
        for i, (expected, line) in enumerate(zip(golden, lines, strict=True))
        for field in fields
        if differs(expected[field], line[field])
    ]
    assert not wrong, "\n".join([f"{name}:", *wrong])


def prepared(folder: Path) -> dict[str, Rows]:
    facts = json.loads((folder / "clips/dataset.json").read_text())
    rows = [
        {"split": split, "class": name, "clips": count}
        for split, counts in facts["counts"].items()
        for name, count in counts.items()
    ]
    single = {key: facts[key] for key in ("source", "sample_rate", "seconds", "synthetic")}
    return {"prepare.counts": rows, "prepare.facts": [single | {"skipped": len(facts["skipped"])}]}


def trained(folder: Path) -> dict[str, Rows]:
    facts = checkpoint.read(folder / "data/models/cnn_gaussian.pt")["facts"]
    single = {key: facts[key] for key in ("method", "stage", "sigma", "best_epoch", "n_train", "validation_accuracy")}
    return {"train.history": facts["history"], "train.facts": [single]}


def evaluated(folder: Path) -> dict[str, Rows]:
    small_study.run(folder, "evaluate_model.py")
    results = folder / "data/results/evaluate"
    names = ("accuracy.test", "cnn_gaussian.test.per_class", "cnn_gaussian.test.confusion")
    return {f"evaluate.{name}": small_study.rows(results / f"{name}.csv") for name in names}


def attacked(folder: Path) -> dict[str, Rows]:
    small_study.run(folder, "attack.py")
    results = folder / "data/results/attack"
    tables = {f"attack.{name}": small_study.rows(results / f"{name}.csv") for name in ("rows", "summary", "security")}
    small_study.run(
        folder, "attack.py", "ATTACK.stage=log_mel", "ATTACK.names=fgsm", "ATTACK.eps=0.3", "RESULTS.results_dir=mel"
    )
    return {**tables, "attack.log_mel.rows": small_study.rows(folder / "mel/attack/rows.csv")}


def certified(folder: Path) -> dict[str, Rows]:
    small_study.run(folder, "certify.py")
    results = folder / "data/results/certify"
    names = ("0.05.rows", "0.35.rows", "attacks", "certified_accuracy", "summary", "attacked_accuracy")
    return {f"certify.{name}": small_study.rows(results / f"cnn_gaussian.waveform.{name}.csv") for name in names}


@pytest.mark.parametrize("results_of", [prepared, trained, evaluated, attacked, certified])
def test_golden(small_study: Path, results_of: Callable[[Path], dict[str, Rows]]) -> None:
    for name, rows in results_of(small_study).items():
        compare(name, rows)


@pytest.mark.parametrize(
    ("expected", "actual", "different"),
    [
        ("1.0005", "1", False), ("1.002", "1", True), ("3", "4", True), ("-1", "1", True), ("0.25", "0.25", False),
        ("nan", "nan", False), ("nan", "1", True), ("inf", "0.5", True), ("none", "0", True), ("0", "1e-7", False),
        ("yes/a.wav", "yes/b.wav", True),
    ],
)  # fmt: skip
def test_cells_differ(expected: str, actual: str, different: bool) -> None:
    assert differs(expected, actual) is different


def test_a_missing_or_shorter_file_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_golden.GOLDEN", tmp_path)
    monkeypatch.setattr("tests.test_golden.WRITE", False)
    rows = [{"id": "a", "x": 0.5, "time": 1.0}, {"id": "b", "x": 0.25, "time": 2.0}]
    with pytest.raises(AssertionError, match="is missing"):
        compare("rows", rows)
    monkeypatch.setattr("tests.test_golden.WRITE", True)
    compare("rows", rows)
    monkeypatch.setattr("tests.test_golden.WRITE", False)
    compare("rows", [row | {"time": 5.0, "x": row["x"] * 1.0002} for row in rows])
    for changed in (rows[:1], rows[::-1], [{"id": "a"}, {"id": "b"}], [row | {"x": 0.3} for row in rows]):
        with pytest.raises(AssertionError):
            compare("rows", changed)
