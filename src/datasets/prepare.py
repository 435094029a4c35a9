"""Preparation of a clip store: every recording of a data source is decoded once, into one format."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from src.datasets.decode import DamagedError, read, to_clip
from src.datasets.source import Audio, Corpus, Recording
from src.datasets.store import SPLITS, description
from src.datasets.writer import SplitWriter, check_replaceable, files_of, replacing, write_json
from src.files import fingerprint
from src.registry import DATASETS, Count, Listed, Natural, Positive

FORMAT = 1
KEYWORDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which clips are used and where they are stored.

    Args:
        source: data source.
        data_dir: folder of the prepared clips.
        include_dirs: classes to include, in this order; the ten keywords stand for all classes where a source (fsdd,
            folder) has no such words.
        n_test: number of test clips to attack and certify, drawn with the seed.
        sample_rate: Hz; every recording is converted to it.
        seconds: length of a clip; longer recordings are cropped to their loudest part, shorter ones padded with zeros.
        strict: stop at the first unreadable file instead of listing and skipping it.
        seed: seed of every random choice about the data.
    """

    source: DATASETS.Name = "synthetic"  # type: ignore[name-defined]
    data_dir: Path = Path("~/data/SPEECH")
    include_dirs: Listed[str] = KEYWORDS
    n_test: Count = 1000
    sample_rate: Count = 16000
    seconds: Positive = 1.0
    strict: bool = False
    seed: Natural = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "data_dir", Path(self.data_dir).expanduser())
        if round(self.seconds * self.sample_rate) < 1:
            raise ValueError(f"seconds = {self.seconds:g} is less than a sample at {self.sample_rate} Hz")


def prepare(data: DataSettings, options: Mapping[str, Any], workers: int = 2) -> tuple[dict[str, Any], bool]:
    """Prepare the store at `data.data_dir`, unless one with the same settings is already there.

    Args:
        data: the section [DATA].
        options: the keys of the source's own sub-section.
        workers: threads that decode; the result does not depend on it.

    Returns:
        (the facts in dataset.json, whether anything was prepared).

    Raises:
        ValueError: an unknown class, an empty split, a damaged archive, or (strict) a damaged recording.
        OSError: the source is missing, or the store cannot be written; an older store stays as it was.
    """
    check_replaceable(data.data_dir)
    corpus: Corpus = DATASETS[data.source](
        include=data.include_dirs,
        default=KEYWORDS,
        sample_rate=data.sample_rate,
        seconds=data.seconds,
        seed=data.seed,
        **options,
    )
    settings = {
        "format": FORMAT,
        "source": data.source,
        "classes": list(corpus.classes),
        "sample_rate": data.sample_rate,
        "seconds": data.seconds,
        "stamp": corpus.stamp,
        # The list of recordings depends on the source's keys and on the seed.
        "plan": fingerprint(*corpus.recordings, *((r.id, sorted(r.tags.items())) for r in corpus.recordings if r.tags)),
        # Left out where it is the usual one, so that stores prepared before corpora declared it are recognized.
        **({} if corpus.splits == SPLITS else {"splits": list(corpus.splits)}),
        **({} if corpus.speech else {"speech": False}),
    }
    assert all(recording.split in corpus.splits for recording in corpus.recordings), "a split that was not declared"
    key = fingerprint(str(settings))
    facts = _prepared(data.data_dir, key, corpus.splits)
    if facts:
        if data.strict and facts["skipped"]:
            raise ValueError(f"{_why_skipped(facts['skipped'][0])} (strict = yes)")
        return facts, False
    _check_splits({split: sum(r.split == split for r in corpus.recordings) for split in corpus.splits}, corpus, data)
    with replacing(data.data_dir) as folder:
        counts, skipped = _write(folder, corpus, data, workers)
        _check_splits({split: sum(counts[split].values()) for split in corpus.splits}, corpus, data)
        facts = {
            "classes": list(corpus.classes),
            "splits": list(corpus.splits),
            "sample_rate": data.sample_rate,
            "seconds": data.seconds,
            "source": data.source,
            "synthetic": corpus.synthetic,
            "speech": corpus.speech,
            "counts": counts,
            "skipped": skipped,
            "seed": data.seed,
            "options": {name: str(value) for name, value in options.items()},
            "settings": settings,
            "fingerprint": key,
        }
        write_json(folder / "dataset.json", facts)
    return facts, True


