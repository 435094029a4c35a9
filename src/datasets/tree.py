"""The files of a corpus, in a folder or in a tar archive, which is read without extraction."""

from __future__ import annotations

import os
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from src.datasets.source import Audio, Recording
from src.files import fingerprint

METADATA = (".csv", ".txt", ".tsv", ".json")
"""Files that describe the recordings."""
LARGEST_KEPT = 1 << 24
"""Bytes of the largest one that is kept while an archive is read."""


class Folder:
    """Every file below a folder.

    Attributes:
        names: relative paths with forward slashes, sorted.
        stamp: changes when a file is added, removed, resized or touched.
    """

    def __init__(self, root: Path):
        self.path = root
        size_and_time = {}
        for folder, _, files in os.walk(root, followlinks=True):
            for file in files:
                path = Path(folder, file)
                try:
                    info = path.stat()
                except OSError:
                    continue  # a dangling link
                size_and_time[path.relative_to(root).as_posix()] = (info.st_size, info.st_mtime_ns)
        self.names = sorted(size_and_time)
        self.stamp = fingerprint(*(f"{name} {size_and_time[name]}" for name in self.names))

    def content(self, name: str) -> bytes:
        """One small file, such as a list or a table.

        Raises:
            FileNotFoundError: no such file in the folder.
        """
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.path}: holds no {name}") from None

    def located(self, name: str) -> Path:
        """The path of one of the files."""
        return self.path / name

    def audio(self, recordings: Sequence[Recording]) -> Iterator[tuple[int, Audio]]:
        for position, recording in enumerate(recordings):
            yield position, self.located(recording.path)


class Archive:
    """Every regular file of a tar archive (plain, gz, bz2, xz). A first pass lists it and keeps the metadata and the
    background noise; a second one yields the recordings in the order of the archive. Nothing is written to disk.

    Raises:
        ValueError: damaged, or a member whose path leads outside the archive.
    """

    def __init__(self, path: Path):
        self.path = path
        self.kept: dict[str, bytes] = {}
        members: dict[str, str] = {}
        for file, member in self._members():
            name = safe_name(member.name, path)
            members[name] = member.name
            is_metadata = name.lower().endswith(METADATA) and member.size <= LARGEST_KEPT
            if is_metadata or "_background_noise_/" in name:
                self.kept[name] = file.extractfile(member).read()  # type: ignore[union-attr]
        tops = {name.split("/")[0] for name in members}
        # The archive holds the folder itself instead of its content: everything is one level further down.
        self.prefix = f"{tops.pop()}/" if len(tops) == 1 and any(name.count("/") > 1 for name in members) else ""
        self.names = sorted(name.removeprefix(self.prefix) for name in members)
        info = path.stat()
        self.stamp = fingerprint(info.st_size, info.st_mtime_ns)

    def _members(self) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
        try:
            with tarfile.open(self.path, "r|*") as file:
                for member in file:
                    safe_name(member.name, self.path)
                    if member.isfile():
                        yield file, member
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise ValueError(f"{self.path}: not a tar archive, or damaged ({error})") from None

    def content(self, name: str) -> bytes:
        """One small file; one that the first pass did not keep takes another pass.

        Raises:
            FileNotFoundError: no such file in the archive.
        """
        path = self.prefix + name
        if path in self.kept:
            return self.kept[path]
        for file, member in self._members():
            if safe_name(member.name, self.path) == path:
                return file.extractfile(member).read()  # type: ignore[union-attr]
        raise FileNotFoundError(f"{self.path}: holds no {name}")

    def audio(self, recordings: Sequence[Recording]) -> Iterator[tuple[int, Audio]]:
        wanted = defaultdict(list)
        for position, recording in enumerate(recordings):
            wanted[self.prefix + recording.path].append(position)
        for file, member in self._members():
            positions = wanted.pop(safe_name(member.name, self.path), ())
            if positions:
                content = file.extractfile(member).read()  # type: ignore[union-attr]
                for position in positions:
                    yield position, content


class Folders:
    """The files of several folders side by side, named as inside each of them; the first folder that has a file counts.

    Attributes:
        repeated: what is wrong with each name that several folders hold; a corpus refuses it for a recording.
    """

    def __init__(self, roots: Sequence[Path]):
        self.path = Path(", ".join(map(str, roots)))
        folders = [Folder(root) for root in roots]
        self.folder_of: dict[str, Folder] = {}
        self.repeated: dict[str, str] = {}
        for folder in folders:
            for name in folder.names:
                other = self.folder_of.setdefault(name, folder)
                if other is not folder:
                    self.repeated[name] = f"{folder.path}: holds {name}, and so does {other.path}"
        self.names = sorted(self.folder_of)
        self.stamp = fingerprint(*(folder.stamp for folder in folders))

    def content(self, name: str) -> bytes:
        """One small file.

        Raises:
            FileNotFoundError: no folder has it.
        """
        if name not in self.folder_of:
            raise FileNotFoundError(f"{self.path}: none of them holds {name}")
        return self.folder_of[name].content(name)

    def located(self, name: str) -> Path:
        """The path of one of the files."""
        return self.folder_of[name].located(name)

    def audio(self, recordings: Sequence[Recording]) -> Iterator[tuple[int, Audio]]:
        for position, recording in enumerate(recordings):
            yield position, self.located(recording.path)


def safe_name(name: str, archive: Path) -> str:
    """A member's path without a leading ./; refused where it leads outside the archive."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{archive}: refused, its member '{name}' leads outside the archive")
    return path.as_posix()


def open_trees(paths: Sequence[Path]) -> Folder | Folders | Archive:
    """The files of one folder or archive, or of several folders side by side.

    Raises:
        FileNotFoundError: no such folder or archive.
        ValueError: an archive that is damaged, unsafe or one of several.
    """
    if len(paths) == 1:
        return open_tree(paths[0])
    paths = [path.expanduser() for path in paths]
    for path in paths:
        if path.is_file():
            raise ValueError(f"{path}: an archive stands alone; extract it to use it beside other folders")
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: no such folder (source_dir of the data source)")
    return Folders(paths)


def open_tree(path: Path, get_it: str = "") -> Folder | Archive:
    """The files of a folder or of a tar archive.

    Args:
        get_it: where a corpus that is not there is to be had.

    Raises:
        FileNotFoundError: no such folder or archive.
        ValueError: an archive that is damaged or unsafe.
    """
    path = path.expanduser()
    if path.is_dir():
        return Folder(path)
    if path.is_file():
        return Archive(path)
    advice = f"; {get_it}" if get_it else ""
    raise FileNotFoundError(f"{path}: no such folder or archive (source_dir of the data source){advice}")
