"""Atomic file writes and fingerprints of files, clips and settings."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that it is the old one or the new one, never half of it, even after a crash.

    Args:
        path: of the file; missing folders are created, the file mode follows the umask.
        write: writes the content to the file object it is given.

    Raises:
        OSError: cannot write (a full disk); what was there before stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, 64 hex digits."""
    return digest_of(path, "sha256")


def digest_of(path: Path, algorithm: str) -> str:
    """The checksum of a file, in hex digits.

    Args:
        algorithm: its name in hashlib.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def fingerprint(*parts: object) -> str:
    """The first 16 hex digits of the SHA-256 of the parts, in order: an array counts by its bytes, a mapping by its
    JSON with sorted keys, anything else by its text.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            total.update(np.ascontiguousarray(part).data)
            continue
        text = json.dumps(part, sort_keys=True, default=str) if isinstance(part, Mapping) else part
        total.update(f"{text}\0".encode("utf-8", "surrogateescape"))
    return total.hexdigest()[:16]
