"""Splits into training, validation and test clips, for corpora without published lists."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from src.datasets.store import SPLITS
from src.random_streams import derive_seed

MAX_PER_CLASS = 2**27 - 1


def hash_split(name: str, validation: float = 10.0, test: float = 10.0) -> str:
    """The published rule of Speech Commands (Warden 2018): the SHA-1 of the speaker in the file name decides, so that a
    speaker's clips stay together when words are added. `validation` and `test` in percent.

    >>> hash_split("yes/0a7c2a8d_nohash_0.wav") == hash_split("no/0a7c2a8d_nohash_3.wav")
    True
    """
    speaker = re.sub(r"_nohash_.*$", "", name.rsplit("/", 1)[-1])
    number = int(hashlib.sha1(speaker.encode(), usedforsecurity=False).hexdigest(), 16) % (MAX_PER_CLASS + 1)
    percent = number * (100.0 / MAX_PER_CLASS)
    return "validation" if percent < validation else "test" if percent < validation + test else "train"


def listed_splits(path: Path, available: Container[str]) -> dict[str, str]:
    """File -> split from a list with a line `split file` per clip, such as experiments/subsets/fsdd.txt; empty lines
    and lines that begin with # are skipped.

    Args:
        path: the list.
        available: the files of the corpus, named as in the list.

    Raises:
        FileNotFoundError: no such list.
        ValueError: not a list of that kind, or one that names a file the corpus lacks or a file twice.
    """
    splits: dict[str, str] = {}
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such list (files of the data source)") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file") from None
    for number, line in enumerate(lines, 1):
        split, _, name = line.partition(" ")
        if not line.strip() or line.startswith("#"):
            continue
        if split not in SPLITS or not name:
            raise ValueError(f"{path}:{number}: write one of {', '.join(SPLITS)}, a space and a file")
        if name not in available:
            raise ValueError(f"{path}:{number}: names {name}, which is not in source_dir")
        if name in splits:
            raise ValueError(f"{path}:{number}: names {name} again")
        splits[name] = split
    return splits


def seeded_split(
    labels: Mapping[str, str], groups: Mapping[str, str], validation: float, test: float, seed: int
) -> dict[str, str]:
    """A split that keeps every group (speaker) whole and every class near its shares.

    Groups are assigned in a seeded order, each to the split in which its classes are furthest below their share.

    Args:
        labels: clip id -> class.
        groups: clip id -> speaker; a clip without one is its own group.
        validation: share of the clips of each class used for validation, 0 to 1.
        test: the same for testing; 1 makes every clip a test clip, whatever `validation` says.

    Returns:
        clip id -> split.
    """
    if test == 1:
        return dict.fromkeys(labels, "test")
    shares = dict(zip(SPLITS, (1 - validation - test, validation, test), strict=True))
    members: dict[str, list[str]] = defaultdict(list)
    for clip in sorted(labels):
        members[groups.get(clip) or f"\0{clip}"].append(clip)
    total = Counter(labels.values())
    assigned: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    split_of = {}
    for group in sorted(members, key=lambda name: (derive_seed(seed, name, "split"), name)):
        counts = Counter(labels[clip] for clip in members[group])

        def need(split: str, counts: Counter[str] = counts) -> float:
            """How far below its share the split is, in clips of the group's classes relative to the share."""
            if not shares[split]:
                return float("-inf")
            return sum(n * (1 - assigned[split][c] / (shares[split] * total[c])) for c, n in counts.items())

        # Ties go to the smallest split, so that a rare class is not used for training alone.
        best = max(sorted(SPLITS, key=shares.__getitem__), key=need) if len(members) > 2 else "train"
        for clip in members[group]:
            split_of[clip] = best
        assigned[best] += counts
    return split_of


def check_shares(validation: float, test: float) -> None:
    """Raises ValueError where no clips are left to train on; test = 1 asks for test clips only."""
    if test < 1 and validation + test >= 1:
        raise ValueError(
            f"validation and test take {validation:g} + {test:g} of the clips: nothing is left to train on"
        )


def may_be_empty(test: float) -> tuple[str, ...]:
    """The splits that need no clips, given the share of the test clips."""
    return ("train", "validation") if test == 1 else ()


def by_class(ids: Sequence[str], labels: Mapping[str, str], classes: Sequence[str]) -> list[str]:
    """ids sorted by class, then by name: the order of every store."""
    order = {name: i for i, name in enumerate(classes)}
    return sorted(ids, key=lambda clip: (order[labels[clip]], clip))
