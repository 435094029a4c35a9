"""Rows resume and are never lost; files appear whole or not at all; wavs are rounded and clipped, never wrapped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.commands import shared_rows
from src.distributed import Team
from src.output import results

FIELDS = ("id", "eps", "ok")


def rows(folder: Path, **settings: object) -> results.RowFile:
    return results.RowFile(folder / "rows.csv", FIELDS, ("id", "eps"), settings)


def test_rows_resume_after_a_kill(tmp_path: Path) -> None:
    first = rows(tmp_path, seed=0)
    first.write({"id": "a", "eps": 0.1, "ok": True})
    first.write({"id": "b", "eps": 0.1, "ok": False})
    first.close()
    text = (tmp_path / "rows.csv").read_text()
    (tmp_path / "rows.csv").write_text(text[:-3])  # killed inside the last row
    second = rows(tmp_path, seed=0)
    assert ("a", 0.1) in second
    assert ("b", 0.1) not in second
    second.write({"id": "b", "eps": 0.1, "ok": False})
    second.close()
    assert (tmp_path / "rows.csv").read_text() == text


def test_rows_of_other_settings_are_kept_aside(tmp_path: Path) -> None:
    first = rows(tmp_path, seed=0)
    first.write({"id": "a", "eps": 0.1, "ok": True})
    first.close()
    second = rows(tmp_path, seed=1)
    second.close()
    assert not second.rows
    aside = list(tmp_path.glob("rows.*.csv"))
    assert len(aside) == 1
    assert "a,0.1,1" in aside[0].read_text()


def test_parts_of_several_processes_become_one_file(tmp_path: Path) -> None:
    keys = [(name, 0.1) for name in "abcd"]
    single = rows(tmp_path / "single")
    for name, eps in keys:
        single.write({"id": name, "eps": eps, "ok": True})
    single.close()
    rows(tmp_path).close()
    for part in (0, 1):
        part_of_rows = results.RowFile(tmp_path / "rows.csv", FIELDS, ("id", "eps"), {}, part=part)
        for name, eps in keys[part::2]:
            part_of_rows.write({"id": name, "eps": eps, "ok": True})
        part_of_rows.close()
    merged = rows(tmp_path)
    assert all(key in merged for key in keys)
    merged.sort(keys)
    merged.close()
    assert (tmp_path / "rows.csv").read_text() == (tmp_path / "single" / "rows.csv").read_text()
    assert not list(tmp_path.glob("*.part*"))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.csv"
    results.write_text(path, "old")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        results.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_wav_of_stored_samples_is_exact(tmp_path: Path) -> None:
    x = np.array([-32768, -1, 0, 1, 32767], np.int16)
    results.write_wav(tmp_path / "x.wav", x / 32768, 8000)
    assert (results.read_wav(tmp_path / "x.wav") * 32768 == x).all()


@given(st.floats(-3, 3))
def test_wav_rounds_and_clips(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    path = tmp_path_factory.getbasetemp() / "clip.wav"
    results.write_wav(path, np.array([value]), 8000)
    assert abs(results.read_wav(path)[0] - np.clip(value, -1, 32767 / 32768)) <= 0.5 / 32768 + 1e-7


def test_table_and_manifest(tmp_path: Path) -> None:
    results.write_table(tmp_path / "t.csv", [{"model": "cnn", "accuracy": 0.123456789}], "Accuracy", ["synthetic"])
    assert (tmp_path / "t.csv").read_text() == "model,accuracy\ncnn,0.123457\n"
    assert "| cnn | 0.123457 |" in (tmp_path / "t.md").read_text()
    results.write_manifest(tmp_path / "manifest.json", {"seed": 3})
    facts = json.loads((tmp_path / "manifest.json").read_text())
    assert facts["seed"] == 3
    assert facts["versions"]["torch"]


@pytest.mark.parametrize("name", ["rows.csv", "part.csv"])
def test_parts_of_other_settings_are_kept_aside_too(tmp_path: Path, name: str) -> None:
    """Whatever the file is called, the rows of an interrupted run stay together under its fingerprint."""
    path, keys = tmp_path / name, ("id", "eps")
    whole = results.RowFile(path, FIELDS, keys, {"seed": 0})
    whole.write({"id": "a", "eps": 0.1, "ok": True})
    whole.close()
    part = results.RowFile(path, FIELDS, keys, {"seed": 0}, part=1)
    part.write({"id": "b", "eps": 0.1, "ok": True})
    part.close()
    settings_of = path.with_name(f"{path.stem}.run.json")
    fingerprint = json.loads(settings_of.read_text())["fingerprint"]
    other = results.RowFile(path, FIELDS, keys, {"seed": 1})
    other.close()
    assert not other.rows
    aside = {p.name: p.read_text() for p in tmp_path.iterdir() if fingerprint in p.name}
    assert set(aside) == {f"{path.stem}.{fingerprint}.csv", f"{path.stem}.{fingerprint}.part1.csv"}
    assert "a,0.1,1" in aside[f"{path.stem}.{fingerprint}.csv"]
    assert "b,0.1,1" in aside[f"{path.stem}.{fingerprint}.part1.csv"]


@pytest.mark.parametrize(
    ("rank", "size", "file"), [(0, 1, "rows.csv"), (0, 2, "rows.part0.csv"), (1, 2, "rows.part1.csv")]
)
def test_every_process_of_several_writes_a_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, size: int, file: str
) -> None:
    """A process alone writes the file itself; the first of several takes in what the others wrote."""
    monkeypatch.setattr(Team, "wait", lambda self: None)
    opening = (tmp_path / "rows.csv", FIELDS, ("id", "eps"), {"seed": 0})
    results.RowFile(*opening).close()
    written: dict[str, str] = {}

    def compute(rows: results.RowFile) -> list[tuple[str, float]]:
        rows.write({"id": "a", "eps": 0.1, "ok": True})
        written.update({p.name: p.read_text() for p in tmp_path.glob("*.csv") if "a,0.1,1" in p.read_text()})
        return [("a", 0.1)]

    collected = shared_rows.collect(Team(rank, size), opening, compute)
    assert list(written) == [file]
    assert collected == ([{"id": "a", "eps": "0.1", "ok": "1"}] if rank == 0 else [])
