"""The loaders: published splits, labels, archives, speakers kept apart."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from src.datasets.prepare import KEYWORDS, DataSettings, prepare
from src.datasets.speech_commands import speech_commands
from src.datasets.splits import hash_split, seeded_split
from src.datasets.store import SPLITS, load
from src.registry import DATASETS

PROGRAM = {"default": KEYWORDS, "sample_rate": 16000, "seconds": 0.1, "seed": 0}


def write(path: Path, seed: int, n: int = 1600) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).integers(-9000, 9000, n).astype(np.int16), 16000)


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """Speech Commands in small: 4 words x 12 speakers, two of them listed in each list, and background noise."""
    root = tmp_path / "commands"
    lists: dict[int, list[str]] = {0: [], 1: []}
    for w, word in enumerate(("yes", "no", "bed", "cat")):
        for s in range(12):
            name = f"{word}/{s:08x}_nohash_0.wav"
            write(root / name, 100 * w + s)
            if s < 4:
                lists[s % 2].append(name)
    write(root / "_background_noise_" / "tap.wav", 7, 16000 * 4)
    (root / "validation_list.txt").write_text("\n".join(lists[0]))
    (root / "testing_list.txt").write_text("\n".join(lists[1]))
    return root


def plan(source: str, include: tuple[str, ...] = KEYWORDS, **options: object):  # type: ignore[no-untyped-def]
    return DATASETS[source](include=include, **{**PROGRAM, **options})


def test_lists_split_and_speakers_stay_apart(commands: Path) -> None:
    corpus = plan("speech_commands", ("yes", "no"), source_dir=commands)
    assert corpus.classes == ("yes", "no")
    assert Counter(r.split for r in corpus.recordings) == {"train": 16, "validation": 4, "test": 4}
    speakers_of = {split: {r.speaker for r in corpus.recordings if r.split == split} for split in SPLITS}
    assert not speakers_of["train"] & speakers_of["test"]
    assert not speakers_of["train"] & speakers_of["validation"]


def test_hash_rule_where_lists_are_missing(commands: Path) -> None:
    for name in ("validation_list.txt", "testing_list.txt"):
        (commands / name).unlink()
    corpus = plan("speech_commands", ("yes",), source_dir=commands)
    assert all(r.split == hash_split(r.id) for r in corpus.recordings)


def test_hash_rule_reproduces_the_published_lists(shared: Path) -> None:
    lists = shared / "speech_commands" / "original_lists"
    for version in ("v0.01", "v0.02"):
        for split, name in (("validation", "validation_list.txt"), ("test", "testing_list.txt")):
            names = (lists / version / name).read_text().split()
            assert len(names) > 6000
            assert sum(hash_split(n) == split for n in names) == len(names)


def test_unknown_and_silence(commands: Path) -> None:
    include = ("yes", "no", "_unknown_", "_silence_")
    corpus = plan("speech_commands", include, source_dir=commands)
    counts = Counter((r.label, r.split) for r in corpus.recordings)
    for split in SPLITS:
        assert counts["_unknown_", split] == counts["_silence_", split] == counts["yes", split]
    assert {r.id.split("/")[0] for r in corpus.recordings if r.label == "_unknown_"} <= {"bed", "cat"}
    cuts = [r for r in corpus.recordings if r.label == "_silence_"]
    assert len({r.id for r in cuts}) == len(cuts)
    ends = {s: max(sum(r.part) for r in cuts if r.split == s) for s in SPLITS}  # type: ignore[arg-type]
    starts = {s: min(r.part[0] for r in cuts if r.split == s) for s in SPLITS}  # type: ignore[index]
    assert ends["train"] <= starts["validation"]
    assert ends["validation"] <= starts["test"]
    assert corpus.recordings == plan("speech_commands", include, source_dir=commands).recordings


def test_archive_equals_folder(commands: Path, tmp_path: Path) -> None:
    archive = tmp_path / "sc.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(commands, arcname=".")
    data = {"source": "speech_commands", "seconds": 0.1, "include_dirs": ("yes", "cat", "_unknown_", "_silence_")}
    for name, source in (("folder", commands), ("tar", archive)):
        prepare(DataSettings(data_dir=tmp_path / name, **data), {"source_dir": source})  # type: ignore[arg-type]
    for split in SPLITS:
        for ending in (".npy", ".json"):
            assert (tmp_path / "tar" / (split + ending)).read_bytes() == (
                tmp_path / "folder" / (split + ending)
            ).read_bytes()


def test_archive_that_leads_outside_or_is_damaged_is_refused(commands: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil.tar.gz"
    with tarfile.open(evil, "w:gz") as file:
        member = tarfile.TarInfo("../../escaped.wav")
        member.size = 4
        file.addfile(member, io.BytesIO(b"RIFF"))
    with pytest.raises(ValueError, match="leads outside"):
        plan("speech_commands", ("yes",), source_dir=evil)
    good = tmp_path / "good.tar.gz"
    with tarfile.open(good, "w:gz") as file:
        file.add(commands, arcname=".")
    half = tmp_path / "half.tar.gz"
    half.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    text = tmp_path / "text.tar.gz"
    text.write_text("hello")
    for path in (half, text):
        with pytest.raises(ValueError, match="not a tar archive, or damaged"):
            plan("speech_commands", ("yes",), source_dir=path)


def test_unknown_word_and_wrong_folder(commands: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown word 'yess'; did you mean 'yes'"):
        plan("speech_commands", ("yess",), source_dir=commands)
    with pytest.raises(ValueError, match="is it Speech Commands"):
        plan("speech_commands", ("yes",), source_dir=tmp_path / "commands" / "yes")
    with pytest.raises(FileNotFoundError, match="no such folder or archive"):
        speech_commands(include=("yes",), source_dir=tmp_path / "nowhere", **PROGRAM)  # type: ignore[arg-type]


def test_real_speech_commands(shared: Path) -> None:
    root = shared / "speech_commands"
    corpus = plan("speech_commands", source_dir=root)
    listed = set((root / "testing_list.txt").read_text().split())
    assert {r.id for r in corpus.recordings if r.split == "test"} == {
        name for name in listed if not name.startswith("_")
    }
    assert len(corpus.recordings) == 1300
    with_special = plan("speech_commands", (*KEYWORDS, "_unknown_", "_silence_"), source_dir=root)
    assert Counter(r.label for r in with_special.recordings)["_unknown_"] > 50
    assert all(r.split == "test" for r in with_special.recordings if r.id in listed)
    speakers_of = {s: {r.speaker for r in with_special.recordings if r.split == s and r.speaker} for s in SPLITS}
    assert not speakers_of["train"] & speakers_of["test"]


def test_fsdd_by_digit_and_by_speaker(tmp_path: Path) -> None:
    for digit in range(3):
        for speaker in ("ann", "bob"):
            for take in range(25):
                write(tmp_path / "recordings" / f"{digit}_{speaker}_{take}.wav", take, 400)
    corpus = plan("fsdd", source_dir=tmp_path)
    assert corpus.classes == ("0", "1", "2")
    assert {r.id for r in corpus.recordings if r.split == "test"} == {
        f"recordings/{d}_{s}_{i}.wav" for d in range(3) for s in ("ann", "bob") for i in range(5)
    }
    validation = Counter(r.label for r in corpus.recordings if r.split == "validation")
    assert set(validation.values()) == {4}
    assert plan("fsdd", source_dir=tmp_path, label="speaker").classes == ("ann", "bob")
    assert plan("fsdd", ("2", "0"), source_dir=tmp_path).classes == ("2", "0")
    assert plan("fsdd", source_dir=tmp_path / "recordings").classes == ("0", "1", "2")
    with pytest.raises(ValueError, match="unknown digit '7'"):
        plan("fsdd", ("7",), source_dir=tmp_path)
    write(tmp_path / "else" / "hello.wav", 0)
    with pytest.raises(ValueError, match="is it the spoken digits"):
        plan("fsdd", source_dir=tmp_path / "else")


def test_real_fsdd_eight_kilohertz(shared: Path, tmp_path: Path) -> None:
    prepare(DataSettings(source="fsdd", data_dir=tmp_path / "s", include_dirs=("3",)), {"source_dir": shared / "fsdd"})
    clips = load(tmp_path / "s", "test")
    assert len(clips) == 20
    for i, name in enumerate(clips.ids):
        facts = soundfile.info(shared / "fsdd" / name)
        assert abs(int(clips.lengths[i]) - 2 * facts.frames) <= 1 or clips.lengths[i] == 16000
        assert not clips.samples[i][int(clips.lengths[i]) :].any()
        assert clips.samples[i].any()


@pytest.mark.parametrize(
    ("name", "speaker"),
    [
        ("{s}_nohash_{i}.wav", "s3"),
        ("1-{s}-A.wav", "30"),
        ("1-{s}-B-12.flac", "30"),
        ("{s}-77-{i}.ogg", "30"),
    ],
)
def test_folder_keeps_a_speaker_in_one_split(tmp_path: Path, name: str, speaker: str) -> None:
    for word in ("a", "b"):
        for s in range(20):
            for i in range(2):
                write(tmp_path / word / name.format(s=f"s{s}" if "nohash" in name else s * 10, i=i), s)
    corpus = plan("folder", source_dir=tmp_path)
    assert speaker in {r.speaker for r in corpus.recordings}
    where: dict[str, set[str]] = {}
    for r in corpus.recordings:
        where.setdefault(r.speaker, set()).add(r.split)
    assert all(len(splits) == 1 for splits in where.values())
    share = Counter(r.split for r in corpus.recordings)
    assert abs(share["test"] / len(corpus.recordings) - 0.2) < 0.06
    assert abs(share["validation"] / len(corpus.recordings) - 0.1) < 0.06


def test_folder_pattern_and_other_files(tmp_path: Path) -> None:
    for s in range(6):
        for i in range(3):
            write(tmp_path / "a" / "deep" / f"take{i}of{s}.wav", s)
    (tmp_path / "a" / "notes.txt").write_text("no sound")
    (tmp_path / "top.wav").write_text("in no class")
    corpus = plan("folder", source_dir=tmp_path, speaker_pattern=r"take\dof(\d)")
    assert {r.speaker for r in corpus.recordings} == set("012345")
    assert len(corpus.recordings) == 18
    with pytest.raises(ValueError, match="needs a group"):
        plan("folder", source_dir=tmp_path, speaker_pattern="take.*")
    with pytest.raises(ValueError, match="speaker_pattern"):
        plan("folder", source_dir=tmp_path, speaker_pattern="(")


def test_seeded_split_repeats_and_differs_by_seed() -> None:
    labels = {f"{c}/{i}": c for c in "abc" for i in range(20)}
    first, again, other_seed = (seeded_split(labels, {}, 0.1, 0.2, seed) for seed in (0, 0, 1))
    assert first == again != other_seed
    for c in "abc":
        counts = Counter(first[clip] for clip in labels if labels[clip] == c)
        assert counts == {"train": 14, "validation": 2, "test": 4}


def test_a_list_of_files_chooses_clips_and_splits(commands: Path, tmp_path: Path) -> None:
    path = tmp_path / "files.txt"
    lines = [f"{split} yes/{s:08x}_nohash_0.wav" for s, split in enumerate(("train", "train", "validation", "test"))]
    path.write_text("# ours\n\n" + "\n".join(lines))
    corpus = plan("speech_commands", ("yes",), source_dir=commands, files=str(path))
    assert [f"{r.split} {r.id}" for r in corpus.recordings] == lines
    with_silence = plan("speech_commands", ("yes", "_silence_"), source_dir=commands, files=str(path))
    assert Counter(r.split for r in with_silence.recordings) == {"train": 4, "validation": 2, "test": 2}
    for text, message in (
        ("train yes/none.wav", "not in source_dir"),
        (f"{lines[0]}\n{lines[0]}", "files.txt:2: names yes/00000000_nohash_0.wav again"),
        ("learn yes/00000000_nohash_0.wav", "write one of train, validation, test"),
        ("train", "write one of"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            plan("speech_commands", ("yes",), source_dir=commands, files=str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not a text file"):
        plan("speech_commands", ("yes",), source_dir=commands, files=str(path))
    with pytest.raises(FileNotFoundError, match="no such list"):
        plan("speech_commands", ("yes",), source_dir=commands, files="nowhere.txt")


SUBSETS = Path(__file__).resolve().parents[1] / "experiments/subsets"


@pytest.mark.parametrize("source", ["speech_commands", "fsdd"])
def test_our_lists_give_the_clips_of_the_studies(source: str, shared: Path) -> None:
    options = {"sample_rate": 16000, "seconds": 1.0, "source_dir": shared / source}
    expected = plan(source, **options)
    corpus = plan(source, **options, files=str(SUBSETS / f"{source}.txt"))
    assert corpus.classes == expected.classes
    assert corpus.recordings == expected.recordings
    # The seed of the splits has no influence on listed ones.
    assert plan(source, **{**options, "seed": 7}, files=str(SUBSETS / f"{source}.txt")).recordings == corpus.recordings


def test_our_lists_of_utterances_are_those_of_the_recordings(shared: Path) -> None:
    options = {"source_dir": shared / "librispeech_mini/LibriSpeech", "seconds": 1.6}
    expected = plan("librispeech", **options, splits_dir=str(shared / "librispeech_mini/splits"))
    assert plan("librispeech", **options, splits_dir=str(SUBSETS / "librispeech")).recordings == expected.recordings


def test_list_of_digits_leaves_other_takes_out(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "files.txt").write_text("train 0_george_0.wav\nvalidation 0_george_7.wav\ntest 1_george_9.wav\n")
    for folder in (shared / "fsdd", shared / "fsdd/recordings"):
        corpus = plan("fsdd", source_dir=folder, files=str(tmp_path / "files.txt"))
        assert [(Path(r.id).name, r.split) for r in corpus.recordings] == [
            ("0_george_0.wav", "train"), ("0_george_7.wav", "validation"), ("1_george_9.wav", "test"),
        ]  # fmt: skip
