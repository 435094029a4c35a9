"""Files appear whole or not at all; fingerprints tell contents apart."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from src.files import fingerprint, sha256_of, write_atomically


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new folder" / "file.txt"
    write_atomically(path, lambda file: file.write(b"old"))

    def half(file: BinaryIO) -> None:
        file.write(b"half of the new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, half)

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    for call in ("os.fsync", "os.replace"):
        with monkeypatch.context() as patched:
            patched.setattr(call, full)
            with pytest.raises(OSError, match="no space"):
                write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"


def test_the_content_is_on_the_disk_before_the_file_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args))[1])
    write_atomically(tmp_path / "file", lambda file: file.write(b"x"))
    assert calls == ["fsync", "replace"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_file_modes_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", lambda file: file.write(b"x"))
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_fingerprints_tell_contents_apart() -> None:
    x = np.arange(10_000, dtype=np.int16)
    other = x.copy()
    other[5000] += 1  # in the middle, which the text of an array leaves out
    different = [
        fingerprint("ab", "c"),
        fingerprint("a", "bc"),
        fingerprint("abc"),
        fingerprint({"a": 1}),
        fingerprint({"a": 2}),
        fingerprint(x),
        fingerprint(other),
        fingerprint(x, "abc"),
    ]
    assert len(set(different)) == len(different)
    assert all(len(text) == 16 for text in different)
    assert fingerprint(x[::2]) == fingerprint(x[::2].copy())
    # Prepared stores are recognized by this value: it must not change.
    assert fingerprint("recording", 3) == hashlib.sha256(b"recording\x003\x00").hexdigest()[:16]
