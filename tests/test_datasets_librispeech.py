"""Speakers of LibriSpeech: the layout from any folder of it, list files, seeded shares, several clips per utterance."""

from __future__ import annotations

import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from src.datasets.prepare import KEYWORDS, DataSettings, prepare
from src.datasets.roles import seeded_roles
from src.datasets.source import Corpus
from src.datasets.store import ROLES, SPLITS, load
from src.registry import DATASETS
from tests.conftest import ROOT

RATE = 8000
SPEAKERS = ("84", "118", "1088")


@pytest.fixture
def subset(tmp_path: Path) -> Path:
    """Three speakers with ten utterances of 0.35 s, the last with a second chapter of one short one; and lists."""
    root = tmp_path / "data" / "LibriSpeech" / "dev-clean"
    names = [f"{speaker}/7/{speaker}-7-{i:04d}" for speaker in SPEAKERS for i in range(10)]
    for seed, name in enumerate([*names, "1088/8/1088-8-0000"]):
        path = root / f"{name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = np.random.default_rng(seed).integers(-9000, 9000, 400 if "8-0000" in name[-6:] else 2800)
        soundfile.write(path, samples.astype(np.int16), RATE, subtype="PCM_16")
        (path.parent / f"{path.parent.parent.name}-{path.parent.name}.trans.txt").write_text("SAID\n")
    (root.parent / "SPEAKERS.TXT").write_text("; who\n")
    lists = tmp_path / "splits"
    lists.mkdir()
    for title, takes in {"training": range(6), "validation": range(6, 8), "testing": range(8, 9)}.items():
        lines = [f"LibriSpeech/dev-clean/{name}.flac" for name in names if int(name[-4:]) in takes]
        (lists / f"{title}.txt").write_text("\n".join(lines) + "\n")
    return root


def plan(source_dir: Path, include: tuple[str, ...] = KEYWORDS, **options: object) -> Corpus:
    program = {"include": include, "default": KEYWORDS, "sample_rate": RATE, "seconds": 0.1, "seed": 0}
    return DATASETS["librispeech"](source_dir=source_dir, **program, **options)


@pytest.mark.parametrize("up", [0, 1, 2])
def test_any_folder_of_the_layout(subset: Path, up: int) -> None:
    corpus = plan([subset, *subset.parents][up])
    assert corpus.classes == SPEAKERS  # in the order of the numbers
    assert len(corpus.recordings) == 31
    assert all(r.label == r.speaker == Path(r.id).name.split("-")[0] for r in corpus.recordings)


def test_archive(subset: Path, tmp_path: Path) -> None:
    archive = tmp_path / "dev-clean.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(subset.parent, "LibriSpeech")
    assert len(plan(archive).recordings) == 31
    with pytest.raises(ValueError, match="extract"):
        plan(archive, crops=2)


def test_lists_split_and_leave_out(subset: Path, tmp_path: Path) -> None:
    corpus = plan(subset, splits_dir=str(tmp_path / "splits"))
    assert Counter(r.split for r in corpus.recordings) == {"train": 18, "validation": 6, "test": 3}
    chosen = plan(subset, ("1088", "84"), splits_dir=str(tmp_path / "splits"))
    assert chosen.classes == ("1088", "84")
    assert Counter(r.split for r in chosen.recordings) == {"train": 12, "validation": 4, "test": 2}


def test_seeded_shares_of_every_speaker(subset: Path) -> None:
    corpus = plan(subset, validation=0.1, test=0.3)
    counts = Counter((r.label, r.split) for r in corpus.recordings)
    for speaker in SPEAKERS:
        assert abs(counts[speaker, "test"] - 3) <= 1
        assert abs(counts[speaker, "validation"] - 1) <= 1
    assert corpus.recordings == plan(subset, validation=0.1, test=0.3).recordings


def test_crops_do_not_overlap_and_stay_in_training(subset: Path, tmp_path: Path) -> None:
    corpus = plan(subset, splits_dir=str(tmp_path / "splits"), crops=3)
    assert Counter(r.split for r in corpus.recordings) == {"train": 54, "validation": 6, "test": 3}
    parts: dict[str, list[tuple[int, int]]] = {}
    for recording in corpus.recordings:
        if recording.part:
            parts.setdefault(recording.path, []).append(recording.part)
    for cuts in parts.values():
        assert [start for start, _ in cuts] == [0, 933, 1866]
        assert sum(n for _, n in cuts) == 2800
        assert all(n >= 800 for _, n in cuts)
    # Where more crops are wanted than fit, as many as fit; an utterance too short for two is one clip.
    many = plan(subset, crops=9, validation=0, test=0.1)
    counts = Counter(r.path for r in many.recordings if r.split == "train")
    assert set(counts.values()) <= {1, 3}
    assert all(r.part is None for r in many.recordings if r.split != "train" or "-8-" in r.id)


