"""Controls are recognized by their specification, whatever their name: nothing searches them for signs of failure, and
the figures draw them dotted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from src import config
from src.attacks.registration import spec_of
from src.commands import sanity
from src.commands.attack import attacked_model
from src.commands.selection import Trained
from src.datasets.store import FULL_SCALE, Clips, to_int16
from src.output import figures
from src.registry import ATTACKS
from src.victims.victim import Victim

CONTROLS = {name for name in ATTACKS.names() if spec_of(name).kind == "control"}


def test_which_attacks_are_controls() -> None:
    assert sorted(CONTROLS) == ["other_clip", "random_gaussian", "random_signs", "random_uniform", "time_shuffled"]
    assert all(spec_of(name).has_budget for name in CONTROLS)


@pytest.fixture
def loaded(tmp_path: Path) -> config.Config:
    path = tmp_path / "config.ini"
    path.write_text(
        "[ATTACK]\nnames = pgd, time_shuffled, random_uniform\neps = 0.01\nspeech = no\n[ATTACK.pgd]\nsteps = 3\n"
    )
    return config.load(path)


def test_no_verdict_on_a_control(loaded: config.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = to_int16(np.random.default_rng(0).normal(0, 0.1, (4, 800)))
    victim = Victim([], nn.Sequential(nn.Linear(800, 3)), classes="abc", sample_rate=8000, n_samples=800)
    with torch.no_grad():
        y = victim(torch.from_numpy(samples.astype(np.float32) / FULL_SCALE)).argmax(1)
    clips = Clips(samples, y, torch.full((4,), 800), ("a", "b", "c", "d"), ("a", "b", "c"), 8000, False, "test")
    attacked = attacked_model(loaded, Trained("net", "0" * 64, victim, {}), torch.device("cpu"))
    same = {
        "model": "net",
        "eps": "0.01",
        "correct": "1",
        "success_stage": "0",
        "success_wav": "0",
        "feasible": "1",
        "budget": "0.1",
    }
    rows = [
        {**same, "attack": name, "id": i}
        for name in ("pgd", "time_shuffled", "random_uniform", "random_signs")
        for i in clips.ids
    ]
    signs, searched = sanity.search(loaded, [attacked], clips, rows, {}, tmp_path / "manifest.json")
    assert set(signs) == set(searched) == {"net, pgd"}
    sanity.plant_and_search(loaded, [attacked], clips)
    printed = capsys.readouterr().out
    assert "net, pgd, eps 0.01" in printed
    assert not any(f"{name}, eps" in printed for name in CONTROLS)


def test_controls_are_drawn_dotted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    points = [
        {"model": "net", "attack": name, "eps": eps, "accuracy": 0.5, "low": 0.4, "high": 0.6}
        for name in ("random_start", "time_shuffled", "pgd")
        for eps in (0.1, 0.2)
    ]
    figures.security(
        tmp_path / "a.png", points, title="", x_label="", falling=False, controls={"time_shuffled", "random_signs"}
    )
    styles = {line.get_label(): line._unscaled_dash_pattern[1] for line in drawn[0].axes[0].get_lines()}  # type: ignore[attr-defined]
    assert styles["net, random_start"] is None, "an attack whose name only looks like a control's"
    assert styles["net, time_shuffled"] == [1, 1.5] or tuple(styles["net, time_shuffled"]) == (1, 1.5)
    assert tuple(styles["net, pgd"]) != (1, 1.5)
