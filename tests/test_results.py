"""Rows resume and are never lost; files appear whole or not at all; wavs are rounded and clipped, never wrapped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
