"""Sound-event corpora: official folds and splits, recordings kept apart, one clear line for damaged metadata."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import tarfile
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from src import api, config, perception
from src.datasets import esc50, store, urbansound8k
from src.datasets.prepare import KEYWORDS, DataSettings, prepare
from src.datasets.source import Corpus
from src.datasets.store import Clips
from src.registry import DATASETS
from src.victims import checkpoint
from tests.conftest import call
from tests.test_datasets_download import Server, server  # noqa: F401

RATE = 8000
ESC10 = ("dog", "rooster", "rain", "sea_waves", "crackling_fire", "crying_baby", "sneezing", "clock_tick",
         "helicopter", "chainsaw")  # fmt: skip
"""ESC-10's classes in the order of their numbers in ESC-50."""


def write(path: Path, seed: int, rate: int = RATE, channels: int = 1, n: int = 800) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).integers(-9000, 9000, (n, channels)).astype(np.int16)
    soundfile.write(path, samples, rate, subtype="PCM_16")


def plan(source: str, source_dir: Path, include: tuple[str, ...] = KEYWORDS, **options: Any) -> Corpus:
    program = {"include": include, "default": KEYWORDS, "sample_rate": RATE, "seconds": 0.1, "seed": 0}
    return DATASETS[source](source_dir=source_dir, **program, **options)


