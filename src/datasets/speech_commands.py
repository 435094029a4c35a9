"""Speech Commands (Warden 2018, arXiv:1804.03209): one-second recordings of single words by thousands of speakers."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile

from src.datasets.download import extract, fetch
from src.datasets.source import Corpus, Recording, pick
from src.datasets.splits import by_class, hash_split, listed_splits
from src.datasets.store import SPLITS
from src.datasets.tree import Archive, Folder, open_tree
from src.random_streams import derive_seed
from src.registry import DATASETS

URL = "http://download.tensorflow.org/data/speech_commands_{version}.tar.gz"
TEST_SET = "0.02_test"
SHA256 = {
    "0.01": "743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d",
    "0.02": "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
    TEST_SET: "cc2a00c1147c2254e9be3fa0f779d8c17421dc349b86366567a8edfa9acd51df",
}
NOISE, UNKNOWN, SILENCE = "_background_noise_", "_unknown_", "_silence_"
NOISE_PARTS = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}


@DATASETS.register("speech_commands")
def speech_commands(
    *,
    include: tuple[str, ...],
    default: tuple[str, ...],
    sample_rate: int,
    seconds: float,
    seed: int,
    source_dir: Path = Path("data/raw/speech_commands"),
    version: Literal["none", "0.01", "0.02", "0.02_test"] = "none",
    files: str = "",
) -> Corpus:
    """Google's Speech Commands: a folder in the original layout, or the .tar.gz itself, read without extraction.

    Its validation_list.txt and testing_list.txt define the splits; without them the published hash of the speaker does.
    include_dirs may name `_unknown_` (the folder of that name, or else as many clips of the words left out as a listed
    word has) and `_silence_` (the folder, or else as many seeded cuts from `_background_noise_`, its first 80 % for
    training, the next 10 % for validation, the rest for testing).

    Args:
        source_dir: folder or archive of the data set; with a version, the folder it is downloaded to.
        version: downloaded on request unless source_dir is there already: 0.01 (1.5 GB), 0.02 (2.4 GB) or 0.02_test
            (113 MB; the clips of 0.02 that Google's lists use for testing, to be split by `files`).
        files: list of the clips to use and their splits, one `split file` per line; empty: all clips, by the lists or
            the hash.
    """
    source_dir = source_dir.expanduser()
    if version != "none" and not source_dir.exists():
        name = "test_set_v0.02" if version == TEST_SET else f"v{version}"
        archive = source_dir.with_name(f"speech_commands_{name}.tar.gz")
        fetch(URL.format(version=name), archive, SHA256[version])
        extract(archive, source_dir)
        archive.unlink()
    tree = open_tree(source_dir)
    lists = listed_splits(Path(files), set(tree.names)) if files else _lists(tree)
    words: dict[str, list[str]] = defaultdict(list)
    for name in tree.names:
        word, _, file = name.partition("/")
        used = not files or name in lists or word == NOISE
        if used and file.endswith(".wav") and "/" not in file and not file.startswith("."):
            words[word].append(name)
    if not words:
        raise ValueError(f"{source_dir}: no <word>/<file>.wav here; is it Speech Commands?")
    available = sorted(set(words) - {NOISE})
    special = ([UNKNOWN] if available else []) + ([SILENCE] if NOISE in words else [])
    classes = pick(include, [*available, *(name for name in special if name not in available)], "word")
    labels, split_of = {}, {}
    for word in classes:
        has_list = any(name in lists for name in words.get(word, ()))
        for name in words.get(word, ()):
            labels[name] = word
            # A folder of which the lists name no file is split by the hash as well.
            split_of[name] = lists.get(name, "train") if has_list else hash_split(name)
    counts = Counter(split_of[name] for name, word in labels.items() if word not in (UNKNOWN, SILENCE))
    per_word = {split: round(counts[split] / max(1, len(set(classes) - {UNKNOWN, SILENCE}))) for split in SPLITS}
    if UNKNOWN in classes and UNKNOWN not in words:
        others = [name for word in available if word not in classes and word != SILENCE for name in words[word]]
        if not others:
            raise ValueError(f"{source_dir}: no word is left for {UNKNOWN}")
        taken = dict.fromkeys(SPLITS, 0)
        for name in sorted(others, key=lambda name: derive_seed(seed, name, UNKNOWN)):
            split = (lists.get(name, "train")) if lists else hash_split(name)
            if taken[split] < per_word[split]:
                taken[split] += 1
                labels[name], split_of[name] = UNKNOWN, split
    recordings = [
        Recording(name, labels[name], split_of[name], _speaker(name))
        for name in by_class(list(labels), labels, classes)
    ]
    if SILENCE in classes and SILENCE not in words:
        recordings += _silence(tree, words[NOISE], per_word, seconds, seed)
    return Corpus(tree.stamp, classes, tuple(recordings), tree.audio)


def _lists(tree: Folder | Archive) -> dict[str, str]:
    """File -> split, from the two lists where they exist."""
    splits = {}
    for split, name in (("validation", "validation_list.txt"), ("test", "testing_list.txt")):
        if name in tree.names:
            for line in tree.content(name).decode("utf-8").split():
                splits[line] = split
    return splits


def _speaker(name: str) -> str:
    """`yes/0a7c2a8d_nohash_0.wav`, and `bed_0a7c2a8d_nohash_0.wav` of the test set's _unknown_ -> 0a7c2a8d."""
    prefix, separator, _ = name.rsplit("/", 1)[-1].partition("_nohash_")
    return prefix.rsplit("_", 1)[-1] if separator else ""


def _silence(
    tree: Folder | Archive, files: list[str], counts: dict[str, int], seconds: float, seed: int
) -> list[Recording]:
    """Seeded cuts of `seconds` from the background noise, taken from the files in turn."""
    recordings = []
    for split, (first, last) in NOISE_PARTS.items():
        for i in range(counts[split]):
            file = files[i % len(files)]
            try:
                info = soundfile.info(io.BytesIO(tree.content(file)))
            except RuntimeError:
                raise ValueError(f"{file}: unreadable background noise") from None
            length = round(seconds * info.samplerate)
            low, high = round(first * info.frames), round(last * info.frames) - length
            if high < low:
                raise ValueError(f"{file}: too short to cut {seconds:g} s of silence for the split '{split}' from it")
            start = int(np.random.default_rng(derive_seed(seed, split, i, SILENCE)).integers(low, high + 1))
            name = f"{SILENCE}/{split}_{i}_{Path(file).stem}_{start}"
            recordings.append(Recording(name, SILENCE, split, part=(start, length), file=file))
    return recordings
