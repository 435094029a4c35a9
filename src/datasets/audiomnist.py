"""AudioMNIST (Becker et al. 2018, "Interpreting and explaining deep neural networks for classification of audio
signals"): digits spoken 50 times each by 60 speakers, 48 kHz."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.datasets.source import Corpus, Recording, pick
from src.datasets.splits import by_class
from src.datasets.table import beside, json_object, locate
from src.datasets.tree import open_tree
from src.registry import DATASETS, Count, Listed

METADATA = "audioMNIST_meta.txt"
TAGS = ("gender", "accent", "age")
GET_IT = "`git clone https://github.com/soerenab/AudioMNIST` and name that folder as source_dir"


def check(options: Mapping[str, Any]) -> None:
    both = sorted({*options["test_speakers"]} & {*options["validation_speakers"]})
    if both:
        raise ValueError(f"speaker {both[0]} is both in test_speakers and in validation_speakers")


@DATASETS.register("audiomnist", check_options=check)
def audiomnist(
    *,
    include: tuple[str, ...],
    default: tuple[str, ...],
    sample_rate: int,
    seconds: float,
    seed: int,
    source_dir: Path = Path("data/raw/AudioMNIST"),
    test_speakers: Listed[Count] = (26, 52, 60, 18, 32, 42, 5, 13, 22, 33, 45, 51),
    validation_speakers: Listed[Count] = (12, 47, 59, 15, 27, 41, 4, 11, 21, 31, 44, 50),
) -> Corpus:
    """AudioMNIST, spoken digits of 60 speakers, none of whom is in two splits: by default its published digit split 0.

    include_dirs names digits; its default, the ten keywords, means all of them. MIT license.

    Args:
        source_dir: folder (or tar archive) of the data set, or its `data`.
        test_speakers: numbers of the speakers used for testing.
        validation_speakers: numbers of those used for validation; all others train.
    """
    tree = open_tree(source_dir, GET_IT)
    metadata = locate(tree, METADATA)
    if metadata is None:
        raise FileNotFoundError(f"{tree.path}: holds no {METADATA}; is it AudioMNIST?")
    facts = json_object(tree, metadata)
    splits_of = dict.fromkeys(test_speakers, "test") | dict.fromkeys(validation_speakers, "validation")
    labels, speakers = {}, {}
    for name in tree.names:
        match = re.fullmatch(re.escape(beside(metadata, 1)) + r"(\d+)/(\d)_\1_\d+\.wav", name)
        if match:
            labels[name], speakers[name] = match[2], match[1]
    if not labels:
        raise ValueError(f"{tree.path}: no <speaker>/<digit>_<speaker>_<repetition>.wav beside {metadata}")
    present = sorted(set(speakers.values()))
    for speaker in present:
        if not isinstance(facts.get(speaker), dict):
            raise ValueError(f"{tree.path}: {metadata} says nothing of speaker {speaker}")
    for number in splits_of:
        if number not in map(int, present):
            raise ValueError(f"{tree.path}: there is no speaker {number} (speakers: {', '.join(present)})")
    classes = pick(None if include == default else include, sorted(set(labels.values())), "digit")
    recordings = []
    for name in by_class([name for name in labels if labels[name] in classes], labels, classes):
        speaker = speakers[name]
        tags = {tag: str(facts[speaker].get(tag, "")) for tag in TAGS}
        recordings.append(Recording(name, labels[name], splits_of.get(int(speaker), "train"), speaker, tags=tags))
    return Corpus(tree.stamp, classes, tuple(recordings), tree.audio)
