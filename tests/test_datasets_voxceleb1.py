"""VoxCeleb1 by its lists, on a made-up tree of its layout."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from src.datasets.prepare import KEYWORDS, DataSettings, prepare
from src.datasets.source import Corpus
from src.datasets.store import ROLES, SPLITS, load
from src.registry import DATASETS

RATE = 8000
SPEAKERS = [f"id1000{i}" for i in range(1, 7)]
VIDEOS = ("1zcIwhmdeo4", "5r0dWxy17C8", "Abc_-123xyz")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Six speakers, three videos of three utterances each; the lists beside them. The last three are in the trials."""
    root, files = tmp_path / "vox", []
    for seed, speaker in enumerate(SPEAKERS):
        for video in VIDEOS:
            for i in range(1, 4):
                file = f"{speaker}/{video}/0000{i}.wav"
                path = root / ("dev" if seed < 3 else "test") / "wav" / file
                path.parent.mkdir(parents=True, exist_ok=True)
                samples = np.random.default_rng(len(files)).integers(-9000, 9000, 1600).astype(np.int16)
                soundfile.write(path, samples, RATE, subtype="PCM_16")
                files.append(file)
    number = {video: str(i) for i, video in enumerate(VIDEOS, 1)}
    lines = [f"{number[file.split('/')[1]]} {file}" for file in files]
    (root / "iden_split.txt").write_text("\n".join([*lines, "1 id19999/notherexxxx/00001.wav"]) + "\n")
    others = [file for file in files if file.split("/")[0] in SPEAKERS[3:]]
    pairs = [(a, b) for a, b in zip(others, others[1:] + others[:1], strict=True)]
    trials = [f"{int(a.split('/')[0] == b.split('/')[0])} {a} {b}" for a, b in pairs]
    (tmp_path / "veri_test.txt").write_text("\n".join(trials) + "\n")
    return root


def plan(source_dir: object, include: tuple[str, ...] = KEYWORDS, **options: object) -> Corpus:
    program = {"include": include, "default": KEYWORDS, "sample_rate": RATE, "seconds": 0.1, "seed": 0}
    return DATASETS["voxceleb1"](source_dir=source_dir, **program, **options)


def test_identification_by_the_published_split(tree: Path, tmp_path: Path) -> None:
    corpus = plan(tree)
    assert corpus.classes == tuple(SPEAKERS)
    assert corpus.splits == SPLITS
    counts = Counter((r.split, r.tags["video"]) for r in corpus.recordings)
    assert counts == dict.fromkeys(zip(SPLITS, VIDEOS, strict=True), 18)
    assert all(r.label == r.speaker == r.id.split("/")[-3] for r in corpus.recordings)
    chosen = plan(tree, ("id10003", "id10001"))
    assert chosen.classes == ("id10003", "id10001")
    assert len(chosen.recordings) == 18
    # The two parts as folders of their own, and the list elsewhere.
    shutil.move(tree / "iden_split.txt", tmp_path / "list.txt")
    parts = (tree / "dev", tree / "test")
    assert len(plan(parts, iden_split=str(tmp_path / "list.txt")).recordings) == 54
    with pytest.raises(FileNotFoundError, match=r"holds no iden_split\.txt"):
        plan(parts)


def test_speakers_of_the_trials_are_enrolled_and_all_others_train(tree: Path, tmp_path: Path) -> None:
    corpus = plan(tree, veri_test=str(tmp_path / "veri_test.txt"), imposters=1, validation=0.3, test=0.4)
    assert corpus.splits == ROLES
    of = {split: {r.speaker for r in corpus.recordings if r.split == split} for split in ROLES}
    assert of["train"] == of["validation"] == set(SPEAKERS[:3])
    assert len(of["enrollment"]) == 2
    assert of["enrollment"] == of["calibration"]
    assert of["test"] == set(SPEAKERS[3:])
    counts = Counter(r.split for r in corpus.recordings)
    assert counts == {"train": 18, "validation": 9, "enrollment": 6, "calibration": 6, "test": 6 + 9}
    # No video is in two splits, so that a session is not recognized instead of a speaker.
    sessions = Counter((s, v) for s, v in {(r.split, r.id.rsplit("/", 1)[0]) for r in corpus.recordings})
    assert len({video for _, video in sessions}) == len(sessions)


def test_it_is_prepared(tree: Path, tmp_path: Path) -> None:
    data = DataSettings(source="voxceleb1", data_dir=tmp_path / "store", sample_rate=RATE, seconds=0.2)
    options = {"source_dir": tree, "veri_test": str(tmp_path / "veri_test.txt"), "imposters": 1}
    prepare(data, options)
    clips = load(tmp_path / "store", "train")
    assert clips.present == tuple(SPEAKERS[:3])
    assert set(clips.tags["video"]) == {VIDEOS[0], VIDEOS[2]}
    assert prepare(data, options)[1] is False


def test_mistakes_are_named(tree: Path, tmp_path: Path) -> None:
    trials = tmp_path / "veri_test.txt"
    with pytest.raises(ValueError, match="is it VoxCeleb1"):
        plan(tmp_path / "vox" / "dev" / "wav" / SPEAKERS[0])
    with pytest.raises(FileNotFoundError, match="no such list"):
        plan(tree, veri_test=str(tmp_path / "none.txt"))
    with pytest.raises(ValueError, match="3 speakers, of whom 3 imposters leave none"):
        plan(tree, veri_test=str(trials), imposters=3)
    with pytest.raises(ValueError, match="name that list"):
        DATASETS.check_options("voxceleb1", {"imposters": 3})
    for line, message in (
        ("1 a", "write 1"),
        ("1 id10004/x/1.wav id10005/x/1.wav", "says 1 of"),
        ("1 id10004/x/1.wav id10004/x/2.wav", "which is not in source_dir"),
        ("", "names no trials"),
    ):
        trials.write_text(line + "\n")
        with pytest.raises(ValueError, match=message):
            plan(tree, veri_test=str(trials))
    for line, message in (("4 a.wav", "write 1, 2 or 3"), ("1 id19999/x/1.wav", "names none of the 54")):
        (tree / "iden_split.txt").write_text(line + "\n")
        with pytest.raises(ValueError, match=message):
            plan(tree)
    shutil.copytree(tree / "dev", tree / "again")
    with pytest.raises(ValueError, match="twice"):
        plan(tree)
