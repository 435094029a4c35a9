"""Splits and roles that a corpus declares: other ones than training, validation and test, and test clips alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from src.datasets import store
from src.datasets.prepare import DataSettings, prepare
from src.datasets.source import Audio, Corpus, Recording, Sound
from src.datasets.splits import seeded_split
from src.registry import DATASETS
from src.victims import checkpoint
from tests.conftest import WORDS, call, rows

ROLES = ("background", "enrolment", "imposter", "test")


def registered(monkeypatch: pytest.MonkeyPatch, corpus: Corpus) -> None:
    """Make the data source `roles` yield this corpus."""
    DATASETS.names()
    monkeypatch.setitem(DATASETS._builders, "roles", lambda **_: corpus)


def noise(recordings: Sequence[Recording]) -> Iterator[tuple[int, Audio]]:
    for i in range(len(recordings)):
        yield i, Sound(np.random.default_rng(i).uniform(-0.5, 0.5, (160, 1)).astype(np.float32), 16000)


def corpus(counts: dict[str, int], **changes: object) -> Corpus:
    recordings = [Recording(f"{role}/{i}", "ann", role) for role, n in counts.items() for i in range(n)]
    return Corpus("1", ("ann",), tuple(recordings), noise, **{"splits": ROLES, **changes})  # type: ignore[arg-type]


def settings(tmp_path: Path) -> DataSettings:
    return DataSettings(source="roles", data_dir=tmp_path / "store", seconds=0.01)


def test_a_corpus_declares_its_roles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = dict(zip(ROLES, (5, 3, 2, 4), strict=True))
    registered(monkeypatch, corpus(counts))
    facts, fresh = prepare(settings(tmp_path), {})
    assert fresh
    assert facts["splits"] == list(ROLES)
    assert {path.name for path in (tmp_path / "store").iterdir()} == {
        "dataset.json", *(f"{role}{ending}" for role in ROLES for ending in (".npy", ".json"))
    }  # fmt: skip
    for role, n in counts.items():
        clips = store.load(tmp_path / "store", role)
        assert clips.ids == tuple(f"{role}/{i}" for i in range(n))
    with pytest.raises(ValueError, match=r"unknown split 'train' .*background, enrolment, imposter, test"):
        store.load(tmp_path / "store", "train")
    assert not prepare(settings(tmp_path), {})[1]
    registered(monkeypatch, corpus(counts, splits=(*ROLES, "later"), may_be_empty=("later",)))
    assert prepare(settings(tmp_path), {})[1]  # the store of four roles is replaced by one of five
    assert (tmp_path / "store" / "later.npy").exists()


def test_only_declared_splits_may_be_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, corpus({"background": 2, "test": 2}))
    with pytest.raises(ValueError, match="the split 'enrolment' is empty"):
        prepare(settings(tmp_path), {})
    registered(monkeypatch, corpus({"background": 2, "test": 2}, may_be_empty=("enrolment", "imposter")))
    prepare(settings(tmp_path), {})
    with pytest.raises(
        ValueError, match=r"no enrolment clips, .* \(clips: background 2, enrolment 0, imposter 0, test 2\)"
    ):
        store.load(tmp_path / "store", "enrolment")


def test_a_store_prepared_before_splits_were_declared_still_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(monkeypatch, corpus({"train": 3, "validation": 1, "test": 2}, splits=store.SPLITS))
    prepare(settings(tmp_path), {})
    path = tmp_path / "store" / "dataset.json"
    facts = json.loads(path.read_text())
    del facts["splits"]
    path.write_text(json.dumps(facts))
    assert len(store.load(tmp_path / "store", "train")) == 3
    assert not prepare(settings(tmp_path), {})[1]


@pytest.mark.parametrize("key", ["classes", "sample_rate", "synthetic", "source", "counts"])
def test_a_store_whose_description_lacks_a_key_is_damaged(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(monkeypatch, corpus({"train": 3, "validation": 1, "test": 2}, splits=store.SPLITS))
    prepare(settings(tmp_path), {})
    path = tmp_path / "store" / "dataset.json"
    facts = json.loads(path.read_text())
    del facts[key]
    path.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"dataset\.json: damaged"):
        store.load(tmp_path / "store", "train")
    assert prepare(settings(tmp_path), {})[1], "it is prepared again"


def test_all_clips_are_test_clips() -> None:
    labels = {f"a/{i}": "a" for i in range(7)}
    assert seeded_split(labels, {}, 0.1, 1.0, 0) == dict.fromkeys(labels, "test")


def test_real_recordings_to_test_on_only(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for word in WORDS:
        (tmp_path / "wavs" / word).mkdir(parents=True)
        for path in sorted((shared / "speech_commands" / word).glob("*.wav"))[:2]:
            shutil.copy(path, tmp_path / "wavs" / word)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EARSHOT_TRACEBACK", raising=False)
    (tmp_path / "config.ini").write_text(
        f"[DATA]\nsource = folder\ndata_dir = clips\ninclude_dirs = {', '.join(WORDS)}\nn_test = 2\n"
        "[DATA.folder]\nsource_dir = wavs\ntest = 1\n[FRONTEND.log_mel]\nhop_length = 320\n"
        "[ATTACK]\nnames = fgsm\neps = 0.001\nwavs = 0\nchecks = 0\n[CERTIFY]\nsigma = 0.01\nn0 = 10\nn = 20\n"
        "attack_clips = 0\nattack_n = 100\nattack_steps = 1\n"
    )
    assert call(tmp_path, monkeypatch, "prepare_dataset.py") == 0
    assert len(store.load(tmp_path / "clips", "test")) == 8
    assert call(tmp_path, monkeypatch, "train_model.py") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ")
    assert "there are no training clips" in message
    victim = checkpoint.build(model="bc_resnet", classes=WORDS, sample_rate=16000, n_samples=16000)
    checkpoint.save(tmp_path / "data/models/m.pt", victim.eval(), {})
    for script in ("evaluate_model.py", "attack.py", "certify.py"):
        assert call(tmp_path, monkeypatch, script) == 0
    results = tmp_path / "data" / "results"
    assert rows(results / "evaluate" / "accuracy.test.csv")[0]["n"] == "8"
    assert len(rows(results / "attack" / "rows.csv")) == 2 * 2  # FGSM and its control
    assert len(rows(results / "certify" / "m.waveform.0.01.rows.csv")) == 2


def test_labels_in_the_order_of_a_model(clips: store.Clips) -> None:
    shuffled = ("down", "extra", *WORDS[:3])
    moved = clips.relabeled(shuffled)
    assert moved.classes == shuffled
    assert [moved.classes[k] for k in moved.labels] == [clips.classes[k] for k in clips.labels]
    assert moved.ids == clips.ids
    assert clips.relabeled(WORDS) is clips
    with pytest.raises(ValueError, match=r"does not know the class 'no' \(its classes: yes, up, down\)"):
        clips.relabeled(("yes", "up", "down"))