def _prepared(data_dir: Path, key: str, splits: Sequence[str]) -> dict[str, Any] | None:
    """The facts of a complete store with these settings, or None."""
    try:
        facts = description(data_dir)
        complete = all((data_dir / name).is_file() for name in files_of(splits))
        return facts if complete and facts["fingerprint"] == key else None
    except (OSError, ValueError, KeyError):
        return None


def _why_skipped(skipped: Mapping[str, str]) -> str:
    return f"{skipped['id']}: {skipped['reason']}"


def _check_splits(counts: Mapping[str, int], corpus: Corpus, data: DataSettings) -> None:
    for split, n in counts.items():
        if not n and split not in corpus.may_be_empty:
            raise ValueError(f"{data.source}: the split '{split}' is empty (clips: {counts})")


def _write(
    folder: Path, corpus: Corpus, data: DataSettings, workers: int
) -> tuple[dict[str, dict[str, int]], list[dict[str, str]]]:
    """Write all splits. Returns the counts per split and class, and the skipped recordings with their reasons."""
    recordings, n_samples = corpus.recordings, round(data.seconds * data.sample_rate)
    label_of = {name: i for i, name in enumerate(corpus.classes)}
    counts = {split: dict.fromkeys(corpus.classes, 0) for split in corpus.splits}
    rows, sizes = [], dict.fromkeys(corpus.splits, 0)
    for recording in recordings:
        rows.append(sizes[recording.split])
        sizes[recording.split] += 1
    skipped: dict[int, dict[str, str]] = {}
    writers = {split: SplitWriter(folder, split, n_samples) for split in corpus.splits}
    done = set()
    try:
        with closing(_decoded(corpus, data.sample_rate, n_samples, workers)) as clips:
            for position, clip in tqdm(clips, desc="preparing", total=len(recordings), unit="clip"):
                recording = recordings[position]
                done.add(position)
                if isinstance(clip, DamagedError):
                    skipped[position] = {"id": recording.id, "reason": str(clip)}
                    if data.strict:
                        raise ValueError(f"{_why_skipped(skipped[position])} (strict = yes)")
                    continue
                samples, length = clip
                counts[recording.split][recording.label] += 1
                writers[recording.split].put(
                    rows[position],
                    samples,
                    clip=recording.id,
                    label=label_of[recording.label],
                    length=length,
                    speaker=recording.speaker,
                    tags=recording.tags,
                )
        assert len(done) == len(recordings), "the source did not yield every recording"
        for writer in writers.values():
            writer.finish()
    finally:
        for writer in writers.values():
            writer.abandon()
    return counts, [skipped[position] for position in sorted(skipped)]


def _decoded(
    corpus: Corpus, sample_rate: int, n_samples: int, workers: int
) -> Generator[tuple[int, tuple[np.ndarray, int] | DamagedError]]:
    """(position, clip or why it is damaged) of every recording, with a bounded number of them in memory at a time.
    Threads suffice: libsndfile and soxr release the interpreter's lock."""

    def convert(recording: Recording, audio: Audio) -> tuple[np.ndarray, int] | DamagedError:
        try:
            return to_clip(read(audio, recording.part), sample_rate, n_samples)
        except DamagedError as damage:
            return damage

    source = iter(corpus.audio(corpus.recordings))
    with ThreadPoolExecutor(workers) as pool:
        pending: list[tuple[int, Future[tuple[np.ndarray, int] | DamagedError]]] = []
        try:
            while batch := list(islice(source, 8 * workers)):
                pending += [(i, pool.submit(convert, corpus.recordings[i], audio)) for i, audio in batch]
                while len(pending) > 8 * workers:
                    position, future = pending.pop(0)
                    yield position, future.result()
            for position, future in pending:
                yield position, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
