"""The store: bit-exact where it can be, complete or absent, and every bad recording named."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from prepare_dataset import main
from src import cli
from src.datasets import writer
from src.datasets.decode import DamagedError, loudest, read, to_clip
from src.datasets.prepare import DataSettings, prepare
from src.datasets.source import Sound
from src.datasets.store import SPLITS, load

RATE = 16000
Capture = pytest.CaptureFixture[str]


def corpus(root: Path, takes: int = 10, classes: tuple[str, ...] = ("a", "b")) -> Path:
    """A tiny folder of classes: noise that differs from file to file."""
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(takes):
            x = np.random.default_rng(100 * c + i).integers(-9000, 9000, RATE // 10).astype(np.int16)
            soundfile.write(root / name / f"{i}.wav", x, RATE)
    return root


def settings(tmp_path: Path, **changes: object) -> DataSettings:
    return DataSettings(**{"source": "folder", "data_dir": tmp_path / "store", "seconds": 0.1, **changes})  # type: ignore[arg-type]


def test_sixteen_bits_pass_bit_by_bit(tmp_path: Path) -> None:
    root = corpus(tmp_path / "in")
    facts, fresh = prepare(settings(tmp_path), {"source_dir": root})
    assert fresh
    assert not facts["skipped"]
    seen = set()
    for split in SPLITS:
        clips = load(tmp_path / "store", split)
        for i, name in enumerate(clips.ids):
            original, _ = soundfile.read(root / name, dtype="int16")
            assert np.array_equal(clips.samples[i], original)
            assert clips.classes[clips.labels[i]] == name.split("/")[0]
            assert clips.lengths[i] == len(original)
            seen.add(name)
        assert np.array_equal(clips.waveforms().numpy() * 32768, clips.samples)
        assert sum(facts["counts"][split].values()) == len(clips)
    assert len(seen) == 20


def test_second_run_does_nothing_and_other_settings_prepare_anew(tmp_path: Path) -> None:
    root, options = corpus(tmp_path / "in"), {"source_dir": tmp_path / "in"}
    assert prepare(settings(tmp_path), options)[1]
    before = (tmp_path / "store" / "train.npy").stat()
    assert not prepare(settings(tmp_path), options)[1]
    assert (tmp_path / "store" / "train.npy").stat().st_mtime_ns == before.st_mtime_ns
    assert not prepare(settings(tmp_path, n_test=3), options)[1]
    assert prepare(settings(tmp_path, seconds=0.05), options)[1]
    assert load(tmp_path / "store", "train").n_samples == RATE // 20
    soundfile.write(root / "a" / "new.wav", np.zeros(100, np.int16) + 5, RATE)
    assert prepare(settings(tmp_path, seconds=0.05), options)[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "store"]


def test_result_does_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    root = corpus(tmp_path / "in")
    for workers in (1, 3):
        prepare(settings(tmp_path, data_dir=tmp_path / str(workers)), {"source_dir": root}, workers=workers)
    for name in writer.files_of(SPLITS):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def bad_files(folder: Path) -> dict[str, str]:
    """Every kind of bad file -> a word of the reason it is skipped for."""
    wav = folder / "0.wav"
    content = wav.read_bytes()
    (folder / "truncated.wav").write_bytes(content[: len(content) // 2])
    (folder / "text.wav").write_text("this is no sound\n")
    (folder / "nothing.wav").write_bytes(b"")
    soundfile.write(folder / "no_samples.wav", np.zeros(0, np.int16), RATE)
    x = np.zeros(RATE // 10, np.float32)
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        x[7] = value
        soundfile.write(folder / f"{name}.wav", x, RATE, subtype="FLOAT")
    soundfile.write(folder / "cut.flac", np.random.default_rng(0).uniform(-0.5, 0.5, RATE), RATE)
    flac = (folder / "cut.flac").read_bytes()
    (folder / "cut.flac").write_bytes(flac[: len(flac) // 2])
    return {
        "truncated.wav": "truncated",
        "text.wav": "unreadable",
        "nothing.wav": "empty",
        "no_samples.wav": "empty",
        "nan.wav": "NaN",
        "inf.wav": "NaN",
        "cut.flac": "",
    }


def test_bad_files_are_named_and_skipped_or_stop_a_strict_run(tmp_path: Path) -> None:
    root = corpus(tmp_path / "in")
    bad = bad_files(root / "a")
    facts, _ = prepare(settings(tmp_path), {"source_dir": root})
    reasons = {Path(entry["id"]).name: entry["reason"] for entry in facts["skipped"]}
    assert set(reasons) == set(bad)
    assert all(word in reasons[name] for name, word in bad.items())
    clips = [load(tmp_path / "store", split) for split in SPLITS]
    assert sum(map(len, clips)) == 20
    for split in clips:  # the gaps of skipped files are closed: each row still is its file
        for i, name in enumerate(split.ids):
            assert np.array_equal(split.samples[i], soundfile.read(root / name, dtype="int16")[0])
    for where in ("store", "other"):  # an old store with skipped files does not satisfy strict either
        with pytest.raises(ValueError, match=r"a/\w+\.(wav|flac): .*strict = yes"):
            prepare(settings(tmp_path, strict=True, data_dir=tmp_path / where), {"source_dir": root})
    assert not (tmp_path / "other").exists()


def test_any_rate_and_channel_count(tmp_path: Path) -> None:
    t = np.arange(192000) / 192000
    tone = 0.5 * np.sin(2 * np.pi * 1000 * t)
    soundfile.write(tmp_path / "x.wav", np.stack([tone * k / 4.5 for k in range(1, 9)], 1), 192000, subtype="PCM_24")
    clip, length = to_clip(read(tmp_path / "x.wav"), RATE, RATE)
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    assert length == RATE
    assert np.abs(clip / 32768 - expected)[200:-200].max() < 2e-3


def test_crop_keeps_the_loudest_part_and_padding_is_silence() -> None:
    x = np.zeros(5 * RATE, np.float32)
    x[3 * RATE : 4 * RATE] = 0.5
    clip, length = to_clip(Sound(x[:, None], RATE), RATE, RATE)
    assert length == RATE
    assert (clip == 16384).all()
    clip, length = to_clip(Sound(x[3 * RATE : 3 * RATE + 100, None], RATE), RATE, RATE)
    assert length == 100
    assert (clip[:100] == 16384).all()
    assert not clip[100:].any()
    assert loudest(np.zeros(10), 4).shape == (4,)
    loud = np.array([[1.5], [-1.5], [1.0]], np.float32)
    assert to_clip(Sound(loud, RATE), RATE, 3)[0].tolist() == [32767, -32768, 32767]


def test_empty_sound_is_refused() -> None:
    with pytest.raises(DamagedError, match="empty"):
        read(Sound(np.zeros((0, 1), np.float32), RATE))


def test_missing_folder_unknown_class_and_empty_split(tmp_path: Path) -> None:
    root = corpus(tmp_path / "in", takes=3, classes=("bird", "dog"))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        prepare(settings(tmp_path), {"source_dir": tmp_path / "nowhere"})
    with pytest.raises(ValueError, match="unknown class 'brid'; did you mean 'bird'"):
        prepare(settings(tmp_path, include_dirs=("brid",)), {"source_dir": root})
    with pytest.raises(ValueError, match="the split 'validation' is empty"):
        prepare(settings(tmp_path), {"source_dir": root, "validation": 0.0, "test": 0.5})
    with pytest.raises(ValueError, match="nothing is left to train on"):
        prepare(settings(tmp_path), {"source_dir": root, "validation": 0.5, "test": 0.5})
    assert not (tmp_path / "store").exists()


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    root = corpus(tmp_path / "in")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds other files \(thesis.tex"):
        prepare(settings(tmp_path), {"source_dir": root})
    assert (tmp_path / "store" / "thesis.tex").exists()
    with pytest.raises(ValueError, match="holds other files"):
        prepare(settings(tmp_path, data_dir=root), {"source_dir": root})


def test_interrupted_run_leaves_the_old_store_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"source_dir": corpus(tmp_path / "in")}
    prepare(settings(tmp_path), options)
    old = (tmp_path / "store" / "train.npy").read_bytes()
    put, calls = writer.SplitWriter.put, []

    def interrupted(self: writer.SplitWriter, *args: object, **keywords: object) -> None:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        put(self, *args, **keywords)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(writer.SplitWriter, "put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(settings(tmp_path, seconds=0.05), options)
    assert (tmp_path / "store" / "train.npy").read_bytes() == old
    left = tmp_path / ".store.preparing"  # what a kill leaves, which nothing can clean up at once
    left.mkdir()
    (left / "train.npy").write_bytes(b"half")
    (left / "dataset.json").write_text(json.dumps({"fingerprint": "x"}))
    assert prepare(settings(tmp_path, seconds=0.05), options)[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "store"]


def test_two_runs_at_once(tmp_path: Path) -> None:
    root = corpus(tmp_path / "in")
    with writer.replacing(tmp_path / "store") as folder:
        with pytest.raises(ValueError, match="another run is preparing it"):
            prepare(settings(tmp_path), {"source_dir": root})
        for name in writer.files_of(SPLITS):
            (folder / name).write_text("{}")
    assert (tmp_path / "store").is_dir()


def test_full_disk_through_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    root, store = corpus(tmp_path / "in"), tmp_path / "store"
    (tmp_path / "c.ini").write_text(
        f"[DATA]\nsource = folder\ndata_dir = {store}\n[DATA.folder]\nsource_dir = {root}\n"
    )
    monkeypatch.setattr(sys, "argv", ["prepare_dataset.py", "--config", str(tmp_path / "c.ini")])
    monkeypatch.delenv("EARSHOT_TRACEBACK", raising=False)

    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, unlimited[1]))
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.run(main)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.ini", "in"]

    cli.run(main)
    assert "prepared in" in capsys.readouterr().out
    cli.run(main)
    assert "already prepared" in capsys.readouterr().out


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert DataSettings(data_dir=Path("~/x")).data_dir == Path("/somewhere/x")
