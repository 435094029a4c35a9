"""The writer of clip stores: a store appears complete or not at all, and only this module writes one."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from src.datasets.store import SPLITS, description
from src.files import write_atomically


def files_of(splits: Iterable[str]) -> set[str]:
    """The files of a store with these splits."""
    return {"dataset.json", *(f"{split}{ending}" for split in splits for ending in (".npy", ".json"))}


def header(n: int, n_samples: int) -> bytes:
    """The .npy header of int16 [n, n_samples]; numpy keeps its size whatever n is."""
    text = io.BytesIO()
    np.lib.format.write_array_header_1_0(text, {"descr": "<i2", "fortran_order": False, "shape": (n, n_samples)})
    return text.getvalue()


class SplitWriter:
    """One split, written row by row in any order with plain writes: on a full disk these raise OSError, where a memory
    map would kill the process."""

    def __init__(self, folder: Path, split: str, n_samples: int):
        self.folder, self.split, self.n_samples = folder, split, n_samples
        self.offset, self.row_bytes = len(header(0, n_samples)), 2 * n_samples
        self.entries: dict[int, tuple[str, int, int, str]] = {}
        self.tags: dict[int, Mapping[str, str]] = {}
        self.file = (folder / f"{split}.npy").open("w+b")

    def put(
        self,
        row: int,
        samples: np.ndarray,
        *,
        clip: str,
        label: int,
        length: int,
        speaker: str,
        tags: Mapping[str, str],
    ) -> None:
        """Write int16 [n_samples] at `row`."""
        self.file.seek(self.offset + row * self.row_bytes)
        self.file.write(samples.astype("<i2").tobytes())
        self.entries[row], self.tags[row] = (clip, label, length, speaker), tags

    def finish(self) -> None:
        """Close the gaps left by skipped recordings, write header and index, and sync them to disk."""
        rows = sorted(self.entries)
        for new, old in enumerate(rows):
            if new != old:
                self.file.seek(self.offset + old * self.row_bytes)
                content = self.file.read(self.row_bytes)
                self.file.seek(self.offset + new * self.row_bytes)
                self.file.write(content)
        self.file.truncate(self.offset + len(rows) * self.row_bytes)
        self.file.seek(0)
        self.file.write(header(len(rows), self.n_samples))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        columns = zip(*(self.entries[row] for row in rows), strict=True) if rows else ([],) * 4
        index: dict[str, Any] = dict(zip(("ids", "labels", "lengths", "speakers"), map(list, columns), strict=True))
        names = sorted({name for tags in self.tags.values() for name in tags})
        if names:
            index["tags"] = {name: [self.tags[row].get(name, "") for row in rows] for name in names}
        write_json(self.folder / f"{self.split}.json", index)

    def abandon(self) -> None:
        """Close after a failure; buffered bytes that do not fit on the disk are dropped."""
        with contextlib.suppress(OSError):
            self.file.close()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, lambda file: file.write(json.dumps(content).encode()))


def check_replaceable(data_dir: Path) -> None:
    """Refuse a folder that holds anything but a store, because replacing it would delete those files.

    Raises:
        ValueError: the folder holds other files.
        NotADirectoryError: data_dir is a file.
    """
    if data_dir.is_file():
        raise NotADirectoryError(f"{data_dir}: data_dir is a file")
    names = sorted(path.name for path in data_dir.iterdir()) if data_dir.is_dir() else []
    known = files_of(SPLITS)
    if "dataset.json" in names:
        with contextlib.suppress(ValueError):  # a damaged description
            known |= files_of(description(data_dir)["splits"])
    foreign = [name for name in names if name not in known]
    if foreign:
        raise ValueError(f"{data_dir}: holds other files ({', '.join(foreign[:3])} ...); choose a new data_dir")


@contextlib.contextmanager
def replacing(data_dir: Path) -> Iterator[Path]:
    """A temporary folder beside `data_dir` that replaces it at the end. If anything fails before that, the old store
    stays; the next run removes what a killed run left behind.

    Raises:
        ValueError: another run is preparing it, or `data_dir` holds other files.
    """
    data_dir = data_dir.resolve()
    check_replaceable(data_dir)
    temporary = data_dir.with_name(f".{data_dir.name}.preparing")
    old = data_dir.with_name(f".{data_dir.name}.old")
    temporary.mkdir(parents=True, exist_ok=True)
    lock = os.open(temporary, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_ino != temporary.stat().st_ino:
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError):
            raise ValueError(f"{data_dir}: another run is preparing it at this moment") from None
        for path in temporary.iterdir():
            path.unlink()
        try:
            yield temporary
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)
        if data_dir.exists():
            os.replace(data_dir, old)
        os.replace(temporary, data_dir)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        os.close(lock)