def rewrite(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


def splits_of(corpus: Corpus) -> dict[str, set[str]]:
    """Recording -> the splits that its clips are in."""
    found = defaultdict(set)
    for recording in corpus.recordings:
        found[recording.speaker].add(recording.split)
    return found


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """ESC-50 in small: five folds of three classes, two takes of each recording; class 3 is not in ESC-10."""
    root, lines = tmp_path / "esc", ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for target, category in ((10, "rain"), (0, "dog"), (3, "cow")):
            recording = 1000 * fold + target
            for take in "AB":
                name = f"{fold}-{recording}-{take}-{target}.wav"
                write(root / "audio" / name, len(lines))
                lines.append(f"{name},{fold},{target},{category},{target != 3},{recording},{take}")
    (root / "meta").mkdir()
    (root / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")
    return root


def test_esc50_by_its_folds(newer: Path) -> None:
    corpus = plan("esc50", newer, test_fold=5, valid_fold=1)
    assert corpus.classes == ("dog", "cow", "rain"), "the order of the published numbers"
    assert not corpus.speech
    assert Counter(r.split for r in corpus.recordings) == {"train": 18, "validation": 6, "test": 6}
    for recording in corpus.recordings:
        fold = Path(recording.id).name[0]
        assert recording.tags["fold"] == fold
        assert recording.split == {"5": "test", "1": "validation"}.get(fold, "train")
    assert all(len(splits) == 1 for splits in splits_of(corpus).values())
    assert len(splits_of(corpus)) == 15
    assert plan("esc50", newer, subset="esc10").classes == ("dog", "rain")
    assert plan("esc50", newer, ("rain", "cow")).classes == ("rain", "cow")


def test_an_archive_as_it_is_published_is_the_same_corpus(newer: Path, tmp_path: Path) -> None:
    archive = tmp_path / "master.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(newer, arcname="ESC-50-master")
    for name, source in (("folder", newer), ("archive", archive), ("around", newer.parent)):
        settings = DataSettings(source="esc50", data_dir=tmp_path / "stores" / name, sample_rate=RATE, seconds=0.1)
        prepare(settings, {"source_dir": source})
    for split in store.SPLITS:
        arrays = {(folder / f"{split}.npy").read_bytes() for folder in (tmp_path / "stores").iterdir()}
        assert len(arrays) == 1


def test_older_layout_has_the_names_of_the_newer_one(tmp_path: Path) -> None:
    folders = ("001 - Dog bark", "002 - Rain", "010 - Fire crackling")
    for fold in range(1, 4):
        for i, folder in enumerate(folders):
            write(tmp_path / "old" / folder / f"{fold}-{100 * fold + i}-A.ogg".replace("ogg", "wav"), fold)
    corpus = plan("esc50", tmp_path / "old", test_fold=3, valid_fold=1)
    assert corpus.classes == ("dog", "rain", "crackling_fire")
    assert Counter(r.split for r in corpus.recordings) == {"train": 3, "validation": 3, "test": 3}
    assert {r.speaker for r in corpus.recordings if r.split == "test"} == {"300", "301", "302"}


def test_real_esc10_agrees_with_its_manifest(shared: Path) -> None:
    corpus = plan("esc50", shared / "esc10", subset="esc10", test_fold=3, valid_fold=4)
    with (shared / "esc10" / "manifest.csv").open(newline="") as file:
        manifest = {row["path"]: row for row in csv.DictReader(file)}
    assert sorted(corpus.classes) == sorted(ESC10)
    assert len(corpus.recordings) == len(manifest) == 277
    for recording in corpus.recordings:
        row = manifest[recording.id]
        assert f"freesound:{recording.speaker}" == row["speaker_or_source"]
        assert recording.split == {"fold3": "test", "fold4": "validation"}.get(row["split"], "train")
    assert all(len(splits) == 1 for splits in splits_of(corpus).values())


def test_real_clips_whole_and_cropped(shared: Path, tmp_path: Path) -> None:
    """A clip of 7.24 s and one of 5 s: their true lengths are kept, or both are cut to the seconds asked for."""
    folder = shared / "esc10"
    chosen = ["001 - Dog bark/1-100032-A.ogg"]
    with (folder / "manifest.csv").open(newline="") as file:
        rows = {row["path"]: float(row["duration_s"]) for row in csv.DictReader(file)}
    chosen += [max(rows, key=rows.__getitem__), min(rows, key=rows.__getitem__)]
    for i, name in enumerate(chosen):
        path = tmp_path / "some" / "001 - Dog bark" / f"{i + 1}-{i}-A.ogg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((folder / name).read_bytes())
    for seconds in (8.0, 5.0):
        data = DataSettings(source="esc50", data_dir=tmp_path / f"{seconds}", sample_rate=RATE, seconds=seconds)
        prepare(data, {"source_dir": tmp_path / "some"})
        clips = [store.load(tmp_path / f"{seconds}", split) for split in ("test", "validation", "train")]
        for part, name in zip(clips, chosen, strict=True):
            assert not part.speech
            assert abs(int(part.lengths[0]) - min(rows[name], seconds) * RATE) <= RATE * 0.001
            assert not part.samples[0, int(part.lengths[0]) :].any()


def test_pesq_and_stoi_are_for_speech_alone(
    newer: Path, clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data source says what its clips are, and attacks on them measure accordingly."""
    torch.manual_seed(0)
    victim = checkpoint.build(
        model="resnet", classes=clips.classes, sample_rate=clips.sample_rate, n_samples=clips.n_samples,
        model_options={"widths": (4, 8)}, front_end_options={"hop_length": 320},
    ).eval()  # fmt: skip
    some = clips.select([0, 5])
    for speech in (True, False):
        monkeypatch.setattr(perception, "stoi", lambda x, *_: torch.ones(len(x)))
        made = api.attack(victim, replace(some, speech=speech), "fgsm", eps=0.001)
        assert [math.isnan(fact["stoi"]) for fact in made.facts] == [not speech] * 2
        assert [math.isnan(fact["pesq"]) for fact in made.facts if not speech] == [True] * 2 * (not speech)
    data = DataSettings(source="esc50", data_dir=tmp_path / "store", sample_rate=RATE, seconds=0.1)
    prepare(data, {"source_dir": newer})
    assert not store.load(tmp_path / "store", "test").speech
    path = tmp_path / "store" / "dataset.json"
    facts = json.loads(path.read_text())
    del facts["speech"]
    path.write_text(json.dumps(facts))
    assert store.load(tmp_path / "store", "test").speech, "as stores were before corpora declared it"
    assert plan("folder", newer, include=("audio",), speech=False).speech is False
    assert plan("folder", newer, include=("audio",)).speech


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("src_file", "source", r"meta/esc50\.csv: no column 'src_file' \(columns: filename, fold, .*\)"),
        ("1-1010-A-10.wav,", "1-1010-C-10.wav,", r"lists audio/1-1010-C-10\.wav, which is not there$"),
        (",10,rain", ",ten,rain", r"'ten' is not the number of a class \(target\)"),
        ("B-10.wav,1,10", "B-10.wav,2,10", r"clips of the recording 1010 are in the splits test and validation"),
        (",True,1010,B", "", r"line 3 has no 'esc10'"),
    ],
)
def test_damaged_table_is_one_line(newer: Path, before: str, after: str, message: str) -> None:
    rewrite(newer / "meta" / "esc50.csv", before, after)
    with pytest.raises(ValueError, match=message) as error:
        plan("esc50", newer)
    assert "\n" not in str(error.value)


def test_folds_that_there_are_not(newer: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"test_fold = 6: there is no such fold \(folds: 1, 2, 3, 4, 5\)"):
        plan("esc50", newer, test_fold=6)
    with pytest.raises(ValueError, match=r"valid_fold = 11: there is no such fold"):
        plan("esc50", newer, valid_fold=11)
    with pytest.raises(ValueError, match="unknown class 'cat'"):
        plan("esc50", newer, ("cat",))
    with pytest.raises(ValueError, match=r"neither meta/esc50\.csv nor"):
        plan("esc50", newer / "audio")
    for i in (1, 2):
        write(tmp_path / "two" / "001 - Dog bark" / f"{i}-{i}-A.wav", i)
    with pytest.raises(ValueError, match="the folds 1, 2 leave none to train on"):
        plan("esc50", tmp_path / "two")


@pytest.mark.parametrize("source", ["esc50", "urbansound8k"])
def test_one_fold_for_two_purposes_is_refused_by_the_config(source: str, tmp_path: Path) -> None:
    (tmp_path / "c.ini").write_text(f"[DATA]\nsource = {source}\n[DATA.{source}]\ntest_fold = 3\nvalid_fold = 3\n")
    with pytest.raises(ValueError, match="test_fold and valid_fold are both 3"):
        config.load(tmp_path / "c.ini")


@pytest.mark.parametrize("source", ["esc50", "fsdkaggle2018", "urbansound8k", "audiomnist"])
def test_what_is_not_there_is_to_be_had_somewhere(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.ini").write_text(f"[DATA]\nsource = {source}\ndata_dir = clips\n")
    assert call(tmp_path, monkeypatch, "prepare_dataset.py") == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    assert "https://" in line
    assert "source_dir" in line
    assert not (tmp_path / "clips").exists()


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    """FSDKaggle2018 in small: 2 classes of 20 training clips, of which two each share a recording, and 4 test clips."""
    root = tmp_path / "fsd"
    train = ["fname,label,manually_verified,freesound_id,license"]
    test = ["fname,label,usage,freesound_id,license"]
    for i in range(40):
        write(root / "FSDKaggle2018.audio_train" / f"{i:08x}.wav", i)
        train.append(f"{i:08x}.wav,{('Bark', 'Gong')[i % 2]},{int(i < 30)},{100 + i // 4 * 4 + i % 2},CC0")
    for i in range(40, 45):
        write(root / "FSDKaggle2018.audio_test" / f"{i:08x}.wav", i)
        usage = "Ignored" if i == 44 else ("Private", "Public")[i % 2]
        test.append(f"{i:08x}.wav,{('Bark', 'Gong')[i % 2] if i < 44 else 'None'},{usage},{500 + i},CC0")
    (root / "FSDKaggle2018.meta").mkdir()
    (root / "FSDKaggle2018.meta" / "train_post_competition.csv").write_text("\n".join(train) + "\n")
    (root / "FSDKaggle2018.meta" / "test_post_competition_scoring_clips.csv").write_text("\n".join(test) + "\n")
    return root


def test_fsdkaggle2018_by_its_tables(kaggle: Path) -> None:
    corpus = plan("fsdkaggle2018", kaggle, validation=0.25)
    assert corpus.classes == ("Bark", "Gong")
    assert not corpus.speech
    counts = Counter((r.split, r.label) for r in corpus.recordings)
    assert counts["test", "Bark"] == counts["test", "Gong"] == 2, "usage Ignored is left out"
    assert counts["validation", "Bark"] + counts["train", "Bark"] == 20
    assert counts["validation", "Bark"] in (4, 6)
    assert all(len(splits) == 1 for splits in splits_of(corpus).values())
    assert len(splits_of(corpus)) == 24
    assert {r.tags.get("usage", "") for r in corpus.recordings} == {"", "Public", "Private"}
    assert corpus.recordings == plan("fsdkaggle2018", kaggle, validation=0.25).recordings
    verified = plan("fsdkaggle2018", kaggle, only_verified=True).recordings
    assert sum(r.split != "test" for r in verified) == 30
    assert sum(r.split == "test" for r in verified) == 4
    assert "validation" not in {r.split for r in plan("fsdkaggle2018", kaggle, validation=0.0).recordings}


@pytest.mark.parametrize(
    ("table", "before", "after", "message"),
    [
        ("train", "freesound_id", "id", "no column 'freesound_id'"),
        ("train", "00000003.wav", "feed.wav", r"lists FSDKaggle2018\.audio_train/feed\.wav, which is not there"),
        ("test", "0000002a.wav", "feed.wav", r"lists FSDKaggle2018\.audio_test/feed\.wav, which is not there"),
        ("test", ",541,", ",101,", r"recording 101 are in the splits (train|validation) and test"),
    ],
)
def test_damaged_tables_of_fsdkaggle2018(kaggle: Path, table: str, before: str, after: str, message: str) -> None:
    (path,) = (kaggle / "FSDKaggle2018.meta").glob(f"{table}*.csv")
    rewrite(path, before, after)
    with pytest.raises(ValueError, match=message) as error:
        plan("fsdkaggle2018", kaggle)
    assert "\n" not in str(error.value)


def test_fsdkaggle2018_without_its_tables(kaggle: Path) -> None:
    (kaggle / "FSDKaggle2018.meta" / "test_post_competition_scoring_clips.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no FSDKaggle2018\.meta/test_post_.*zenodo\.org"):
        plan("fsdkaggle2018", kaggle)


@pytest.fixture
def urban(tmp_path: Path) -> Path:
    """UrbanSound8K in small: ten folds of two classes, two slices of each recording, of two rates, mono and stereo."""
    root, lines = tmp_path / "UrbanSound8K", ["slice_file_name,fsID,start,end,salience,fold,classID,class"]
    for fold in range(1, 11):
        for class_id, name in ((9, "street_music"), (3, "dog_bark")):
            for piece in (0, 1):
                sound = 1000 * fold + class_id
                file = f"{sound}-{class_id}-0-{piece}.wav"
                rate = 44100 if piece else 22050
                write(root / f"audio/fold{fold}" / file, len(lines), rate, 1 + piece, rate // 10)
                lines.append(f"{file},{sound},0.5,1.5,{1 + piece},{fold},{class_id},{name}")
    (root / "metadata").mkdir()
    (root / "metadata" / "UrbanSound8K.csv").write_text("\n".join(lines) + "\n")
    return root


def test_urbansound8k_by_its_folds(urban: Path, tmp_path: Path) -> None:
    corpus = plan("urbansound8k", urban, test_fold=2, valid_fold=10)
    assert corpus.classes == ("dog_bark", "street_music")
    assert Counter(r.split for r in corpus.recordings) == {"train": 32, "validation": 4, "test": 4}
    assert {r.tags["fold"] for r in corpus.recordings if r.split == "test"} == {"2"}
    assert {r.tags["fold"] for r in corpus.recordings if r.split == "validation"} == {"10"}
    assert all(len(splits) == 1 for splits in splits_of(corpus).values())
    data = DataSettings(source="urbansound8k", data_dir=tmp_path / "store", sample_rate=RATE, seconds=0.12)
    facts, _ = prepare(data, {"source_dir": urban})
    assert not facts["skipped"]
    clips = store.load(tmp_path / "store", "test")
    assert clips.lengths.tolist() == [800] * 4, "0.1 s whatever the rate and the channels were"
    assert set(clips.tags["salience"]) == {"1", "2"}


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("fsID", "id", r"UrbanSound8K\.csv: no column 'fsID'"),
        ("1009-9-0-0.wav,", "1-9-0-0.wav,", r"lists audio/fold1/1-9-0-0\.wav, which is not there"),
        ("1009-9-0-0.wav,1009", "1009-9-0-0.wav,10009", r"recording 10009 are in the splits train and test"),
    ],
)
def test_damaged_table_of_urbansound8k(urban: Path, before: str, after: str, message: str) -> None:
    rewrite(urban / "metadata" / "UrbanSound8K.csv", before, after)
    with pytest.raises(ValueError, match=message):
        plan("urbansound8k", urban)


def test_urbansound8k_is_downloaded_on_request(
    urban: Path,
    tmp_path: Path,
    server: Server,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tarfile.open(tmp_path / "published", "w:gz") as file:
        file.add(urban, arcname="UrbanSound8K")
    server.content = (tmp_path / "published").read_bytes()
    monkeypatch.setattr(urbansound8k, "URL", server.url)
    place = tmp_path / "raw" / "UrbanSound8K.tar.gz"
    with pytest.raises(ValueError, match=r"MD5 is .*, published 9aa69802bbf37fb986f71ec1483a196e"):
        plan("urbansound8k", place, download=True)
    assert not place.exists()
    monkeypatch.setattr(urbansound8k, "MD5", hashlib.md5(server.content, usedforsecurity=False).hexdigest())
    for _ in range(2):
        assert len(plan("urbansound8k", place, download=True).recordings) == 40
    assert len(server.ranges_requested) == 2


def test_names_of_the_older_layout_are_those_of_esc10() -> None:
    assert set(esc50.RENAMED.values()) <= set(ESC10)
