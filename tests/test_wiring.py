"""What is configured is what runs: each test fails if a call, or a setting in the identity of rows, is left out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from src.victims import checkpoint
from tests import small_study

SHORT = ("DATA.n_test=2", "CERTIFY.sigma=0.05", "CERTIFY.n=64", "CERTIFY.attack_clips=0", "CERTIFY.attack_steps=1")
CERTIFICATES = "data/results/certify/cnn_gaussian.waveform.0.05.rows.csv"
ATTACKS = "data/results/certify/cnn_gaussian.waveform.attacks.csv"


@pytest.fixture
def study(small_study: Path, tmp_path: Path) -> Path:
    """A copy of the trained study, without results."""
    shutil.copytree(small_study, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("results", "mel"))
    return tmp_path


def falsify(path: Path, **values: str) -> None:
    """Overwrite columns of every row of a CSV file: a row that a later run returns like this was reused."""
    lines = [row | values for row in small_study.rows(path)]
    path.write_text("\n".join([",".join(lines[0]), *(",".join(line.values()) for line in lines)]) + "\n")


def column(path: Path, name: str) -> list[str]:
    return [row[name] for row in small_study.rows(path)]


def change_weights(folder: Path) -> None:
    """Another bias of the last layer: the model always answers with the last class."""
    path = folder / "data/models/cnn_gaussian.pt"
    victim, facts = checkpoint.load(path)
    last = [module for module in victim.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.bias += torch.tensor([0.0, 0.0, 0.0, 1000.0])
    checkpoint.save(path, victim, facts)


def test_certificates_of_the_same_settings_are_reused(study: Path) -> None:
    """The check of the tests below: a falsified row survives a run with the same settings."""
    small_study.run(study, "certify.py", *SHORT)
    falsify(study / CERTIFICATES, radius="0.123", predict="0")
    small_study.run(study, "certify.py", *SHORT, "CERTIFY.batch_size=32")
    assert set(column(study / CERTIFICATES, "radius")) == {"0.123"}


@pytest.mark.parametrize(
    "override",
    ["CERTIFY.n=80", "CERTIFY.n0=32", "CERTIFY.alpha=0.01", "CERTIFY.seed=1", "CERTIFY.mode=sequential",
     "DEFENSE.names=quantize"],
)  # fmt: skip
def test_certificates_of_other_settings_are_not_reused(study: Path, override: str) -> None:
    small_study.run(study, "certify.py", *SHORT)
    falsify(study / CERTIFICATES, radius="0.123", predict="0")
    small_study.run(study, "certify.py", *SHORT, override)
    assert "0.123" not in column(study / CERTIFICATES, "radius")


@pytest.mark.parametrize(
    ("defense", "change"), [("quantize", "DEFENSE.quantize.step=1000"), ("median", "DEFENSE.median.at=log_mel")]
)
def test_certificates_behind_another_defense_are_not_reused(study: Path, defense: str, change: str) -> None:
    small_study.run(study, "certify.py", *SHORT, f"DEFENSE.names={defense}")
    falsify(study / CERTIFICATES, radius="0.123", predict="0")
    small_study.run(study, "certify.py", *SHORT, f"DEFENSE.names={defense}", change)
    assert "0.123" not in column(study / CERTIFICATES, "radius")


def test_certificates_of_other_weights_are_not_reused(study: Path) -> None:
    small_study.run(study, "certify.py", *SHORT)
    assert set(column(study / CERTIFICATES, "predict")) == {"0", "1"}
    change_weights(study)
    small_study.run(study, "certify.py", *SHORT)
    assert set(column(study / CERTIFICATES, "predict")) == {"3"}


def test_certificates_of_other_clips_are_not_reused(study: Path) -> None:
    small_study.run(study, "certify.py", *SHORT)
    falsify(study / CERTIFICATES, radius="0.123", predict="0")
    samples = np.load(study / "clips/test.npy")
    np.save(study / "clips/test.npy", samples[:, ::-1])
    small_study.run(study, "certify.py", *SHORT)
    assert "0.123" not in column(study / CERTIFICATES, "radius")


DEAF = ("DEFENSE.names=lowpass", "DEFENSE.lowpass.pass_hz=100", "DEFENSE.lowpass.stop_hz=200")
"""A defense that removes all of every clip: the model behind it gives all of them the same label."""


def test_the_certified_model_is_the_defended_one(study: Path) -> None:
    small_study.run(study, "certify.py", *SHORT)
    assert column(study / CERTIFICATES, "predict") == ["0", "1"]
    small_study.run(study, "certify.py", *SHORT, *DEAF)
    assert len(set(column(study / CERTIFICATES, "predict"))) == 1


def test_a_random_defense_has_no_certificate(study: Path) -> None:
    with pytest.raises(AssertionError, match="exit code 2"):
        small_study.run(study, "certify.py", *SHORT, "DEFENSE.names=noise_at_snr")
    assert not (study / "data/results").exists()


ATTACKED = (*SHORT, "CERTIFY.attack_clips=1", "CERTIFY.baselines=quantize", "CERTIFY.radii=0.05", "CERTIFY.n=100")


@pytest.mark.parametrize(
    "change",
    ["CERTIFY.attack_steps=2", "CERTIFY.attack_draws=65", "CERTIFY.attack_n=101", "CERTIFY.radii=0.06",
     "CERTIFY.seed=1", "DEFENSE.names=lowpass", "DEFENSE.quantize.step=200", "CERTIFY.attack_clips=0", change_weights],
)  # fmt: skip
def test_attacks_with_other_settings_are_not_reused(study: Path, change: str | Callable[[Path], None]) -> None:
    small_study.run(study, "certify.py", *ATTACKED)
    falsify(study / ATTACKS, broken_at="0.777")
    if callable(change):
        change(study)
        small_study.run(study, "certify.py", *ATTACKED)
    else:
        small_study.run(study, "certify.py", *ATTACKED, change)
    assert "0.777" not in column(study / ATTACKS, "broken_at")


@pytest.mark.parametrize("harmless", ["CERTIFY.batch_size=32", "CERTIFY.baselines=median, quantize"])
def test_attacks_with_the_same_settings_are_reused(study: Path, harmless: str) -> None:
    small_study.run(study, "certify.py", *ATTACKED)
    falsify(study / ATTACKS, broken_at="0.777")
    small_study.run(study, "certify.py", *ATTACKED, harmless)
    by_classifier = {row["classifier"]: row["broken_at"] for row in small_study.rows(study / ATTACKS)}
    assert by_classifier.pop("median", "") != "0.777"
    assert by_classifier == {"smoothed": "0.777", "undefended": "0.777", "quantize": "0.777"}


def test_baselines_are_attacked_without_the_configured_defense(study: Path) -> None:
    """`undefended` is the model alone, and a baseline the only defense, whatever [DEFENSE] names."""

    def flipped() -> dict[tuple[str, str], str]:
        rows = small_study.rows(study / ATTACKS)
        return {(row["classifier"], row["idx"]): row["flipped_at"] for row in rows if row["classifier"] != "smoothed"}

    small_study.run(study, "certify.py", *ATTACKED, "CERTIFY.attack_clips=2")
    alone = flipped()
    assert len(alone) == 4
    small_study.run(study, "certify.py", *ATTACKED, *DEAF, "CERTIFY.attack_clips=2")
    assert flipped() == alone
