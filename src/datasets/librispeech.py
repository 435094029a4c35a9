"""LibriSpeech (Panayotov et al. 2015, openslr.org/12): read English audiobooks, here to recognize who speaks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import soundfile

from src.datasets.roles import check_roles, seeded_roles
from src.datasets.source import Corpus, Recording, pick
from src.datasets.splits import by_class, check_shares, may_be_empty, seeded_split
from src.datasets.store import ROLES, SPLITS
from src.datasets.tree import Archive, Folder, Folders, open_trees
from src.registry import DATASETS, Count, Fraction, Listed, Natural

LISTS = {"train": "training", "validation": "validation", "test": "testing"}
ROLE_LISTS = {"enrollment": "enrollment", "calibration": "calibration"}
"""Further lists, which give a store roles."""


def check(options: Mapping[str, Any]) -> None:
    if options["imposters"] and not options["enrolled"]:
        raise ValueError("imposters need enrolled speakers: set enrolled")
    if options["enrolled"] and options["splits_dir"]:
        raise ValueError("enrolled draws the speakers, the lists of splits_dir name them: set one of the two")


@DATASETS.register("librispeech", check_options=check)
def librispeech(
    *,
    include: tuple[str, ...],
    default: tuple[str, ...],
    sample_rate: int,
    seconds: float,
    seed: int,
    source_dir: Listed[Path] = (Path("data/raw/LibriSpeech"),),
    splits_dir: str = "",
    enrolled: Natural = 0,
    imposters: Natural = 0,
    validation: Fraction = 0.1,
    test: Fraction = 0.2,
    crops: Count = 1,
) -> Corpus:
    """LibriSpeech for speaker recognition: any subset in the original layout, the label is the speaker.

    Without roles every speaker is in every split (identification of the speakers trained on). With roles, by the lists
    or by `enrolled`, the networks are trained and validated on other speakers than those who are enrolled, and
    imposters stand in the trials of calibration and test. Utterances longer than [DATA] seconds are cropped to their
    loudest part. include_dirs names speakers; its default, the ten keywords, means all of them.

    Args:
        source_dir: the subset, the folder LibriSpeech around subsets, the folder around that, or an archive of one;
            several folders may be named, and stand side by side.
        splits_dir: folder of training.txt, validation.txt, testing.txt and, for roles, enrollment.txt and
            calibration.txt, one utterance per line; an utterance that none of them names is left out. No speaker of
            training and validation may be in the others, and no imposter both in calibration and testing. Empty: a
            seeded split.
        enrolled: speakers to enroll where there are no lists, drawn with the seed; 0 for no roles.
        imposters: further speakers drawn for trials that must be rejected, one half of them in calibration, the other
            in test.
        validation: share of each speaker's utterances used for validation (of an enrolled one: calibration) where there
            are no lists.
        test: share used for testing where there are no lists; 1 uses all for testing, and none to train or validate.
        crops: most clips made of one training utterance: it is cut into this many equal parts, or fewer so that none is
            shorter than a clip, and each part is cropped to its loudest section. Other utterances give one clip.
    """
    check_shares(validation, test)
    tree = open_trees((source_dir,) if isinstance(source_dir, Path) else source_dir)
    labels = {}
    for name in tree.names:
        if match := re.fullmatch(r"(?:.*/)?(\d+)/(\d+)/\1-\2-\d+\.flac", name):
            labels[name] = match[1]
            if isinstance(tree, Folders) and name in tree.repeated:
                raise ValueError(tree.repeated[name])
    if not labels:
        raise ValueError(
            f"{tree.path}: no <speaker>/<chapter>/<speaker>-<chapter>-<utterance>.flac here; is it LibriSpeech?"
        )
    splits = _split_by_lists(Path(splits_dir).expanduser(), labels) if splits_dir else {}
    speakers = {labels[name] for name in splits} or set(labels.values())
    classes = pick(None if include == default else include, sorted(speakers, key=int), "speaker")
    labels = {name: speaker for name, speaker in labels.items() if speaker in classes}
    roles: tuple[str, ...] = SPLITS
    if splits_dir:
        roles = ROLES if not set(splits.values()) <= set(SPLITS) else SPLITS
        if roles == ROLES:
            check_roles({name: split for name, split in splits.items() if name in labels}, labels)
    elif enrolled:
        splits, roles = seeded_roles(labels, enrolled, imposters, validation, test, seed), ROLES
    else:  # most speakers of the small subsets read a single chapter: utterances are drawn, not chapters
        splits = seeded_split(labels, {}, validation, test, seed)
    labels = {name: speaker for name, speaker in labels.items() if name in splits}
    if crops > 1 and isinstance(tree, Archive):
        raise ValueError(f"{tree.path}: crops = {crops} needs the folder; extract the archive first")
    optional = () if splits_dir or enrolled else may_be_empty(test)
    recordings = _recordings(tree, labels, splits, classes, seconds, crops)
    return Corpus(tree.stamp, classes, tuple(recordings), tree.audio, splits=roles, may_be_empty=optional)


def _recordings(
    tree: Folder | Folders | Archive,
    labels: Mapping[str, str],
    splits: Mapping[str, str],
    classes: tuple[str, ...],
    seconds: float,
    crops: int,
) -> list[Recording]:
    """What to prepare, in the order of the store."""
    recordings = []
    for name in by_class(list(labels), labels, classes):
        cut = crops > 1 and splits[name] == "train" and not isinstance(tree, Archive)
        parts = _parts(tree.located(name), seconds, crops) if cut else []  # type: ignore[union-attr]
        if len(parts) < 2:
            recordings.append(Recording(name, labels[name], splits[name], labels[name]))
        for i, part in enumerate(parts if len(parts) > 1 else ()):
            recordings.append(Recording(f"{name}#{i}", labels[name], "train", labels[name], part, name))
    return recordings


def _split_by_lists(folder: Path, names: Mapping[str, str]) -> dict[str, str]:
    """File -> split. An utterance's name is unique in all of LibriSpeech, so its folders need not match."""
    of_stem = {PurePosixPath(name).stem: name for name in names}
    splits: dict[str, str] = {}
    with_roles = any((folder / f"{title}.txt").exists() for title in ROLE_LISTS.values())
    for split, title in (LISTS | ROLE_LISTS if with_roles else LISTS).items():
        path = folder / f"{title}.txt"
        try:
            lines = path.read_text(encoding="utf-8").split()
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: no such list (splits_dir of librispeech)") from None
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not a text file") from None
        for line in lines:
            name = of_stem.get(PurePosixPath(line).stem)
            if name is None:
                raise ValueError(f"{path}: names {line}, which is not in source_dir")
            if splits.setdefault(name, split) != split:
                first = (LISTS | ROLE_LISTS)[splits[name]]
                raise ValueError(f"{path}: names {line}, which is in the {first} list too")
    return splits


def _parts(path: Path, seconds: float, crops: int) -> list[tuple[int, int]]:
    """Equal parts (first frame, frames) of a file, none shorter than a clip; empty where it cannot be read, which the
    decoder will report."""
    try:
        info = soundfile.info(path)
    except (OSError, RuntimeError):
        return []
    count = min(crops, int(info.frames / (seconds * info.samplerate)))
    edges = [i * info.frames // max(count, 1) for i in range(count + 1)]
    return [(start, stop - start) for start, stop in pairwise(edges)]
