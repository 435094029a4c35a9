"""Splits and roles that a corpus declares: other ones than training, validation and test, and test clips alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from src.datasets import store
from src.datasets.prepare import DataSettings, prepare
from src.datasets.source import Audio, Corpus, Recording, Sound
from src.datasets.splits import seeded_split
from src.registry import DATASETS
from src.victims import checkpoint
from tests.conftest import WORDS, call, rows

RATE = 16000
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


def spoken_by(names: tuple[str, ...], speakers: tuple[str, ...] | None = None) -> store.Clips:
    """One clip per name, of the classes ann, bob, eve."""
    labels = torch.tensor([("ann", "bob", "eve").index(name) for name in names])
    return store.Clips(
        np.zeros((len(names), 4), np.int16), labels, torch.full((len(names),), 4), tuple(map(str, range(len(names)))),
        ("ann", "bob", "eve"), RATE, tags={"speaker": speakers or names},
    )  # fmt: skip


def test_who_is_unknown_is_nobody() -> None:
    clips = spoken_by(("eve", "ann", "bob", "ann"))
    moved = clips.relabeled(("bob", "nobody", "ann"))
    assert moved.labels.tolist() == [1, 2, 0, 2]
    assert clips.known(("bob", "nobody")) is clips
    with pytest.raises(ValueError, match="does not know the class 'eve'"):
        clips.relabeled(("ann", "bob"))


def test_a_class_without_clips_need_not_be_known() -> None:
    clips = spoken_by(("ann", "ann"))
    assert clips.present == ("ann",)
    moved = clips.relabeled(("zoe", "ann"))
    assert moved.labels.tolist() == [1, 1]
    assert moved.classes == ("zoe", "ann")


def test_clips_of_unknown_speakers_can_be_left_out() -> None:
    clips = spoken_by(("eve", "ann", "bob", "ann"))
    known = clips.known(("ann", "bob"))
    assert known.ids == ("1", "2", "3")
    assert known.relabeled(("ann", "bob")).labels.tolist() == [0, 1, 0]
    assert clips.known(("ann", "bob", "eve", "zoe")) is clips
    with pytest.raises(ValueError, match=r"knows none of the speakers of these clips \(its classes: zoe\)"):
        clips.known(("zoe",))
    # Words are no speakers: a model that lacks one of them is refused.
    words = spoken_by(("eve", "ann"), ("one", "two"))
    assert words.known(("ann",)) is words
    # Nor does it say anything about them that a recognizer of speakers knows nobody.
    with pytest.raises(ValueError, match="does not know the class 'ann'"):
        words.relabeled(("bob", "nobody"))


def speakers_config(tmp_path: Path) -> None:
    """Three background speakers, two to enroll and two imposters, each of them a chord of their own."""
    rng = np.random.default_rng(0)
    t = np.arange(4000) / RATE
    for number in range(1, 8):
        for i in range(10):
            path = tmp_path / f"raw/LibriSpeech/train/{number}/1/{number}-1-{i:04d}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            x = np.sin(2 * np.pi * 300 * number * t + rng.uniform(0, 6)) + 0.3 * rng.standard_normal(len(t))
            soundfile.write(path, 0.1 * x, RATE, subtype="PCM_16")
    (tmp_path / "config.ini").write_text(
        "[DATA]\nsource = librispeech\ndata_dir = clips\nseconds = 0.25\nn_test = 8\n"
        "[DATA.librispeech]\nsource_dir = raw\nenrolled = 2\nimposters = 2\nvalidation = 0.2\ntest = 0.4\n"
        "[MODEL]\nnames = resnet\n[MODEL.resnet]\nwidths = 8, 16\n[TRAINING]\nepochs = 8\nbatch_size = 8\n"
        "learning_rate = 0.01\n[ATTACK]\nnames = fgsm\neps = 0.001\nwavs = 0\nchecks = 0\n"
        "[CERTIFY]\nsigma = 0.01\nn0 = 10\nn = 20\nattack_clips = 0\nattack_n = 100\nattack_steps = 1\n"
    )


def test_networks_learn_the_background_and_closed_sets_leave_imposters_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speakers_config(tmp_path)
    assert call(tmp_path, monkeypatch, "prepare_dataset.py") == 0
    splits = {role: store.load(tmp_path / "clips", role) for role in store.ROLES}
    background, enrolled = splits["train"].present, splits["enrollment"].present
    assert call(tmp_path, monkeypatch, "train_model.py") == 0
    victim, facts = checkpoint.load(tmp_path / "data/models/resnet.pt")
    assert victim.classes == background
    assert facts["classes"] == list(background)
    assert facts["validation_accuracy"] > 0.8
    assert call(tmp_path, monkeypatch, "evaluate_model.py", "--split", "validation") == 0
    # On trials of others such a network says nothing; it is refused where it was asked for, or nothing else is there.
    capsys.readouterr()
    for script in ("evaluate_model.py", "attack.py", "certify.py"):
        assert call(tmp_path, monkeypatch, script) == 2
        assert "knows none of the speakers" in capsys.readouterr().err.splitlines()[-1]
    closed = checkpoint.build(
        model="resnet", model_options={"widths": (8, 16)}, classes=enrolled, sample_rate=RATE, n_samples=4000
    )
    checkpoint.save(tmp_path / "data/models/zz.pt", closed.eval(), {})
    kept = sum(splits["test"].classes[k] in enrolled for k in splits["test"].labels)
    total = len(splits["test"])
    assert 0 < kept < total
    for script in ("evaluate_model.py", "attack.py", "certify.py"):
        assert call(tmp_path, monkeypatch, script) == 0
        said = capsys.readouterr().out
        assert "left out: resnet: the model knows none" in said
        assert f"left out: {total - kept} of {total} clips, of speakers that zz does not know" in said
    results = tmp_path / "data/results"
    assert rows(results / "evaluate/accuracy.test.csv")[0]["n"] == str(kept)
    assert {row["id"].split("/")[2] for row in rows(results / "attack/rows.csv")} <= set(enrolled)
