"""Downloads of published archives: resumable, checked against the published checksum, safely extracted."""

from __future__ import annotations

import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from src.files import digest_of

BLOCK = 1 << 18
ALGORITHMS = {"sha256": "SHA-256", "md5": "MD5"}


def fetch(url: str, path: Path, checksum: str, algorithm: Literal["sha256", "md5"] = "sha256") -> None:
    """Download `url` to `path`, resuming an interrupted download from `path`.part (HTTP Range).

    Args:
        checksum: of the published file, hex digits.
        algorithm: of the checksum; md5 where the publisher gives nothing better.

    Raises:
        OSError: the server cannot be reached or closes the connection; the part received so far is kept.
        ValueError: the content is not the published one; the download is deleted.
    """
    if path.is_file() and digest_of(path, algorithm) == checksum:
        return
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            resumed = response.status == 206
            size = int(response.headers.get("Content-Length") or 0) + (start if resumed else 0)
            with (
                part.open("ab" if resumed else "wb") as file,
                tqdm(total=size or None, initial=file.tell(), unit="B", unit_scale=True, desc=path.name) as bar,
            ):
                while block := response.read(BLOCK):
                    file.write(block)
                    bar.update(len(block))
        if part.stat().st_size < size:
            raise ConnectionError("the connection was closed")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: the part is already complete
            raise OSError(f"{url}: {error}; run the command again to resume") from None
    except OSError as error:
        raise OSError(f"{url}: {getattr(error, 'reason', error)}; run the command again to resume") from None
    received = digest_of(part, algorithm)
    if received != checksum:
        part.unlink()
        raise ValueError(
            f"{url}: {ALGORITHMS[algorithm]} is {received}, published {checksum}; the download was deleted"
        )
    os.replace(part, path)


def extract(archive: Path, folder: Path) -> None:
    """Extract a tar archive to a new folder, which appears complete or not at all.

    Raises:
        ValueError: a damaged archive, or a member whose path leads outside the folder.
    """
    temporary = folder.with_name(f".{folder.name}.extracting")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with tarfile.open(archive) as file:
            file.extractall(temporary, filter="data")
    except (tarfile.TarError, EOFError, zlib.error) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise ValueError(f"{archive}: refused or damaged ({error})") from None
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    os.replace(temporary, folder)