def test_prepared_crops_are_the_loudest_of_each_part(subset: Path, tmp_path: Path) -> None:
    loud = np.zeros(2800, np.int16)
    loud[100:900] = 1000
    loud[1900:2700] = 2000
    soundfile.write(subset / "84/7/84-7-0000.flac", loud, RATE, subtype="PCM_16")
    data = DataSettings(source="librispeech", data_dir=tmp_path / "store", sample_rate=RATE, seconds=0.1)
    options = {"source_dir": subset, "splits_dir": str(tmp_path / "splits"), "crops": 2}
    facts, done = prepare(data, options)
    assert done
    assert not facts["synthetic"]
    clips = load(tmp_path / "store", "train")
    first, second = (clips.ids.index(f"84/7/84-7-0000.flac#{i}") for i in range(2))
    assert (clips.samples[first] == 1000).all()
    assert (clips.samples[second] == 2000).all()
    assert prepare(data, options)[1] is False
    assert prepare(data, {**options, "crops": 3})[1] is True


def test_mistakes_are_named(subset: Path, tmp_path: Path) -> None:
    lists = tmp_path / "splits"
    with pytest.raises(ValueError, match="unknown speaker '85'"):
        plan(subset, ("85",))
    with pytest.raises(FileNotFoundError, match=r"training\.txt"):
        plan(subset, splits_dir=str(tmp_path))
    with pytest.raises(ValueError, match="is it LibriSpeech"):
        plan(lists)
    with pytest.raises(ValueError, match="nothing is left"):
        plan(subset, validation=0.5, test=0.5)
    (lists / "testing.txt").write_text("1-2-3.flac\n")
    with pytest.raises(ValueError, match=r"testing\.txt: names 1-2-3\.flac"):
        plan(subset, splits_dir=str(lists))
    shutil.copy(lists / "validation.txt", lists / "testing.txt")
    with pytest.raises(ValueError, match="in the validation list too"):
        plan(subset, splits_dir=str(lists))


def test_shared_speakers(shared: Path) -> None:
    root = shared / "librispeech_mini"
    corpus = plan(root, splits_dir=str(root / "splits"))
    assert len(corpus.classes) == 10
    assert Counter(r.split for r in corpus.recordings) == {"train": 200, "validation": 40, "test": 60}


def with_roles(tmp_path: Path) -> Path:
    """Lists in which 84 is the background, 118 is enrolled and 1088 an imposter of the test."""
    folder = tmp_path / "roles"
    folder.mkdir()
    for title, (speakers, takes) in {
        "training": (("84",), range(8)),
        "validation": (("84",), range(8, 10)),
        "enrollment": (("118",), range(3)),
        "calibration": (("118",), range(3, 5)),
        "testing": (("118", "1088"), range(5, 8)),
    }.items():
        lines = [f"{speaker}-7-{i:04d}.flac" for speaker in speakers for i in takes]
        (folder / f"{title}.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_lists_of_roles_are_splits_of_one_store(subset: Path, tmp_path: Path) -> None:
    lists = with_roles(tmp_path)
    corpus = plan(subset, splits_dir=str(lists), crops=3)
    assert corpus.splits == ROLES
    assert corpus.classes == SPEAKERS
    expected = {("train", "84"): 24, ("validation", "84"): 2, ("enrollment", "118"): 3, ("calibration", "118"): 2,
                ("test", "118"): 3, ("test", "1088"): 3}  # fmt: skip
    assert Counter((r.split, r.speaker) for r in corpus.recordings) == expected
    # Without the two further lists the store has the usual splits, with one of them the other is missed.
    for title in ("enrollment", "calibration"):
        (lists / f"{title}.txt").rename(tmp_path / f"{title}.txt")
    assert plan(subset, splits_dir=str(lists)).splits == SPLITS
    (tmp_path / "enrollment.txt").rename(lists / "enrollment.txt")
    with pytest.raises(FileNotFoundError, match=r"calibration\.txt"):
        plan(subset, splits_dir=str(lists))


@pytest.mark.parametrize(
    ("title", "line", "message"),
    [
        ("testing", "84-7-0000", "speaker 84 is in the split train, whose speakers are the background, and in test"),
        ("enrollment", "84-7-0008", "speaker 84 is in the split train, .* and in enrollment"),
        ("calibration", "1088-7-0009", "speaker 1088, who is not enrolled, is an imposter both in calibration and in"),
    ],
)
def test_no_speaker_has_two_roles(subset: Path, tmp_path: Path, title: str, line: str, message: str) -> None:
    lists = with_roles(tmp_path)
    for path in lists.iterdir():  # an utterance in two lists has a message of its own
        path.write_text("".join(name for name in path.read_text().splitlines(True) if line not in name))
    with (lists / f"{title}.txt").open("a") as file:
        file.write(f"{line}.flac\n")
    with pytest.raises(ValueError, match=message):
        plan(subset, splits_dir=str(lists))
    # Speakers who are left out by include_dirs do not matter.
    if line.startswith("1088"):
        assert "1088" not in plan(subset, ("84", "118"), splits_dir=str(lists)).classes


def test_only_listed_speakers_are_classes(subset: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "splits").iterdir():
        path.write_text("".join(line for line in path.read_text().splitlines(True) if "1088-" not in line))
    assert plan(subset, splits_dir=str(tmp_path / "splits")).classes == ("84", "118")


def test_seeded_roles() -> None:
    speakers = {f"{who}/{i}": who for who in "abcdefghij" for i in range(20)}
    splits = seeded_roles(speakers, 3, 3, 0.1, 0.3, 0)
    assert splits.keys() == speakers.keys()
    counts = Counter((splits[clip], who) for clip, who in speakers.items())
    of = {split: {who for s, who in counts if s == split} for split in ROLES}
    assert of["train"] == of["validation"]
    assert len(of["train"]) == 4
    assert len(of["enrollment"]) == 3
    assert of["enrollment"] < of["calibration"]
    assert of["enrollment"] < of["test"]
    imposters = {split: of[split] - of["enrollment"] for split in ("calibration", "test")}
    assert [len(who) for who in imposters.values()] == [1, 2]
    assert not imposters["calibration"] & imposters["test"]
    assert not of["train"] & (of["calibration"] | of["test"])
    for who in of["enrollment"]:
        assert [counts[split, who] for split in ("enrollment", "calibration", "test")] == [12, 2, 6]
    assert all(counts["train", who] == 18 for who in of["train"])
    assert seeded_roles(speakers, 3, 3, 0.1, 0.3, 1) != splits
    # An imposter's utterances are all trials.
    assert all(counts[split, who] == 20 for split, names in imposters.items() for who in names)
    with pytest.raises(ValueError, match="3 enrolled speakers and 7 imposters leave none of the 10"):
        seeded_roles(speakers, 3, 7, 0.1, 0.3, 0)


def test_options_of_roles_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="imposters need enrolled"):
        DATASETS.check_options("librispeech", {"imposters": 2})
    with pytest.raises(ValueError, match="set one of the two"):
        DATASETS.check_options("librispeech", {"enrolled": 2, "splits_dir": "lists"})


