"""What is configured is what attack.py runs: each test fails if one connection between config, victim, attack, judge
and rows is left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from src import config
from src.budget import Budget
from src.commands import attack as attack_commands
from src.datasets import crafted as crafted_store
from src.datasets.store import Clips
from src.evaluation import AttackSettings, Crafter
from src.registry import ATTACKS, INVERSIONS
from src.victims import checkpoint
from src.victims.victim import Victim
from tests.conftest import call, rows

CPU = torch.device("cpu")


@pytest.fixture
def victim(trained_net: tuple[Victim, Tensor, Tensor]) -> Victim:
    return trained_net[0]


def labeled_by(victim: Victim, clips: Clips) -> Clips:
    with torch.no_grad():
        return replace(clips, labels=victim(clips.waveforms()).argmax(1))


def craft(
    victim: Victim, clips: Clips, eps: float = 0.01, inversion: Callable[..., Tensor] | None = None, **keys: object
):
    settings = AttackSettings(**{"speech": False, **keys})  # type: ignore[arg-type]
    crafter = Crafter(victim, settings, inversion or INVERSIONS["gain_mask"], CPU)
    return [clip.facts for clip in crafter.craft(clips, "pgd", {"steps": 5}, Budget(eps))]


def test_a_defense_without_gradient_is_attacked_through_bpda(victim: Victim, clips: Clips) -> None:
    defended = checkpoint.defend(victim, [{"name": "quantize", "options": {"step": 256}}])
    clips = labeled_by(defended, clips)
    fooled = {
        adaptive: sum(f["prediction_stage"] != f["label"] for f in craft(defended, clips, 0.02, adaptive=adaptive))
        for adaptive in (True, False)
    }
    assert fooled[True] > fooled[False]
    assert fooled[True] >= len(clips) // 2


def test_a_random_defense_is_attacked_through_eot(
    victim: Victim, clips: Clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten draws per gradient: the random stage is evaluated ten times as often as the attack asks."""
    defended = checkpoint.defend(victim, [{"name": "noise_at_snr"}])
    draws: list[int] = []
    stage = type(defended.defenses[0])
    draw = stage.draw
    monkeypatch.setattr(stage, "draw", lambda self, x, rng: draws.append(len(x)) or draw(self, x, rng))
    clips = labeled_by(victim, clips.select([0]))
    counts = {}
    for eot_draws in (1, 10):
        draws.clear()
        craft(defended, clips, eot_draws=eot_draws, targeted=True)
        counts[eot_draws] = len(draws)
    assert counts[10] >= counts[1] + 9


def test_the_sound_of_the_inversion_is_what_is_judged(victim: Victim, clips: Clips) -> None:
    """An inversion that plays another clip: audio and wav are judged by that, and the control too."""
    with torch.no_grad():
        labels = victim(clips.waveforms()).argmax(1)
    other = int((labels != labels[0]).nonzero()[0]) if bool((labels != labels[0]).any()) else 0
    played = clips.waveforms([other])

    def inversion(head: object, z: Tensor, x: Tensor, *, rng: object) -> Tensor:
        return played.expand_as(x)

    (fact,) = craft(
        victim, labeled_by(victim, clips.select([0])), 1e-6, inversion, stage="log_mel", mask="none", targeted=True
    )
    with torch.no_grad():
        expected = int(victim(played).argmax())
    assert expected != fact["prediction"], "the two clips must differ for this test to mean anything"
    assert fact["prediction_audio"] == expected
    assert fact["prediction_inversion"] == expected


SMALL = ["ATTACK.names=fgsm", "ATTACK.eps=0.001", "ATTACK.checks=0", "ATTACK.wavs=0", "DATA.n_test=4"]


def run(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, folder: str, *overrides: str, options: tuple[str, ...] = ()
) -> int:
    sets = [*SMALL, f"RESULTS.results_dir={folder}", *overrides]
    return call(workspace, monkeypatch, "attack.py", *options, *(part for key in sets for part in ("--set", key)))


