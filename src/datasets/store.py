"""The common clip store: one memory-mapped array of 16-bit samples per split, with labels, true lengths and ids.

Sample s stands for the value s / 32768, so a stored clip, its waveform and its 16-bit wav hold the same numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.files import fingerprint
from src.registry import choose
from src.victims.embedder import NOBODY

SPLITS = ("train", "validation", "test")
"""The splits of most corpora; a corpus may declare others."""
ROLES = ("train", "validation", "enrollment", "calibration", "test")
"""The splits of a corpus for speaker recognition: the networks are trained and validated on background speakers, other
speakers are enrolled, the threshold is chosen on calibration trials, and test trials judge. Trials are utterances of
enrolled speakers and of imposters, whom nobody has seen before."""
FULL_SCALE = 32768
REQUIRED = {"classes", "sample_rate", "synthetic", "source", "counts"}
"""Keys of dataset.json without which no split can be read."""


def to_int16(x: np.ndarray) -> np.ndarray:
    """Float samples in [-1, 1] to 16 bits: rounded, clipped, never wrapped."""
    return np.clip(np.rint(x * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


@dataclass(frozen=True)
class Clips:
    """Clips of one split.

    Attributes:
        samples: int16 [n, time], usually a memory map.
        labels: int64 [n].
        lengths: int64 [n], samples before the padding.
        ids: unique names, usually the path inside the corpus.
        classes: class names in the order of the labels.
        sample_rate: Hz.
        synthetic: whether the recordings are synthetic speech.
        source: the data source's name.
        tags: further text per clip, by name and then in the order of the clips; "" where a clip has none. The tag
            "speaker" says who speaks or, for sound events, which recording a clip was cut from.
        speech: whether the recordings are speech.
    """

    samples: np.ndarray
    labels: Tensor
    lengths: Tensor
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    sample_rate: int
    synthetic: bool = False
    source: str = ""
    tags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    speech: bool = True

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_samples(self) -> int:
        return int(self.samples.shape[1])

    @property
    def speakers(self) -> tuple[str, ...]:
        """Who speaks in each clip, "" where unknown."""
        return self.tags.get("speaker", ("",) * len(self))

    def fingerprint(self) -> str:
        """16 hex digits (of a SHA-256) of samples, labels, ids, classes, sample rate and true lengths."""
        parts = [self.samples, self.labels.tolist(), self.ids, self.classes, self.sample_rate]
        if bool((self.lengths != self.n_samples).any()):
            parts.append(self.lengths.tolist())
        return fingerprint(*parts)

    def waveforms(self, index: Sequence[int] | Tensor | slice = slice(None)) -> Tensor:
        """float32 [k, time] in [-1, 1)."""
        rows = index.cpu().numpy() if isinstance(index, Tensor) else index
        # One pass from 16 bits to float32; the scale is a power of two, so the product is exact.
        return torch.from_numpy(np.multiply(self.samples[rows], np.float32(1 / FULL_SCALE), dtype=np.float32))

    def valid(self, index: Sequence[int] | Tensor | slice = slice(None)) -> Tensor:
        """bool [k, time], True before the padding."""
        return torch.arange(self.n_samples) < self.lengths[index][:, None]

    def select(self, index: Sequence[int] | Tensor) -> Clips:
        """The clips at `index`."""
        rows = [int(i) for i in index]
        return replace(
            self,
            samples=self.samples[rows],
            labels=self.labels[rows],
            lengths=self.lengths[rows],
            ids=tuple(self.ids[i] for i in rows),
            tags={name: tuple(values[i] for i in rows) for name, values in self.tags.items()},
        )

    @property
    def present(self) -> tuple[str, ...]:
        """The classes of which there are clips, in the order of the labels: in a store with roles, the speakers of the
        split."""
        return tuple(self.classes[i] for i in sorted(set(self.labels.tolist())))

    def relabeled(self, classes: Sequence[str]) -> Clips:
        """The same clips with labels that count in `classes`, those of a model, in its order. A class that the model
        does not know is its class "nobody", where it has one.

        Raises:
            ValueError: one of the present classes is not among them, nor is "nobody", or the classes of these clips are
                not speakers, so that "nobody" says nothing of them.
        """
        if self.classes == tuple(classes):
            return self
        nobody = classes.index(NOBODY) if NOBODY in classes and not self._of_other_classes() else -1
        places = {name: classes.index(name) if name in classes else nobody for name in self.classes}
        unknown = [name for name in self.present if places[name] < 0]
        if unknown:
            raise ValueError(f"the model does not know the class '{unknown[0]}' (its classes: {', '.join(classes)})")
        return replace(self, labels=torch.tensor([*places.values()])[self.labels], classes=tuple(classes))

    def _of_other_classes(self) -> bool:
        """Whether the clips say who speaks and their classes are something else: words, say."""
        named = [(self.classes[k], who) for k, who in zip(self.labels.tolist(), self.speakers, strict=True) if who]
        return any(name not in (who, NOBODY) for name, who in named)

    def known(self, classes: Sequence[str]) -> Clips:
        """The clips of the speakers among `classes`, those of a model; all clips where "nobody" is one of them, or
        where the classes of these clips are not speakers. `relabeled` still refuses what is left.

        Raises:
            ValueError: all clips are of speakers that the model does not know.
        """
        unknown = set() if NOBODY in classes else set(self.present) - set(classes)
        left_out = [self.classes[k] in unknown for k in self.labels]
        of_speakers = all(self.classes[k] == who for k, who in zip(self.labels, self.speakers, strict=True))
        if not unknown or not of_speakers:
            return self
        if all(left_out):
            known = f"(its classes: {', '.join(classes)})"
            raise ValueError(f"the model knows none of the speakers of these clips {known}; enroll them first")
        return self.select([i for i, out in enumerate(left_out) if not out])


def description(data_dir: Path) -> dict[str, Any]:
    """The content of dataset.json; `splits` names the splits of the store.

    Raises:
        FileNotFoundError: nothing prepared there.
        ValueError: the description is damaged.
    """
    path = data_dir / "dataset.json"
    if not path.is_file():
        raise FileNotFoundError(f"{data_dir}: no prepared data here; run prepare_dataset.py first")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{path}: damaged; delete {data_dir} and run prepare_dataset.py again") from None
    if isinstance(facts, dict) and facts.keys() >= REQUIRED:
        return {"splits": list(SPLITS), **facts}  # stores prepared before corpora declared their splits
    raise ValueError(f"{path}: damaged; delete {data_dir} and run prepare_dataset.py again")


def load(data_dir: Path, split: str) -> Clips:
    """One split of a prepared store, its samples memory-mapped.

    Raises:
        FileNotFoundError: nothing prepared there.
        ValueError: an unknown or empty split, or a damaged store.
    """
    facts = description(data_dir)
    choose(split, facts["splits"], "split")
    try:
        index = json.loads((data_dir / f"{split}.json").read_text(encoding="utf-8"))
        samples = np.load(data_dir / f"{split}.npy", mmap_mode="r", allow_pickle=False)
        tags = {"speaker": index.get("speakers", [""] * len(index["ids"])), **index.get("tags", {})}
        columns = [index["ids"], index["labels"], index["lengths"], *tags.values()]
        if samples.dtype != np.int16 or {len(column) for column in columns} != {samples.shape[0]}:
            raise ValueError("array and index disagree")
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{data_dir}: damaged split '{split}' ({error}); delete the folder and prepare again"
        ) from None
    if not len(samples):
        sizes = ", ".join(f"{name} {sum(facts['counts'][name].values())}" for name in facts["splits"])
        kind = "training" if split == "train" else split
        raise ValueError(f"{data_dir}: there are no {kind} clips, the split '{split}' is empty (clips: {sizes})")
    return Clips(
        samples,
        torch.tensor(index["labels"]),
        torch.tensor(index["lengths"]),
        tuple(index["ids"]),
        tuple(facts["classes"]),
        facts["sample_rate"],
        facts["synthetic"],
        facts["source"],
        {name: tuple(values) for name, values in tags.items()},
        facts.get("speech", True),
    )
