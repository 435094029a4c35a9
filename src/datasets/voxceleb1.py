"""VoxCeleb1 (Nagrani et al. 2017): celebrities in interviews, 16 kHz wavs cut from videos; the label is the speaker."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.datasets.roles import seeded_roles
from src.datasets.source import Corpus, Recording, pick
from src.datasets.splits import by_class, check_shares
from src.datasets.store import ROLES, SPLITS
from src.datasets.tree import Archive, Folder, Folders, open_trees
from src.registry import DATASETS, Fraction, Listed, Natural

IDENTIFICATION = "iden_split.txt"
NUMBERS = {"1": "train", "2": "validation", "3": "test"}


def check(options: Mapping[str, Any]) -> None:
    if options["imposters"] and not options["veri_test"]:
        raise ValueError("imposters are drawn from the speakers of veri_test: name that list")


@DATASETS.register("voxceleb1", check_options=check)
def voxceleb1(
    *,
    include: tuple[str, ...],
    default: tuple[str, ...],
    sample_rate: int,
    seconds: float,
    seed: int,
    source_dir: Listed[Path] = (Path("data/raw/voxceleb1"),),
    iden_split: str = "",
    veri_test: str = "",
    imposters: Natural = 0,
    validation: Fraction = 0.2,
    test: Fraction = 0.4,
) -> Corpus:
    """VoxCeleb1 by its lists: identification by iden_split.txt or, with veri_test, speakers to enroll and trials.

    include_dirs names speakers (id10001 ...); its default, the ten keywords, means all of them. The wavs are to be had
    from its authors (www.robots.ox.ac.uk/~vgg/data/voxceleb); nothing is downloaded here.

    Args:
        source_dir: folder around <speaker>/<video>/<utterance>.wav, at any depth, or an archive of one; several
            folders, such as those of the development and of the test part, stand side by side.
        iden_split: list `number file` per line, with 1 for training, 2 for validation and 3 for testing; empty: the
            file iden_split.txt in source_dir.
        veri_test: list of trials, `1 file file` or `0 file file` per line. Its speakers are then the ones to enroll, on
            and by whom the trials are made, with the utterances it names; the networks are trained on all other
            speakers (3 of iden_split trains too). Empty: identification of the speakers trained on.
        imposters: speakers of veri_test who are not enrolled, drawn with the seed; one half of them tries in
            calibration, the other in test.
        validation: share of each enrolled speaker's utterances used for calibration, whole videos at a time.
        test: share used for testing.
    """
    check_shares(validation, test)
    tree = open_trees((source_dir,) if isinstance(source_dir, Path) else source_dir)
    names: dict[str, str] = {}
    for name in tree.names:
        if match := re.fullmatch(r"(?:.*/)?(id\d+/[^/]+/[^/]+\.wav)", name):
            if match[1] in names:
                raise ValueError(f"{tree.path}: holds {match[1]} twice ({names[match[1]]} and {name})")
            names[match[1]] = name
    if not names:
        raise ValueError(f"{tree.path}: no <speaker>/<video>/<utterance>.wav here; is it VoxCeleb1?")
    splits, speakers = _identification(tree, iden_split, names), {file: file.split("/")[0] for file in names}
    if veri_test:
        trials = _trials(Path(veri_test), names)
        evaluated = {speakers[file] for file in trials}
        splits = {
            file: "validation" if split == "validation" else "train"
            for file, split in splits.items()
            if speakers[file] not in evaluated
        }
        if len(evaluated) <= imposters:
            raise ValueError(f"{veri_test}: names {len(evaluated)} speakers, of whom {imposters} imposters leave none")
        videos = {file: file.rsplit("/", 1)[0] for file in trials}
        of_trials = {file: speakers[file] for file in sorted(trials)}
        splits |= seeded_roles(
            of_trials, len(evaluated) - imposters, imposters, validation, test, seed, groups=videos, background=False
        )
    present = sorted({speakers[file] for file in splits})
    classes = pick(None if include == default else include, present, "speaker")
    labels = {file: speakers[file] for file in splits if speakers[file] in classes}
    recordings = tuple(
        Recording(names[file], labels[file], splits[file], labels[file], tags={"video": file.split("/")[1]})
        for file in by_class(list(labels), labels, classes)
    )
    return Corpus(tree.stamp, classes, recordings, tree.audio, splits=ROLES if veri_test else SPLITS)


def _identification(tree: Folder | Folders | Archive, path: str, names: Mapping[str, str]) -> dict[str, str]:
    """File -> split; utterances that are not there are passed over, so that a part of the corpus can be used."""
    where = path or next((name for name in tree.names if name.rsplit("/", 1)[-1] == IDENTIFICATION), "")
    if not where:
        raise FileNotFoundError(f"{tree.path}: holds no {IDENTIFICATION}; name the list with iden_split")
    content = _text(Path(path)) if path else tree.content(where).decode("utf-8", "replace")
    splits = {}
    for number, line in enumerate(content.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[0] not in NUMBERS:
            raise ValueError(f"{where}:{number}: write 1, 2 or 3, a space and a file")
        if words[1] in names:
            splits[words[1]] = NUMBERS[words[0]]
    if not splits:
        raise ValueError(f"{where}: names none of the {len(names)} utterances of {tree.path}")
    return splits


def _trials(path: Path, names: Mapping[str, str]) -> set[str]:
    """The utterances of a list of trials.

    Raises:
        ValueError: not such a list, a label that contradicts the speakers, or an utterance that is not there.
    """
    files = set()
    for number, line in enumerate(_text(path).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 3 or words[0] not in ("0", "1"):
            raise ValueError(f"{path}:{number}: write 1 (the same speaker) or 0, and two files")
        same = words[1].split("/")[0] == words[2].split("/")[0]
        if same != (words[0] == "1"):
            raise ValueError(f"{path}:{number}: says {words[0]} of {words[1]} and {words[2]}")
        for file in words[1:]:
            if file not in names:
                raise ValueError(f"{path}:{number}: names {file}, which is not in source_dir")
            files.add(file)
    if not files:
        raise ValueError(f"{path}: names no trials")
    return files


def _text(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such list (of voxceleb1)") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file") from None
