"""AudioMNIST by its published digit split, on a made-up tree of its layout."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from src import config
from src.datasets.prepare import KEYWORDS
from src.datasets.source import Corpus
from src.registry import DATASETS
from tests.test_datasets_sound_events import rewrite, write

TEST = {26, 52, 60, 18, 32, 42, 5, 13, 22, 33, 45, 51}
VALIDATION = {12, 47, 59, 15, 27, 41, 4, 11, 21, 31, 44, 50}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """60 speakers, two digits, one repetition."""
    root, facts = tmp_path / "AudioMNIST", {}
    for speaker in range(1, 61):
        number = f"{speaker:02d}"
        for digit in (0, 7):
            write(root / "data" / number / f"{digit}_{number}_0.wav", 2 * speaker + digit, n=80)
        gender = "female" if speaker % 5 == 0 else "male"
        facts[number] = {"accent": "german", "age": 20 + speaker, "gender": gender, "native speaker": "no"}
    (root / "data" / "audioMNIST_meta.txt").write_text(json.dumps(facts))
    return root


def plan(source_dir: Path, include: tuple[str, ...] = KEYWORDS, **options: Any) -> Corpus:
    program = {"include": include, "default": KEYWORDS, "sample_rate": 8000, "seconds": 0.1, "seed": 0}
    return DATASETS["audiomnist"](source_dir=source_dir, **program, **options)


def test_published_digit_split(tree: Path) -> None:
    corpus = plan(tree)
    assert corpus.classes == ("0", "7")
    assert corpus.speech
    assert Counter(r.split for r in corpus.recordings) == {"train": 72, "validation": 24, "test": 24}
    for recording in corpus.recordings:
        speaker = int(recording.speaker)
        assert recording.split == ("test" if speaker in TEST else "validation" if speaker in VALIDATION else "train")
        assert recording.tags == {
            "gender": "male" if speaker % 5 else "female", "accent": "german", "age": str(20 + speaker)
        }  # fmt: skip
    assert plan(tree, ("7",)).classes == ("7",)
    assert [r.id for r in plan(tree / "data").recordings] == [r.id.removeprefix("data/") for r in corpus.recordings]
    other = plan(tree, test_speakers=(1, 2), validation_speakers=(3,))
    assert {r.speaker for r in other.recordings if r.split == "test"} == {"01", "02"}


def test_mistakes_are_one_line(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no speaker 61 "):
        plan(tree, test_speakers=(61,))
    (tmp_path / "c.ini").write_text(
        "[DATA]\nsource = audiomnist\n[DATA.audiomnist]\ntest_speakers = 1, 2\nvalidation_speakers = 2, 3\n"
    )
    with pytest.raises(ValueError, match="speaker 2 is both in test_speakers and in validation_speakers"):
        config.load(tmp_path / "c.ini")
    metadata = tree / "data" / "audioMNIST_meta.txt"
    rewrite(metadata, '"07"', '"seven"')
    with pytest.raises(ValueError, match="says nothing of speaker 07"):
        plan(tree)
    rewrite(metadata, "{", "[")
    with pytest.raises(ValueError, match=r"audioMNIST_meta\.txt: not valid JSON") as error:
        plan(tree)
    assert "\n" not in str(error.value)
    metadata.write_text("[]")
    with pytest.raises(ValueError, match="not a JSON object"):
        plan(tree)
    metadata.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no audioMNIST_meta\.txt"):
        plan(tree)