def test_configured_defenses_are_in_the_attacked_model(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quantizer to two levels leaves silence or noise: every clean prediction is that of the defended model."""
    strong = ["DEFENSE.names=quantize", "DEFENSE.quantize.step=30000"]
    assert run(workspace, monkeypatch, "behind", *strong) == 0
    assert run(workspace, monkeypatch, "plain") == 0
    behind, plain = (rows(workspace / folder / "attack/rows.csv") for folder in ("behind", "plain"))
    (model,) = (workspace / "data/models").glob("*.pt")
    victim = checkpoint.defend(checkpoint.load(model)[0], [{"name": "quantize", "options": {"step": 30000}}])
    from src.datasets import store

    clips = store.load(workspace / "clips", "test")
    with torch.no_grad():
        expected = dict(zip(clips.ids, victim(clips.waveforms()).argmax(1).tolist(), strict=True))
    assert all(int(row["prediction"]) == expected[row["id"]] for row in behind)
    assert [row["prediction"] for row in behind] != [row["prediction"] for row in plain]


def test_the_undefended_model_is_transferred_from(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ["DEFENSE.names=quantize", "ATTACK.checks=2"]
    assert run(workspace, monkeypatch, "transfer", *args) == 0
    (signs,) = json.loads((workspace / "transfer/attack/manifest.json").read_text())["signs"].values()
    assert "transfer_is_better" in {sign["name"] for sign in signs}
    assert run(workspace, monkeypatch, "transfer2", "ATTACK.checks=2") == 0
    (signs,) = json.loads((workspace / "transfer2/attack/manifest.json").read_text())["signs"].values()
    assert "transfer_is_better" not in {sign["name"] for sign in signs}


@pytest.mark.parametrize(
    "change",
    [
        "INVERSION.name=nnls", "INVERSION.griffin_lim.iterations=3", "DEFENSE.names=median", "DEFENSE.median.width=3",
        "DEFENSE.median.at=magnitude", "ATTACK.fgsm.loss=margin", "ATTACK.norm=l2", "ATTACK.stage=mel", "ATTACK.seed=3",
        "ATTACK.mask=none", "ATTACK.targeted=yes", "ATTACK.adaptive=no", "ATTACK.eot_draws=3", "ATTACK.silence_db=20",
        "ATTACK.speech=no",
    ],
)  # fmt: skip
def test_rows_of_other_settings_are_other_rows(workspace: Path, clips: Clips, change: str) -> None:
    base = ["DEFENSE.names=median"] if change.startswith("DEFENSE.median") else []

    def identity(*overrides: str, of: Clips = clips) -> str:
        settings = config.load(workspace / "config.ini", [*SMALL, *base, *overrides])
        return json.dumps(attack_commands.identity(settings, of, CPU), sort_keys=True, default=str)

    assert identity() == identity()
    assert identity(change) != identity()
    assert identity(of=clips.select(range(3))) != identity()
    for free in ("ATTACK.batch_size=7", "ATTACK.checks=3", "ATTACK.names=pgd", "ATTACK.eps=0.5"):
        assert identity(free) == identity(), "what stands in the rows, or changes none, keeps them"


def test_self_test_plants_and_searches(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["ATTACK.names=fgsm,pgd,ddn,fmn", "ATTACK.eps=0.002"]
    assert run(workspace, monkeypatch, "selftest", *args, options=("--self-test",)) == 0
    printed = capsys.readouterr().out.splitlines()
    lines = [line for line in printed if "planted adversarial examples" in line]
    assert [line.split(",")[1].strip() for line in lines] == ["fgsm", "pgd", "fmn"], "each attack, no control"
    assert "ddn: not tested (no norm linf)" in printed
    assert not (workspace / "selftest").exists()


def test_a_second_judge_costs_no_gradients(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(workspace, monkeypatch, "judged") == 0
    folder = workspace / "judged/attack"
    first = (folder / "rows.csv").read_text()
    (folder / "rows.csv").unlink()
    (folder / "rows.run.json").unlink()

    def forbidden(*args: object, **kwargs: object) -> Tensor:
        pytest.fail("a gradient was computed, or an attack was run")

    monkeypatch.setattr(torch.autograd, "grad", forbidden)
    for name in ("fgsm", "random_signs"):
        monkeypatch.setattr(ATTACKS[name], "function", forbidden)
    judges = ("--judge", "resnet", "--judge", "resnet+quantize")
    assert run(workspace, monkeypatch, "judged", options=judges) == 0
    assert (folder / "rows.csv").read_text() == first
    judged = rows(folder / "judged.csv")
    assert {row["judge"] for row in judged} == {"resnet", "resnet+quantize"}
    rows_of_run = {(row["attack"], row["id"]): row for row in rows(folder / "rows.csv")}
    for row in judged:
        if row["judge"] == "resnet":
            assert row["prediction_wav"] == rows_of_run[row["attack"], row["id"]]["prediction_wav"]
            assert row["success_wav"] == rows_of_run[row["attack"], row["id"]]["success_wav"]
    table = rows(folder / "judged.summary.csv")
    assert len(table) == 4


def test_what_was_crafted_before_an_interruption_is_kept(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append, stored = crafted_store.CraftedStore.append, list[str]()

    def stop_after_two(self: crafted_store.CraftedStore, samples: object, facts: dict[str, object]) -> None:
        if len(stored) == 2:
            raise KeyboardInterrupt
        stored.append(str(facts["id"]))
        append(self, samples, facts)  # type: ignore[arg-type]

    monkeypatch.setattr(crafted_store.CraftedStore, "append", stop_after_two)
    assert run(workspace, monkeypatch, "stopped_store") == 130
    again: list[str] = []
    monkeypatch.setattr(
        crafted_store.CraftedStore, "append",
        lambda self, samples, facts: again.append(facts["id"]) or append(self, samples, facts),
    )  # fmt: skip
    assert run(workspace, monkeypatch, "stopped_store") == 0
    assert not set(stored) & set(again[: 4 - len(stored)])
    assert len(again) == 2 + 4, "two of fgsm, four of the control"


def test_the_rows_name_the_judge_and_the_wav(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(workspace, monkeypatch, "named", "ATTACK.wavs=1") == 0
    folder = workspace / "named/attack"
    table = rows(folder / "rows.csv")
    assert {row["judge"] for row in table} == {"resnet"}
    wavs = [row["wav"] for row in table if row["wav"]]
    assert len(wavs) == 2, "one clip, two attacks"
    from src.output import results

    for row in table:
        if row["wav"]:
            x_adv = results.read_wav(folder / row["wav"])
            (store,) = (folder / "crafted/resnet").glob(f"{row['attack']}_*")
            clips, _ = crafted_store.read_clips(store, [row["id"]])
            assert (clips.waveforms()[0].numpy() == x_adv).all()


def test_a_model_trained_behind_a_defense_keeps_it(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(name: str, *overrides: str) -> int:
        sets = ["RESULTS.model_dir=defended", "RESULTS.results_dir=defended_results", *SMALL, *overrides]
        return call(workspace, monkeypatch, name, *(part for key in sets for part in ("--set", key)))

    train = [
        "TRAINING.epochs=1",
        "DEFENSE.names=median,quantize",  # not the order of the chain, and one key at its default
        "DEFENSE.quantize.step=128",
        "DEFENSE.median.at=log_mel",
        "DEFENSE.median.width=3",
    ]
    assert script("train_model.py", *train) == 0
    victim, _ = checkpoint.load(workspace / "defended/resnet_median_at_log_mel_quantize.pt")
    assert [(defense.name, defense.position) for defense in victim.defenses] == [
        ("quantize", "waveform"),
        ("median", "log_mel"),
    ]
    assert script("evaluate_model.py") == 0
    assert script("attack.py", *train[1:]) == 0, "the same defenses are not put there twice"
    assert script("attack.py", "DEFENSE.names=mp3") == 2
    assert "trained behind quantize, median (width 3) at log_mel, [DEFENSE] asks for mp3" in capsys.readouterr().err


def test_evaluate_and_certify_stand_behind_the_defense(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(name: str, folder: str, *overrides: str) -> int:
        sets = [f"RESULTS.results_dir={folder}", "DATA.n_test=3", *overrides]
        return call(workspace, monkeypatch, name, *(part for key in sets for part in ("--set", key)))

    strong = ["DEFENSE.names=quantize", "DEFENSE.quantize.step=30000"]
    for name, pattern in (("evaluate_model.py", "evaluate/accuracy.test.csv"), ("certify.py", "certify/*.rows.csv")):
        assert script(name, "ev_plain") == 0
        assert script(name, "ev_behind", *strong) == 0
        plain, behind = (next((workspace / f).glob(pattern)) for f in ("ev_plain", "ev_behind"))
        timeless = [[{k: v for k, v in row.items() if k != "time"} for row in rows(path)] for path in (plain, behind)]
        assert timeless[0] != timeless[1]
    capsys.readouterr()
    assert script("certify.py", "ev_random", "DEFENSE.names=noise_at_snr") == 2
    assert "no certificate is sound" in capsys.readouterr().err
    assert not (workspace / "ev_random").exists()
