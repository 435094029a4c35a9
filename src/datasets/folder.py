"""Recordings of any kind, in one folder per class."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import soundfile

from src.datasets.source import Corpus, Recording, pick
from src.datasets.splits import by_class, check_shares, may_be_empty, seeded_split
from src.datasets.tree import open_tree
from src.registry import DATASETS, Fraction

# Extensions of audio files. The last ones cannot be decoded here; such files are listed among the skipped ones.
AUDIO = {name.lower() for name in soundfile.available_formats()} | {"aif", "oga", "opus", "m4a", "aac", "wma", "mp4"}
SPEAKERS = (
    r"(?:.*_)?([^_/]+)_nohash_.*",  # Speech Commands: <speaker>_nohash_<n>
    r"\d-(\d+)-[A-Z](?:-\d+)?",  # ESC: <fold>-<recording>-<take>-<target>
    r"(\d+)-\d+-\d+",  # LibriSpeech: <speaker>-<chapter>-<utterance>
)


@DATASETS.register("folder")
def folder(
    *,
    include: tuple[str, ...],
    default: tuple[str, ...],
    sample_rate: int,
    seconds: float,
    seed: int,
    source_dir: Path = Path("data/raw/folder"),
    validation: Fraction = 0.1,
    test: Fraction = 0.2,
    speaker_pattern: str = "auto",
    speech: bool = True,
) -> Corpus:
    """One folder per class, files of any format that soundfile reads, at any depth below it.

    The split is seeded and keeps a speaker's files together where their names contain the speaker. include_dirs names
    folders; its default, the ten keywords, means all folders unless those ten are among them.

    Args:
        source_dir: folder (or archive) that holds the class folders.
        validation: share of each class used for validation.
        test: share of each class used for testing; 1 uses all clips for testing, and none to train or validate.
        speaker_pattern: regular expression that must match the whole file name without its extension and whose first
            group is the speaker; auto knows Speech Commands, ESC and LibriSpeech; none takes every file for a new
            speaker.
        speech: whether the recordings are speech, so that PESQ and STOI can be measured.
    """
    check_shares(validation, test)
    patterns = _patterns(speaker_pattern)
    tree = open_tree(source_dir)
    labels, speakers = {}, {}
    for name in tree.names:
        path = PurePosixPath(name)
        if len(path.parts) < 2 or path.suffix[1:].lower() not in AUDIO or any(p.startswith(".") for p in path.parts):
            continue
        labels[name] = path.parts[0]
        matches = (re.fullmatch(pattern, path.stem) for pattern in patterns)
        speakers[name] = next((match[1] for match in matches if match), "")
    available = sorted(set(labels.values()))
    if not available:
        raise ValueError(f"{source_dir}: no <class>/<recording> of a format that soundfile reads")
    chosen = None if include == default and not set(default) <= set(available) else include
    classes = pick(chosen, available, "class")
    labels = {name: value for name, value in labels.items() if value in classes}
    splits = seeded_split(labels, speakers, validation, test, seed)
    recordings = [
        Recording(name, labels[name], splits[name], speakers[name]) for name in by_class(list(labels), labels, classes)
    ]
    return Corpus(tree.stamp, classes, tuple(recordings), tree.audio, speech=speech, may_be_empty=may_be_empty(test))


def _patterns(text: str) -> tuple[str, ...]:
    if text in ("auto", "none"):
        return SPEAKERS if text == "auto" else ()
    try:
        groups = re.compile(text).groups
    except re.error as error:
        raise ValueError(f"speaker_pattern = {text}: {error}") from None
    if not groups:
        raise ValueError(f"speaker_pattern = {text}: needs a group (...) around the speaker")
    return (text,)
