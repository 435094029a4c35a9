"""Data sources: a corpus lists its recordings before anything is decoded and reads their audio on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.datasets.store import SPLITS
from src.registry import choose


class Sound(NamedTuple):
    """Decoded audio: float32 [frames, channels] and its rate in Hz."""

    samples: np.ndarray
    sample_rate: int


Audio = Path | bytes | Sound
"""A file, a file's content, or samples."""


@dataclass(frozen=True)
class Recording:
    """One clip to prepare.

    Attributes:
        id: unique name, usually the path inside the corpus.
        label: class name.
        split: one of the splits that the corpus declares.
        speaker: who speaks or, for sound events, the recording that the clip was cut from; "" where unknown. The clips
            of one must not be in two splits unless the task is to recognize speakers.
        part: (first frame, frames) of the file `file`; None for all of it.
        file: path inside the corpus where it is not the id.
        tags: further text about the clip, by name (a fold, a session).
    """

    id: str
    label: str
    split: str
    speaker: str = ""
    part: tuple[int, int] | None = None
    file: str = ""
    tags: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def path(self) -> str:
        return self.file or self.id


@dataclass(frozen=True)
class Corpus:
    """A data source whose recordings are listed but not yet decoded; every loader returns one.

    Attributes:
        stamp: changes when the recordings change.
        classes: the class names, in the order of the labels.
        recordings: what to prepare, in the order of the store.
        audio: recordings -> (position, audio) of each, in any order; iterated over once.
        synthetic: whether the speech is synthetic.
        speech: whether it is speech at all: PESQ and STOI are defined for nothing else.
        splits: names of the splits, or roles, that the recordings have.
        may_be_empty: the splits that need not have any recording.
    """

    stamp: str
    classes: tuple[str, ...]
    recordings: tuple[Recording, ...]
    audio: Callable[[Sequence[Recording]], Iterator[tuple[int, Audio]]]
    synthetic: bool = False
    speech: bool = True
    splits: tuple[str, ...] = SPLITS
    may_be_empty: tuple[str, ...] = ()


def pick(include: Sequence[str] | None, available: Sequence[str], kind: str) -> tuple[str, ...]:
    """The classes to use, in order: those of `include`, or all that are available where it is None.

    Raises:
        ValueError: an unknown class, with the nearest match; or a class named twice.
    """
    if include is None:
        return tuple(available)
    for name in include:
        choose(name, available, kind)
    if len(set(include)) != len(include):
        raise ValueError(f"include_dirs names a class twice: {', '.join(include)}")
    return tuple(include)
