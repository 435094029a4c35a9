"""Splits by the folds that a corpus was published with, and recordings that were cut into several clips."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def check_folds(options: Mapping[str, Any]) -> None:
    """Raises ValueError where `test_fold` and `valid_fold` are one fold."""
    if options["test_fold"] == options["valid_fold"]:
        raise ValueError(f"test_fold and valid_fold are both {options['test_fold']}: validate on another fold")


def fold_splits(folds: Mapping[str, str], test_fold: int, valid_fold: int, where: Path) -> dict[str, str]:
    """The split of every clip: one fold tests, one validates, all others train.

    Args:
        folds: clip id -> fold, as the corpus writes it.
        where: the corpus, for the message.

    Returns:
        clip id -> split.

    Raises:
        ValueError: no such fold, one fold twice, or none left to train on; lists those there are.
    """
    check_folds({"test_fold": test_fold, "valid_fold": valid_fold})
    present = sorted(set(folds.values()), key=lambda fold: (len(fold), fold))
    splits = {str(test_fold): "test", str(valid_fold): "validation"}
    for key, fold in (("test_fold", test_fold), ("valid_fold", valid_fold)):
        if str(fold) not in present:
            raise ValueError(f"{where}: {key} = {fold}: there is no such fold (folds: {', '.join(present) or 'none'})")
    if len(present) < 3:
        raise ValueError(f"{where}: the folds {', '.join(present)} leave none to train on")
    return {clip: splits.get(fold, "train") for clip, fold in folds.items()}


def check_apart(splits: Mapping[str, str], groups: Mapping[str, str], where: Path) -> None:
    """Refuse splits that share a recording: the clips that were cut from it sound alike, and results on some of them by
    a model trained on others would be too good.

    Args:
        splits: clip id -> split.
        groups: clip id -> recording; "" where it is unknown.
        where: the corpus, for the message.

    Raises:
        ValueError: names one such recording.
    """
    split_of: dict[str, str] = {}
    for clip, split in splits.items():
        group = groups[clip]
        if group and split_of.setdefault(group, split) != split:
            raise ValueError(f"{where}: clips of the recording {group} are in the splits {split_of[group]} and {split}")
