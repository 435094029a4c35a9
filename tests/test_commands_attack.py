"""The pieces of attack.py that are looked at: a figure of accuracy against eps for each kind of budget, and the picture
and wavs of a clip to listen to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from src import config
from src.commands import attack as attack_commands
from src.commands import selection
from src.commands.attack import AttackCommand, AttackedModel
from src.commands.selection import Trained
from src.datasets.store import FULL_SCALE
from src.distributed import Team
from src.evaluation import ATTACK_FIELDS
from src.output import figures, results
from src.victims import checkpoint
from src.victims.victim import Victim
from tests.test_attacks_universal import RATE, TIME, LoudestBand, make_clips

CPU = torch.device("cpu")
CLIPS = make_clips(1, "test").select(range(4))
Drawn = dict[str, Figure]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[Drawn]:
    """Name -> figure of what a test draws, instead of files."""
    made: Drawn = {}
    monkeypatch.setattr(figures, "save", lambda figure, path, crop=True: made.update({path.name: figure}))
    yield made
    for figure in made.values():
        figures.plt.close(figure)


def settings(folder: Path, *overrides: str) -> config.Config:
    (folder / "config.ini").write_text("[ATTACK]\nnames = pgd\neps = 0.1, 0.2, 20 dB\nspeech = no\n")
    places = [f"RESULTS.results_dir={folder / 'results'}", f"RESULTS.plot_dir={folder / 'plots'}"]
    return config.load(folder / "config.ini", [*places, *overrides])


def attacked_model(loaded: config.Config) -> AttackedModel:
    victim = Victim([], LoudestBand(), classes=CLIPS.classes, sample_rate=RATE, n_samples=TIME)
    victim = checkpoint.defend(victim, selection.configured_defenses(loaded))
    return attack_commands.attacked_model(loaded, Trained("net", "0" * 64, victim, {}), CPU)


KEPT = {"0.1": 3, "0.2": 1, "20 dB": 2, "inf": 0}
"""How many of the four clips the model keeps under an attack with this eps; it keeps all under a control."""


def report(loaded: config.Config) -> None:
    """The report on rows of all configured attacks and of their control."""
    rows = []
    for name, eps in attack_commands.attack_runs(loaded):
        for i, example in enumerate(CLIPS.ids):
            fooled = name != "random_signs" and i >= KEPT[str(eps or "inf")]
            row = dict.fromkeys(ATTACK_FIELDS, 0) | {
                "model": "net", "attack": name, "eps": str(eps or "inf"), "id": example, "label": 1, "correct": True,
                "norm": loaded.attack.norm if eps else "l2", "feasible": True, "distance": float(i + 1),
                "prediction_stage": int(not fooled), "success_stage": fooled,
            }  # fmt: skip
            rows.append({key: results.cell(value) for key, value in row.items()})
    attack_commands.report(loaded, [attacked_model(loaded)], CLIPS, rows, {}, {})


def curves(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    """Label -> points of every line."""
    return {
        str(line.get_label()): list(zip(map(float, line.get_xdata()), map(float, line.get_ydata()), strict=True))
        for line in figure.axes[0].lines
    }


def test_budgets_of_each_kind_have_a_figure_of_their_own(tmp_path: Path, drawn: Drawn) -> None:
    report(settings(tmp_path, "ATTACK.names=pgd, cw"))
    assert set(drawn) == {"security_waveform_linf.png", "security_waveform_SNR.png", "security_waveform_l2.png"}
    linf, snr, l2 = (drawn[f"security_waveform_{axis}.png"] for axis in ("linf", "SNR", "l2"))
    assert curves(linf) == {
        "net, pgd": [(0.0, 1.0), (0.1, 0.75), (0.2, 0.25)],
        "net, random_signs": [(0.0, 1.0), (0.1, 1.0), (0.2, 1.0)],
    }
    assert curves(snr) == {"net, pgd": [(20.0, 0.5)], "net, random_signs": [(20.0, 1.0)]}
    assert curves(l2) == {"net, cw": [(0.0, 1.0), (1.0, 0.75), (2.0, 0.5), (3.0, 0.25), (4.0, 0.0)]}
    assert [figure.axes[0].get_xlabel() for figure in (linf, snr, l2)] == [
        "linf of the perturbation (waveform)",
        "SNR of the perturbation (dB)",
        "l2 of the perturbation (waveform)",
    ]
    assert [figure.axes[0].xaxis_inverted() for figure in (linf, snr, l2)] == [False, True, False]


def test_the_worst_case_of_two_attacks_stands_out(tmp_path: Path, drawn: Drawn) -> None:
    report(settings(tmp_path, "ATTACK.names=pgd, fgsm", "ATTACK.eps=0.1"))
    (figure,) = drawn.values()
    widths = {line.get_label(): line.get_linewidth() for line in figure.axes[0].lines}
    usual = widths.pop("net, pgd")
    assert widths.pop("net, worst case") > usual
    assert set(widths.values()) == {usual}
    assert {line.get_label(): line.get_linestyle() for line in figure.axes[0].lines}["net, worst case"] == "-"


def test_only_the_control_is_dotted(tmp_path: Path, drawn: Drawn) -> None:
    report(settings(tmp_path, "ATTACK.names=pgd, cw", "ATTACK.eps=0.1"))
    solid = {
        line.get_label(): line.get_linestyle() == "-" for figure in drawn.values() for line in figure.axes[0].lines
    }
    assert solid == {"net, pgd": True, "net, cw": True, "net, random_signs": False}


@pytest.mark.parametrize(
    ("overrides", "title"),
    [
        ([], "Attacks at waveform, 4 clips"),
        (["ATTACK.targeted=yes"], "Attacks at waveform, targeted, 4 clips"),
        (["DEFENSE.names=quantize"], "Attacks at waveform, models behind quantize, 4 clips"),
        (
            ["DEFENSE.names=quantize", "ATTACK.stage=quantize", "INVERSION.name=gain_mask"],
            "Attacks at quantize, gain_mask, models behind quantize, 4 clips",
        ),
    ],
)
def test_the_title_says_what_was_attacked(
    tmp_path: Path, drawn: Drawn, capsys: pytest.CaptureFixture[str], overrides: list[str], title: str
) -> None:
    report(settings(tmp_path, *overrides))
    assert {figure.axes[0].get_title() for figure in drawn.values()} == {title}
    assert capsys.readouterr().out.splitlines()[0] == title


@pytest.mark.parametrize(("target", "aim"), [(-1, ""), (0, ", target 'low'"), (2, ", target 'high'")])
def test_a_kept_clip_can_be_seen_and_heard(tmp_path: Path, drawn: Drawn, target: int, aim: str) -> None:
    loaded = settings(tmp_path)
    identity = attack_commands.identity(loaded, CLIPS, CPU)
    command = AttackCommand(loaded, CLIPS, frozenset(CLIPS.ids[2:3]), identity, Team())
    eps, example = loaded.attack.eps[0], CLIPS.ids[2]
    store = command.store(Trained("net", "0" * 64, attacked_model(loaded).model.victim, {}), "pgd", eps)
    changed = CLIPS.samples[2] // 2 + 100
    store.append(changed, {"id": example, "label": 1, "length": TIME, "tags": {}})
    row: dict[str, Any] = {
        "id": example, "model": "net", "attack": "pgd", "eps": "0.1", "label": 1, "target": target, "prediction": 1,
        "prediction_wav": 2, "snr": 6.02,
    }  # fmt: skip
    place = command.export(row, store)
    folder = tmp_path / "results/attack/wavs/net/pgd_0.1"
    original, adversarial, perturbation = (
        results.read_wav(folder / f"{example}.{what}.wav") for what in ("original", "adversarial", "perturbation")
    )
    assert (original * FULL_SCALE == CLIPS.samples[2]).all()
    assert (adversarial * FULL_SCALE == changed).all()
    assert (perturbation == adversarial - original).all()
    assert tmp_path / "results/attack" / place == folder / f"{example}.adversarial.wav"
    panels = [axes for axes in drawn[f"{example}.png"].axes if axes.images]
    assert [axes.get_title() for axes in panels] == [
        "original: 'middle', heard 'middle'",
        f"pgd, eps 0.1{aim}: wav heard 'high'",
        f"perturbation: max {np.abs(perturbation).max():.2g}, SNR 6.0 dB",
    ]


def test_what_is_no_number_is_heard_as_undefined(tmp_path: Path, drawn: Drawn) -> None:
    """-1 stands for logits that are not finite; it is the last class of nothing."""
    loaded = settings(tmp_path)
    command = AttackCommand(loaded, CLIPS, frozenset(), attack_commands.identity(loaded, CLIPS, CPU), Team())
    store = command.store(attacked_model(loaded).model, "pgd", loaded.attack.eps[0])
    store.append(CLIPS.samples[0], {"id": CLIPS.ids[0], "label": 1, "length": TIME, "tags": {}})
    row = {"id": CLIPS.ids[0], "model": "net", "attack": "pgd", "eps": "0.1", "label": 1, "target": -1, "snr": 0.0}
    command.export(row | {"prediction": -1, "prediction_wav": -1}, store)
    titles = [axes.get_title() for axes in drawn[f"{CLIPS.ids[0]}.png"].axes if axes.images]
    assert "heard 'undefined'" in titles[0]
    assert titles[1] == "pgd, eps 0.1: wav heard 'undefined'"


@pytest.mark.parametrize(("rank", "shown"), [(0, True), (1, False)])
def test_one_process_of_several_shows_the_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rank: int, shown: bool
) -> None:
    loaded = settings(tmp_path)
    identity, attacked, eps = attack_commands.identity(loaded, CLIPS, CPU), attacked_model(loaded), loaded.attack.eps[0]
    command = AttackCommand(loaded, CLIPS, frozenset(), identity, Team(rank, 2))
    store = command.store(attacked.model, "random_signs", eps)
    command.craft(attacked, store, [rank], "random_signs", eps)
    assert CLIPS.ids[rank] in store
    assert ("net, random_signs, eps 0.1" in capsys.readouterr().err) is shown