def test_several_folders_side_by_side(subset: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "LibriSpeech"
    (other / "train").mkdir(parents=True)
    shutil.move(subset / "1088", other / "train" / "1088")
    shutil.copy(subset.parent / "SPEAKERS.TXT", other)
    both = (subset.parents[1], other.parent)
    corpus = plan(both, enrolled=1, imposters=1, test=0.3, crops=2)  # type: ignore[arg-type]
    assert corpus.classes == SPEAKERS
    data = DataSettings(source="librispeech", data_dir=tmp_path / "store", sample_rate=RATE, seconds=0.1)
    options = {"source_dir": both, "splits_dir": str(with_roles(tmp_path)), "crops": 2}
    prepare(data, options)
    assert len(load(tmp_path / "store", "train")) == 16
    assert load(tmp_path / "store", "test").present == ("118", "1088")
    assert prepare(data, options)[1] is False
    shutil.copytree(other / "train" / "1088", subset / "1088")
    shutil.copytree(subset, other / "dev-clean")
    with pytest.raises(ValueError, match=r"other: holds LibriSpeech/dev-clean/1088/.*\.flac, and so does .*data"):
        plan(both)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        plan((subset, tmp_path / "nowhere"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stands alone"):
        plan((subset, other / "SPEAKERS.TXT"))  # type: ignore[arg-type]


def test_the_lists_of_the_study(shared: Path) -> None:
    lists = ROOT / "experiments/subsets/librispeech_speakers"
    folders = (shared / "librispeech_mini", shared / "librispeech_background")
    corpus = plan(folders, splits_dir=str(lists))  # type: ignore[arg-type]
    counts = Counter(r.split for r in corpus.recordings)
    assert counts == {"train": 210, "validation": 30, "enrollment": 100, "calibration": 84, "test": 100}
    of = {split: {r.speaker for r in corpus.recordings if r.split == split} for split in ROLES}
    assert of["train"] == of["validation"]
    assert len(of["train"]) == len(of["enrollment"]) == 10
    assert len(corpus.classes) == 24
    background = (shared / "librispeech_background/splits/background.txt").read_text().split()
    assert of["train"] == {Path(line).name.split("-")[0] for line in background}
    assert not of["train"] & (of["enrollment"] | of["calibration"] | of["test"])
    imposters = {split: of[split] - of["enrollment"] for split in ("calibration", "test")}
    assert [len(who) for who in imposters.values()] == [2, 2]
    assert not imposters["calibration"] & imposters["test"]
