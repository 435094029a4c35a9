"""Store of adversarial clips: the 16-bit samples that a wav would hold, and the facts of how each was made.

Files only grow, so that a killed run loses at most the clip it was writing and several processes can write at once:
`store.json` says what all clips have in common, `part0.i16` holds raw samples, and line n of `part0.jsonl` the facts of
clip n. Every process writes a part of its own; readers take all parts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from src.datasets.store import Clips
from src.datasets.writer import write_json

FACTS = "store.json"


class Entry(NamedTuple):
    """One stored clip: the part that holds it, its place there, and its facts."""

    part: Path
    row: int
    facts: dict[str, Any]


class CraftedStore:
    """The clips that one attack made of the clips of one split against one model.

    Args:
        folder: of the store; made where it is missing.
        clips: the original clips, for sample rate, length and classes.
        facts: plain values that all clips share; written once.
        part: number of this process.

    Raises:
        ValueError: a store of other clips is there, or it is damaged.
    """

    def __init__(self, folder: Path, clips: Clips, facts: Mapping[str, Any], part: int = 0):
        self.folder, self.clips, self.part = folder, clips, folder / f"part{part}"
        shared = {"n_samples": clips.n_samples, "sample_rate": clips.sample_rate, "classes": list(clips.classes)}
        path = folder / FACTS
        if path.is_file():
            there = read_facts(folder)
            if any(there.get(key) != value for key, value in shared.items()):
                raise ValueError(f"{folder}: holds clips of another length, sample rate or list of classes")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(
                path,
                {
                    **json.loads(json.dumps(dict(facts), default=str)),
                    **shared,
                    "source": clips.source,
                    "synthetic": clips.synthetic,
                    "speech": clips.speech,
                },
            )
        entries = list(read_entries(folder, clips.n_samples))
        self.entries = {entry.facts["id"]: entry for entry in entries}
        # Counted before entries of the same id replace each other: two parts may hold the same clip.
        self.rows = sum(entry.part == self.part for entry in entries)
        self._repair()

    def __contains__(self, example: str) -> bool:
        return example in self.entries

    def _repair(self) -> None:
        """Cut what a killed run left behind the last whole clip of this process's part."""
        samples, lines = self.part.with_suffix(".i16"), self.part.with_suffix(".jsonl")
        if not lines.exists():
            samples.unlink(missing_ok=True)
            return
        whole = lines.read_bytes().split(b"\n")[: self.rows]
        sizes = {lines: sum(len(line) + 1 for line in whole), samples: self.rows * 2 * self.clips.n_samples}
        for path, size in sizes.items():
            with path.open("r+b") as file:
                file.truncate(size)

    def append(self, samples: np.ndarray, facts: Mapping[str, Any]) -> None:
        """Add one clip and write it through.

        Args:
            samples: int16 [time].
            facts: plain values, its `id` among them.
        """
        assert samples.dtype == np.int16
        assert samples.shape == (self.clips.n_samples,)
        with self.part.with_suffix(".i16").open("ab") as file:
            file.write(samples.astype("<i2").tobytes())
        with self.part.with_suffix(".jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(facts)) + "\n")
        self.entries[facts["id"]] = Entry(self.part, self.rows, dict(facts))
        self.rows += 1

    def read(self, ids: Sequence[str]) -> tuple[Clips, list[dict[str, Any]]]:
        """The stored clips with these ids, in this order, and the facts of each.

        Raises:
            ValueError: a clip that is not in the store.
        """
        return read_clips(self.folder, ids)


def read_facts(folder: Path) -> dict[str, Any]:
    """What all clips of a store share.

    Raises:
        FileNotFoundError: no store there.
        ValueError: a damaged one.
    """
    path = folder / FACTS
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no store of adversarial clips here; run attack.py first")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["n_samples"] < 1:
            raise ValueError("no samples")
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: damaged; delete {folder} and run the attack again") from None
    return dict(facts)


def read_entries(folder: Path, n_samples: int) -> Iterable[Entry]:
    """Every whole clip of every part; a line or samples that a kill cut short are passed over."""
    for lines in sorted(folder.glob("part*.jsonl")):
        part = lines.with_suffix("")
        samples = part.with_suffix(".i16")
        whole = samples.stat().st_size // (2 * n_samples) if samples.is_file() else 0
        for row, line in enumerate(lines.read_text(encoding="utf-8").split("\n")[:-1][:whole]):
            try:
                yield Entry(part, row, dict(json.loads(line)))
            except ValueError:
                raise ValueError(
                    f"{lines}: line {row + 1} is damaged; delete {folder} and run the attack again"
                ) from None


def read_clips(folder: Path, ids: Sequence[str] | None = None) -> tuple[Clips, list[dict[str, Any]]]:
    """The clips of a store, as `Clips` like any other, and the facts of each.

    Args:
        ids: which, in this order; None for all, in the order of their ids.

    Raises:
        FileNotFoundError: no store there.
        ValueError: damaged, or a clip is missing.
    """
    facts = read_facts(folder)
    entries = {entry.facts["id"]: entry for entry in read_entries(folder, facts["n_samples"])}
    ids = sorted(entries) if ids is None else ids
    missing = [example for example in ids if example not in entries]
    if missing:
        raise ValueError(f"{folder}: holds no clip {missing[0]} ({len(missing)} of {len(ids)} are missing)")
    chosen = [entries[example] for example in ids]
    samples = np.zeros((len(chosen), facts["n_samples"]), np.int16)
    for part in {entry.part for entry in chosen}:
        places = [(i, entry.row) for i, entry in enumerate(chosen) if entry.part == part]
        shape = (max(row for _, row in places) + 1, facts["n_samples"])
        stored = np.memmap(part.with_suffix(".i16"), "<i2", "r", shape=shape)
        for i, row in places:
            samples[i] = stored[row]
    clips = Clips(
        samples,
        torch.tensor([entry.facts["label"] for entry in chosen], dtype=torch.long),
        torch.tensor([entry.facts["length"] for entry in chosen], dtype=torch.long),
        tuple(ids),
        tuple(facts["classes"]),
        facts["sample_rate"],
        facts["synthetic"],
        facts["source"],
        {
            tag: tuple(entry.facts["tags"][tag] for entry in chosen)
            for tag in (chosen[0].facts["tags"] if chosen else ())
        },
        facts.get("speech", True),
    )
    return clips, [entry.facts for entry in chosen]
