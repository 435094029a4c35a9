"""LibriSpeech (Panayotov et al. 2015, openslr.org/12): read English audiobooks, here to recognize who speaks."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path, PurePosixPath

import soundfile

from src.datasets.source import Corpus, Recording, pick
from src.datasets.splits import by_class, check_shares, may_be_empty, seeded_split
from src.datasets.tree import Folder, open_tree
from src.registry import DATASETS, Count, Fraction

LISTS = {"train": "training", "validation": "validation", "test": "testing"}


@DATASETS.register("librispeech")
def librispeech(
    *,
    include: tuple[str, ...],
    default: tuple[str, ...],
    sample_rate: int,
    seconds: float,
    seed: int,
    source_dir: Path = Path("data/raw/LibriSpeech"),
    splits_dir: str = "",
    validation: Fraction = 0.1,
    test: Fraction = 0.2,
    crops: Count = 1,
) -> Corpus:
    """LibriSpeech for speaker identification: any subset in the original layout, the label is the speaker.

    Utterances longer than [DATA] seconds are cropped to their loudest part. include_dirs names speakers; its default,
    the ten keywords, means all of them.

    Args:
        source_dir: the subset, the folder LibriSpeech around subsets, the folder around that, or an archive of one.
        splits_dir: folder of training.txt, validation.txt and testing.txt, one utterance per line; an utterance that
            none of them names is left out. Empty: a seeded split of the utterances of each speaker.
        validation: share of each speaker's utterances used for validation where there are no lists.
        test: share used for testing where there are no lists; 1 uses all for testing, and none to train or validate.
        crops: most clips made of one training utterance: it is cut into this many equal parts, or fewer so that none is
            shorter than a clip, and each part is cropped to its loudest section. Other utterances give one clip.
    """
    check_shares(validation, test)
    tree = open_tree(source_dir)
    labels = {}
    for name in tree.names:
        if match := re.fullmatch(r"(?:.*/)?(\d+)/(\d+)/\1-\2-\d+\.flac", name):
            labels[name] = match[1]
    if not labels:
        raise ValueError(
            f"{source_dir}: no <speaker>/<chapter>/<speaker>-<chapter>-<utterance>.flac here; is it LibriSpeech?"
        )
    classes = pick(None if include == default else include, sorted(set(labels.values()), key=int), "speaker")
    # Most speakers of the small subsets read a single chapter: utterances are drawn, not chapters.
    splits = (
        _split_by_lists(Path(splits_dir), labels) if splits_dir else seeded_split(labels, {}, validation, test, seed)
    )
    labels = {name: speaker for name, speaker in labels.items() if speaker in classes and name in splits}
    if crops > 1 and not isinstance(tree, Folder):
        raise ValueError(f"{source_dir}: crops = {crops} needs the folder; extract the archive first")
    recordings = []
    for name in by_class(list(labels), labels, classes):
        parts = _parts(tree.path / name, seconds, crops) if crops > 1 and splits[name] == "train" else []
        if len(parts) < 2:
            recordings.append(Recording(name, labels[name], splits[name], labels[name]))
        for i, part in enumerate(parts if len(parts) > 1 else ()):
            recordings.append(Recording(f"{name}#{i}", labels[name], "train", labels[name], part, name))
    optional = () if splits_dir else may_be_empty(test)
    return Corpus(tree.stamp, classes, tuple(recordings), tree.audio, may_be_empty=optional)


def _split_by_lists(folder: Path, names: dict[str, str]) -> dict[str, str]:
    """File -> split. An utterance's name is unique in all of LibriSpeech, so its folders need not match."""
    of_stem = {PurePosixPath(name).stem: name for name in names}
    splits: dict[str, str] = {}
    for split, title in LISTS.items():
        path = folder.expanduser() / f"{title}.txt"
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
                raise ValueError(f"{path}: names {line}, which is in the {LISTS[splits[name]]} list too")
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
