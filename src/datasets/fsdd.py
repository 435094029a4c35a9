"""Free Spoken Digit Dataset (Jackson 2016, github.com/Jakobovski/free-spoken-digit-dataset)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from src.datasets.source import Corpus, Recording, pick
from src.datasets.splits import by_class, check_shares, listed_splits, seeded_split
from src.datasets.tree import open_tree
from src.registry import DATASETS, Fraction


@DATASETS.register("fsdd")
def fsdd(
    *,
    include: tuple[str, ...],
    default: tuple[str, ...],
    sample_rate: int,
    seconds: float,
    seed: int,
    source_dir: Path = Path("data/raw/fsdd"),
    label: Literal["digit", "speaker"] = "digit",
    validation: Fraction = 0.1,
    files: str = "",
) -> Corpus:
    """The spoken digits: takes 0 to 4 of every digit and speaker test (the data set's rule), the others train.

    include_dirs names digits (or speakers, with label = speaker); its default, the ten keywords, means all of them.

    Args:
        source_dir: folder (or archive) of the data set, or its `recordings`.
        label: what to recognize: digit or speaker.
        validation: share of the training takes that validates, drawn with the seed.
        files: list of the clips to use and their splits, one `split file` per line, without `recordings/`; empty: all
            clips, by the rule and the share above.
    """
    check_shares(validation, 0)
    tree = open_tree(source_dir)
    labels, speakers, takes = {}, {}, {}
    for name in tree.names:
        match = re.fullmatch(r"(?:recordings/)?(\d)_(\w+)_(\d+)\.wav", name)
        if match:
            labels[name] = match[1] if label == "digit" else match[2]
            speakers[name], takes[name] = match[2], int(match[3])
    if not labels:
        raise ValueError(f"{source_dir}: no recordings/<digit>_<speaker>_<take>.wav here; is it the spoken digits?")
    classes = pick(None if include == default else include, sorted(set(labels.values())), label)
    labels = {name: value for name, value in labels.items() if value in classes}
    # Every speaker is in every split by the data set's rule, so single takes are drawn for validation: the same share
    # of every digit and speaker.
    training = {name: name.rsplit("_", 1)[0] for name in labels if takes[name] > 4}
    drawn = seeded_split(training, {}, validation, 0, seed)
    splits = {name: drawn.get(name, "test") for name in labels}
    if files:
        listed = listed_splits(Path(files), {name.rsplit("/", 1)[-1] for name in speakers})
        splits = {name: listed[file] for name in labels if (file := name.rsplit("/", 1)[-1]) in listed}
    return Corpus(
        tree.stamp,
        classes,
        tuple(
            Recording(name, labels[name], splits[name], speakers[name])
            for name in by_class(list(splits), labels, classes)
        ),
        tree.audio,
    )
