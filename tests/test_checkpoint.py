"""A checkpoint holds the whole victim, executes nothing, and is refused whole when anything is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from src.victims import checkpoint

SMALL = {"n_fft": 256, "win_length": 256, "hop_length": 128}


def victim(**changes: object):
    settings = {
        "model": "bc_resnet", "front_end": "log_mel", "front_end_options": {}, "classes": ["a", "b", "c"],
        "sample_rate": 16000, "n_samples": 16000,
    }  # fmt: skip
    return checkpoint.build(**{**settings, **changes})  # type: ignore[arg-type]


def test_round_trip(tmp_path: Path) -> None:
    saved = victim(front_end_options={"normalize": "dataset"}).eval()
    saved.stages[-1].fit(torch.randn(4, 40, 101) * 3 + 1)
    checkpoint.save(tmp_path / "a.pt", saved, {"epochs": 3})
    back, facts = checkpoint.load(tmp_path / "a.pt")
    x = torch.randn(2, 16000) * 0.1
    assert torch.equal(back(x), saved(x))
    assert facts == {"epochs": 3}
    assert back.classes == ("a", "b", "c")
    assert not back.training


def test_missing_model_lists_those_there(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.pt", victim(), {})
    with pytest.raises(FileNotFoundError, match="trained models there: a"):
        checkpoint.load(tmp_path / "b.pt")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 half a zip"])
def test_foreign_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match="not an Earshot checkpoint"):
        checkpoint.load(tmp_path / "a.pt")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("executed"),)


def test_pickled_code_is_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "recipe": Evil()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="not an Earshot checkpoint"):
        checkpoint.load(tmp_path / "a.pt")
    assert not (tmp_path / "executed").exists()


def test_weights_of_another_front_end_are_refused(tmp_path: Path) -> None:
    saved = victim(model="cnn", front_end_options={"n_mels": 96})
    checkpoint.save(tmp_path / "a.pt", saved, {})
    content = checkpoint.read(tmp_path / "a.pt")
    content["recipe"]["front_end_options"] = {"n_mels": 64}
    checkpoint.write(tmp_path / "a.pt", content)
    with pytest.raises(ValueError, match="do not fit the front end"):
        checkpoint.load(tmp_path / "a.pt")


def test_data_of_another_kind_is_refused() -> None:
    built = victim()
    with pytest.raises(ValueError, match="another clip length"):
        checkpoint.check_fits(built, Path("a.pt"), sample_rate=16000, n_samples=8000)
    with pytest.raises(ValueError, match="another sample rate"):
        checkpoint.check_fits(built, Path("a.pt"), sample_rate=8000, n_samples=16000)
    checkpoint.check_fits(built, Path("a.pt"), sample_rate=16000, n_samples=16000)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt"
    checkpoint.save(path, victim(), {"run": 1})

    def full_disk(*_: object, **__: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="cannot write"):
        checkpoint.save(path, victim(), {"run": 2})
    assert checkpoint.load(path)[1] == {"run": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown model"):
        victim(model="bc_resnets")
    with pytest.raises(ValueError, match="unknown front end"):
        victim(front_end="logmel")
