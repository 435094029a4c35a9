"""The only writer of results: rows, tables, manifests and wavs. Every file appears whole or not at all; rows are
appended one by one and a second run goes on after the last of them."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from src.files import fingerprint, write_atomically


@dataclass(frozen=True, kw_only=True)
class ResultsSettings:
    """Where results go.

    Args:
        model_dir: folder of the trained models.
        plot_dir: folder of the plots.
        results_dir: folder of rows, tables, manifests and wavs.
    """

    model_dir: Path = Path("data/models")
    plot_dir: Path = Path("data/plots")
    results_dir: Path = Path("data/results")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; a failed write leaves what was there before."""
    write_atomically(path, lambda file: file.write(content))


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_wav(path: Path, x: np.ndarray, sample_rate: int) -> None:
    """A mono 16-bit wav of float samples [time] in [-1, 1]: rounded and clipped, never wrapped."""
    buffer = io.BytesIO()
    samples = np.clip(np.rint(np.asarray(x, dtype=np.float64) * 32768), -32768, 32767).astype(np.int16)
    soundfile.write(buffer, samples, sample_rate, format="WAV", subtype="PCM_16")
    write_bytes(path, buffer.getvalue())


def read_wav(path: Path) -> np.ndarray:
    """float32 [time] in [-1, 1), as a listener's program reads it."""
    return soundfile.read(path, dtype="float32")[0]


def cell(value: Any) -> str:
    """A value as CSV and Markdown print it: floats with six significant digits."""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


class RowFile:
    """A CSV that grows row by row and is resumed by a run with the same settings.

    Rows of other settings are never mixed in and never lost: such a file is moved aside under its own fingerprint.
    Several processes each append to a part of their own; the main file takes the parts in when it is next opened.

    Args:
        path: of the CSV; `path.stem + ".run.json"` beside it remembers the settings.
        fields: the columns.
        key: the columns that identify a row.
        settings: everything the rows depend on (plain values).
        part: number of the process that writes a part; None for the main file, which must have been opened first.
    """

    def __init__(
        self,
        path: Path,
        fields: Sequence[str],
        key: Sequence[str],
        settings: Mapping[str, Any],
        part: int | None = None,
    ):
        self.path, self.fields, self.key = path, list(fields), list(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        mark = path.with_name(f"{path.stem}.run.json")
        if part is None:
            self._move_aside(mark, {"fingerprint": _run_fingerprint(fields, settings), "settings": settings})
        self.rows = self._whole_rows(path)
        self.done = {self._key(row) for row in self.rows}
        if part is None:
            for leftover in self._parts():
                self.rows += [row for row in self._whole_rows(leftover) if self._key(row) not in self.done]
                self.done = {self._key(row) for row in self.rows}
            self._rewrite()
        else:
            self.path = path.with_name(f"{path.stem}.part{part}.csv")
            write_text(self.path, self._text([]))
        self.file = self.path.open("a", newline="")
        self.writer = csv.DictWriter(self.file, self.fields, lineterminator="\n")

    def _move_aside(self, mark: Path, current: Mapping[str, Any]) -> None:
        """Rename the files of a run with other settings, then note ours."""
        earlier = json.loads(mark.read_text())["fingerprint"] if mark.exists() else "unknown"
        if earlier != current["fingerprint"]:
            for path in [self.path, *self._parts()]:
                if path.exists():
                    path.rename(path.with_name(path.name.replace(self.path.stem, f"{self.path.stem}.{earlier}", 1)))
            write_text(mark, json.dumps(current, indent=1, default=str))

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}.part*.csv"))

    def _key(self, row: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(row[k] for k in self.key)

    def _whole_rows(self, path: Path) -> list[dict[str, str]]:
        """The rows of a file without one that a kill cut short."""
        text = path.read_text() if path.exists() else ""
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        return [row for row in reader if None not in row and None not in row.values()]

    def _text(self, rows: Iterable[Mapping[str, str]]) -> str:
        lines = io.StringIO()
        writer = csv.DictWriter(lines, self.fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return lines.getvalue()

    def _rewrite(self) -> None:
        """The main file anew, whole; only then the parts that are in it go."""
        write_text(self.path, self._text(self.rows))
        for leftover in self._parts():
            leftover.unlink()

    def __contains__(self, key: Sequence[Any]) -> bool:
        return tuple(map(cell, key)) in self.done

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row and flush it to the disk."""
        texts = {field: cell(row[field]) for field in self.fields}
        self.writer.writerow(texts)
        self.file.flush()
        self.rows.append(texts)
        self.done.add(self._key(texts))

    def sort(self, order: Iterable[Sequence[Any]]) -> None:
        """Put the rows into the order of these keys, so that the file does not depend on who wrote what when."""
        rank = {tuple(map(cell, key)): position for position, key in enumerate(order)}
        self.rows.sort(key=lambda row: rank.get(self._key(row), len(rank)))
        self.file.close()
        self._rewrite()
        self.file = self.path.open("a", newline="")
        self.writer = csv.DictWriter(self.file, self.fields, lineterminator="\n")

    def close(self) -> None:
        self.file.close()


def _run_fingerprint(fields: Sequence[str], settings: Mapping[str, Any]) -> str:
    return fingerprint({**settings, "fields": list(fields)})


def holds_rows_of(path: Path, fields: Sequence[str], settings: Mapping[str, Any]) -> bool:
    """Whether there is a file of rows of this run: a RowFile with these arguments would go on with it."""
    mark = path.with_name(f"{path.stem}.run.json")
    there = path.is_file() and mark.is_file()
    return there and json.loads(mark.read_text())["fingerprint"] == _run_fingerprint(fields, settings)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of rows with the same keys."""
    fields = list(rows[0])
    lines = [fields, ["---"] * len(fields), *([cell(row[field]) for field in fields] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], title: str, notes: Iterable[str] = ()) -> None:
    """A table twice: `path` as CSV and, beside it, as Markdown with a title and notes."""
    lines = io.StringIO()
    writer = csv.DictWriter(lines, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)
    write_text(path, lines.getvalue())
    extra = "".join(f"\n{note}\n" for note in notes)
    write_text(path.with_suffix(".md"), f"# {title}\n\n{markdown(rows)}{extra}")


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a table in CSV; none where there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_manifest(path: Path, facts: Mapping[str, Any]) -> None:
    """manifest.json: the facts of a run plus command, commit, versions and machine."""
    root = Path(__file__).resolve().parents[2]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
    ).stdout.strip()
    packages = ("torch", "torchaudio", "numpy", "scipy", "librosa", "soundfile")
    environment = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit or "unknown",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
    }
    write_text(path, json.dumps({**environment, **facts}, indent=1, default=str) + "\n")
