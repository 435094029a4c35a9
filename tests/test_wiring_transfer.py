"""What attack.py makes of attacks that shall transfer: why they stopped and how sure the judges are reach the rows, an
ensemble reaches the attack, and features and another clip's perturbation get the training clips."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from src import api as earshot
from src.attacks.substitutes import Substitutes
from src.datasets.store import Clips
from src.evaluation import AttackSettings, Crafter
from src.registry import INVERSIONS
from src.victims import checkpoint
from src.victims.victim import Victim
from tests.conftest import call, rows

CPU = torch.device("cpu")
KEYS = (
    "ATTACK.names=cw_transfer,transfer_pgd,feature_pgd,other_clip", "ATTACK.targeted=yes", "ATTACK.norm=l2",
    "ATTACK.eps=20 dB", "ATTACK.checks=0", "ATTACK.wavs=0", "ATTACK.speech=no", "ATTACK.fit_clips=5",
    "DATA.n_test=4", "ATTACK.cw_transfer.steps=30", "ATTACK.cw_transfer.confidence=20",
    "ATTACK.transfer_pgd.steps=3", "ATTACK.feature_pgd.steps=3", "ATTACK.other_clip.made_by=transfer_pgd",
    "ATTACK.other_clip.perturbations=4",
)  # fmt: skip


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, out: str, *settings: str, judge: str = "resnet") -> int:
    options = [part for key in (*KEYS, *settings, f"RESULTS.results_dir={out}") for part in ("--set", key)]
    return call(
        folder, monkeypatch, "attack.py", "--config", "config.ini", "--model", "resnet", "--judge", judge, *options
    )


def test_why_an_attack_stopped_and_how_sure_the_judges_are_is_in_every_row(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(workspace, monkeypatch, "transferred") == 0
    folder = workspace / "transferred/attack"
    first = (folder / "rows.csv").read_text()
    table, judged = rows(folder / "rows.csv"), rows(folder / "judged.csv")
    for lines in (table, judged):
        reasons = {row["stop"] for row in lines if row["attack"] == "cw_transfer"}
        assert reasons
        assert reasons <= {"probability", "snr", "steps"}
        assert {row["stop"] for row in lines if row["attack"] != "cw_transfer"} == {""}
        for row in lines:
            assert row["target"] != row["label"]
            assert 0 <= float(row["target_probability"]) <= float(row["probability"]) <= 1
            hit = row["prediction_wav"] == row["target"]
            assert hit == (row["target_probability"] == row["probability"])
            if row["stop"] == "probability":
                assert float(row["target_probability"]) > 0.95
            assert float(row["snr"]) >= 19.9
    columns = ("stop", "clean_probability", "probability", "target_probability")
    for row, same in zip(table, judged, strict=True):
        assert [row[name] for name in columns] == [same[name] for name in columns], "the model itself is one judge"
    assert run(workspace, monkeypatch, "transferred") == 0
    assert (folder / "rows.csv").read_text() == first
    # Rows judged anew from the stores say the same.
    for name in ("rows.csv", "rows.run.json"):
        (folder / name).unlink()
    assert run(workspace, monkeypatch, "transferred") == 0
    assert (folder / "rows.csv").read_text() == first


def test_the_ensemble_of_the_config_is_attacked(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = workspace / "data/models/second.pt"
    shutil.copy(workspace / "data/models/resnet.pt", other)
    try:
        seen: list[int] = []
        original = Substitutes.__call__

        def watched(self: Substitutes, x: Tensor) -> Tensor:
            seen.append(len(self.models))
            return original(self, x)

        monkeypatch.setattr(Substitutes, "__call__", watched)
        names = "ATTACK.names=transfer_pgd"
        assert run(workspace, monkeypatch, "together", names, "ATTACK.ensemble=resnet,second") == 0
        assert set(seen) == {2}, "the model itself is not its own partner"
        fitted = "ATTACK.names=other_clip"
        for ensemble in ("", "resnet,second"):
            assert run(workspace, monkeypatch, "together", fitted, f"ATTACK.ensemble={ensemble}") == 0
        assert len(list((workspace / "together/attack/fitted/resnet").iterdir())) == 2, "another fit for another model"
        assert run(workspace, monkeypatch, "together", names, "ATTACK.ensemble=missing") == 2
        assert run(workspace, monkeypatch, "no_layer", "ATTACK.feature_pgd.layer=conv9") == 2
        assert not (workspace / "no_layer").exists()
        assert run(workspace, monkeypatch, "together", names, "ATTACK.ensemble=second", "ATTACK.stage=log_mel") == 2
    finally:
        other.unlink()


@pytest.fixture
def victim(trained_net: tuple[Victim, Tensor, Tensor]) -> Victim:
    return trained_net[0]


def test_an_ensemble_reorders_classes_and_refuses_others(victim: Victim) -> None:
    def crafter(victim: Victim, *partners: Crafter) -> Crafter:
        return Crafter(victim, AttackSettings(), INVERSIONS["gain_mask"], CPU, partners)

    def renamed(classes: tuple[str, ...], order: list[int]) -> Victim:
        class Reordered(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.classifier = victim.classifier

            def forward(self, features: Tensor) -> Tensor:
                return self.classifier(features)[:, order]  # type: ignore[misc]

        return Victim(
            list(victim.stages), Reordered(), classes=classes, sample_rate=victim.sample_rate,  # type: ignore[arg-type]
            n_samples=victim.n_samples,
        ).eval()  # fmt: skip

    order = [2, 0, 3, 1]
    shuffled = renamed(tuple(victim.classes[i] for i in order), order)
    x = 0.1 * torch.randn(2, victim.n_samples)
    valid = torch.ones_like(x, dtype=torch.bool)
    together = crafter(victim, crafter(shuffled)).attacked_model(("a", "b"), x, valid)
    torch.testing.assert_close(together(x), victim(x).log_softmax(1), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="same classes"):
        crafter(victim, crafter(renamed(("p", "q", "r", "s"), order)))


def test_an_ensemble_from_python_changes_what_is_made(victim: Victim, clips: Clips) -> None:
    with torch.no_grad():
        clips = replace(clips, labels=victim(clips.waveforms()).argmax(1))
    options = {"steps": 1, "strength": 0.0}
    torch.manual_seed(0)
    stranger = Victim(
        [], torch.nn.Sequential(torch.nn.Unflatten(1, (1, -1)), torch.nn.Conv1d(1, 4, 64, 32), torch.nn.Tanh(),
                                torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten()),
        classes=victim.classes, sample_rate=victim.sample_rate, n_samples=victim.n_samples,
    ).eval()  # fmt: skip
    alone, same, both = (
        earshot.attack(victim, clips, "transfer_pgd", eps="20 dB", norm="l2", speech=False, options=options, **extra)
        for extra in ({}, {"ensemble": [victim]}, {"ensemble": [stranger]})
    )
    assert abs(alone.clips.samples - same.clips.samples).max() <= 2, "the same model twice is that model"
    assert abs(alone.clips.samples - both.clips.samples).max() > 2
    judged = earshot.judge(stranger, both)
    assert all(math.isnan(row["target_probability"]) for row in judged), "there is no target"
    assert all(0.25 <= row["clean_probability"] <= 1 for row in judged)


@pytest.mark.parametrize("targeted", [False, True])
def test_features_of_a_network_that_sees_chunks_are_those_of_the_clip(clips: Clips, targeted: bool) -> None:
    """Clips of three, two and one chunks in one batch, whose number is not that of the examples."""
    torch.manual_seed(0)
    chunked = checkpoint.build(
        model="vgg13", front_end="tagging_mel", classes=clips.classes, sample_rate=clips.sample_rate,
        n_samples=clips.n_samples, model_options={"width": 0.01, "chunk": 32},
        front_end_options={"hop_length": 160, "normalize": "none"},
    ).eval()  # fmt: skip
    few = replace(clips.select(range(4)), lengths=torch.tensor([16000, 16000, 9600, 4000]))
    with torch.no_grad():
        few = replace(few, labels=chunked(few.waveforms(), few.valid()).argmax(1))
    made = [
        earshot.attack(
            chunked, few, "feature_pgd", eps="20 dB", norm="l2", targeted=targeted, speech=False,
            fit_clips=clips.select(range(5)), options={"steps": 2, "layer": "blocks.5", "weight": weight},
        )
        for weight in (0.0, 100.0)
    ]  # fmt: skip
    assert all(fact["feasible"] for fact in made[1].facts)
    changed = (made[0].clips.samples != made[1].clips.samples).any(1)
    assert changed.all(), "the features count for every clip"
