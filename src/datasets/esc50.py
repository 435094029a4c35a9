"""ESC-50 and ESC-10 (Piczak 2015, "ESC: Dataset for Environmental Sound Classification"): sound events of about 5 s."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from src.datasets.folds import check_apart, check_folds, fold_splits
from src.datasets.source import Corpus, Recording, pick
from src.datasets.splits import by_class
from src.datasets.table import beside, check_present, locate, table
from src.datasets.tree import Archive, Folder, open_tree
from src.registry import DATASETS, Count

TABLE = "meta/esc50.csv"
COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
OLDER = r"(?:.*/)?(\d+) - ([^/]+)/(\d+)-(\d+)-([A-Z])\.(?:ogg|wav)"
"""<number> - <class>/<fold>-<recording>-<take>.ogg, as ESC-10 was first published."""
RENAMED = {
    "dog_bark": "dog",
    "baby_cry": "crying_baby",
    "person_sneeze": "sneezing",
    "fire_crackling": "crackling_fire",
}
"""Names of the older layout that ESC-50 has changed."""
GET_IT = (
    "get https://github.com/karolpiczak/ESC-50/archive/refs/heads/master.tar.gz and name it, or the folder that it "
    "holds, as source_dir"
)


@dataclass(frozen=True)
class Clip:
    """What either layout says of a clip: class, number of the class, fold, recording that it was cut from, take."""

    label: str
    target: int
    fold: str
    recording: str
    take: str


@DATASETS.register("esc50", check_options=check_folds)
def esc50(
    *,
    include: tuple[str, ...],
    default: tuple[str, ...],
    sample_rate: int,
    seconds: float,
    seed: int,
    source_dir: Path = Path("data/raw/esc50"),
    subset: Literal["esc50", "esc10"] = "esc50",
    test_fold: Count = 1,
    valid_fold: Count = 2,
) -> Corpus:
    """ESC-50 and its subset ESC-10, sound events, by their folds. CC BY-NC 3.0: not for commercial use (ESC-10: CC BY).

    The layout is recognized: audio/<fold>-<recording>-<take>-<class>.wav with meta/esc50.csv, or the older one folder
    per class of ESC-10, `001 - Dog bark/<fold>-<recording>-<take>.ogg`. Classes have the names of meta/esc50.csv (dog,
    sea_waves ...) in both. include_dirs names classes; its default, the ten keywords, means all of them. No take of a
    recording is in two folds.

    Args:
        source_dir: folder of the data set, or a .tar.gz of it, read without extraction.
        subset: esc50: all there are; esc10: the ten classes of ESC-10.
        test_fold: fold used for testing.
        valid_fold: fold used for validation; all others train.
    """
    tree = open_tree(source_dir, GET_IT)
    index = locate(tree, TABLE)
    clips = _listed(tree, index, subset) if index else _older(tree)
    numbers = {clip.label: clip.target for clip in clips.values()}
    classes = pick(None if include == default else include, sorted(numbers, key=numbers.__getitem__), "class")
    splits = fold_splits({name: clip.fold for name, clip in clips.items()}, test_fold, valid_fold, tree.path)
    check_apart(splits, {name: clip.recording for name, clip in clips.items()}, tree.path)
    labels = {name: clip.label for name, clip in clips.items() if clip.label in classes}
    recordings = []
    for name in by_class(list(labels), labels, classes):
        clip = clips[name]
        tags = {"fold": clip.fold, "take": clip.take}
        recordings.append(Recording(name, clip.label, splits[name], clip.recording, tags=tags))
    return Corpus(tree.stamp, classes, tuple(recordings), tree.audio, speech=False)


def _listed(tree: Folder | Archive, index: str, subset: str) -> dict[str, Clip]:
    """File -> clip, as meta/esc50.csv lists them."""
    folder, clips = beside(index, 2), {}
    for row in table(tree, index, COLUMNS):
        if subset == "esc50" or row["esc10"].lower() == "true":
            if not row["target"].isdecimal():
                raise ValueError(f"{tree.path}: {index}: '{row['target']}' is not the number of a class (target)")
            name = f"{folder}audio/{row['filename']}"
            clips[name] = Clip(row["category"], int(row["target"]), row["fold"], row["src_file"], row["take"])
    check_present(tree, clips, index)
    return clips


def _older(tree: Folder | Archive) -> dict[str, Clip]:
    """File -> clip, from the paths of the older layout."""
    clips = {}
    for name in tree.names:
        if match := re.fullmatch(OLDER, name):
            number, words, fold, recording, take = match.groups()
            label = words.lower().replace(" ", "_")
            clips[name] = Clip(RENAMED.get(label, label), int(number), fold, recording, take)
    if not clips:
        raise ValueError(f"{tree.path}: neither {TABLE} nor '<number> - <class>/<fold>-<recording>-<take>.ogg' is here")
    return clips
