"""The toolkit from Python: what the README's example promises, and one clear error for what cannot be."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from src import api as earshot
from src.budget import Budget
from src.datasets.store import Clips
from src.evaluation import AttackSettings, Crafter
from src.output import results
from src.registry import INVERSIONS
from src.victims import checkpoint
from src.victims.victim import Victim
from tests.conftest import ROOT


@pytest.fixture
def victim(trained_net: tuple[Victim, torch.Tensor, torch.Tensor]) -> Victim:
    return trained_net[0]


def own_labels(victim: Victim, clips: Clips) -> Clips:
    """The clips with the labels that the model gives them, so that there is something to change."""
    with torch.no_grad():
        return replace(clips, labels=victim(clips.waveforms()).argmax(1))


def test_the_example_of_the_readme_runs(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    code = code.replace("data/synthetic", "clips")
    monkeypatch.chdir(workspace)
    space: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), space)
    assert (workspace / "adversarial.wav").is_file()
    assert all(row["success_wav"] in (True, False) for row in space["rows"])  # type: ignore[attr-defined]
    assert space["certificate"].radius >= 0  # type: ignore[attr-defined]


def test_attack_is_what_the_scripts_do(victim: Victim, clips: Clips) -> None:
    clips = own_labels(victim, clips)
    made = earshot.attack(victim, clips, "pgd", eps=0.002, options={"steps": 3}, speech=False)
    crafter = Crafter(victim, AttackSettings(speech=False), INVERSIONS["gain_mask"], torch.device("cpu"))
    crafted = list(crafter.craft(clips, "pgd", {"steps": 3}, Budget(0.002)))
    assert all((made.clips.samples[i] == clip.samples).all() for i, clip in enumerate(crafted))
    rows = earshot.judge(victim, made)
    assert [row["id"] for row in rows] == list(clips.ids)
    assert all(row["correct"] for row in rows)
    assert max(row["linf"] for row in rows) == 65 / 32768, "0.002 is 65.5 steps of 16 bits"


def test_another_model_judges_the_wav_alone(victim: Victim, clips: Clips) -> None:
    clips = own_labels(victim, clips)
    made = earshot.attack(victim, clips, "pgd", eps=0.01, options={"steps": 3}, speech=False)
    defended = checkpoint.defend(victim, [{"name": "quantize", "options": {"step": 1024}}])
    rows = earshot.judge(defended, made)
    with torch.no_grad():
        labels = defended(made.clips.waveforms()).argmax(1).tolist()
        clean = defended(clips.waveforms()).argmax(1).tolist()
    assert [row["prediction_wav"] for row in rows] == labels
    assert [row["prediction"] for row in rows] == clean
    assert {row["prediction_stage"] for row in rows} == {"none"}


def test_certify_and_wav(victim: Victim, clips: Clips, tmp_path: Path) -> None:
    x = clips.waveforms()[0]
    certificate = earshot.certify(victim, x, sigma=0.01, n0=16, n=64)
    assert certificate.n_used == 80
    assert 0 <= certificate.radius < 0.01 * 4
    earshot.write_wav(tmp_path / "x.wav", x, clips.sample_rate)
    assert torch.equal(torch.from_numpy(results.read_wav(tmp_path / "x.wav")), x)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("pdg", {"eps": 0.1}, "did you mean 'pgd'"),
        ("pgd", {"eps": 0.1, "options": {"step_count": 3}}, "steps"),
        ("pgd", {"eps": 0.1, "norm": "l0"}, "choices: linf, l2, l1"),
        ("pgd", {"eps": "loud"}, "budget"),
        ("pgd", {"eps": 0.1, "stage": "meld"}, "no representation 'meld'"),
        ("pgd", {}, "pgd needs a budget: give eps"),
        ("random_signs", {}, "random_signs needs a budget: give eps"),
        ("pgd", {"eps": 0.1, "mask": "foo"}, "unknown value of 'mask' 'foo' (choices: padding, silence, none)"),
        ("pgd", {"eps": 0.1, "eot_draws": 0}, "eot_draws = 0: input should be greater than or equal to 1"),
        ("pgd", {"eps": 0.1, "targeted": "yes"}, "targeted = yes: input should be a valid boolean"),
        ("pgd", {"eps": 0.1, "eot_draw": 3}, "unknown setting of [ATTACK] 'eot_draw'; did you mean 'eot_draws'"),
        ("pgd", {"eps": 0.1, "options": {"steps": -3}}, "steps = -3: input should be greater than or equal to 1"),
        ("pgd", {"eps": 0.1, "options": {"steps": "3"}}, "steps = 3: input should be a valid integer"),
        ("pgd", {"eps": 0.1, "options": {"loss": "foo"}}, "unknown value of 'loss' 'foo' (choices: "),
        ("kenansville", {"eps": 0.1, "options": {"foo": 1}}, "unknown key of kenansville 'foo'"),
    ],
)
def test_mistakes_are_said(victim: Victim, clips: Clips, name: str, keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        earshot.attack(victim, clips.select([0]), name, **keys)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_rate": 8000}, "another sample rate (16000) than the prepared data (8000)"),
        ({"samples": np.zeros((16, 8000), np.int16)}, "another clip length in samples (16000)"),
        ({"classes": ("yes", "no", "up", "left")}, "the model does not know the class 'left'"),
    ],
)
def test_clips_that_do_not_fit_the_model_are_refused(
    victim: Victim, clips: Clips, change: dict[str, object], message: str
) -> None:
    foreign = replace(clips, **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=re.escape(message)):
        earshot.attack(victim, foreign, "fgsm", eps=0.01, speech=False)
    with pytest.raises(ValueError, match=re.escape(message)):
        earshot.attack(victim, clips, "universal", eps=0.01, fit_clips=foreign, speech=False)
    with pytest.raises(ValueError, match=re.escape(message)):
        earshot.judge(victim, earshot.Adversarial(foreign, [], foreign, victim, targeted=False))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sigma": -0.1}, "sigma = (-0.1,): input should be greater than 0"),
        ({"n": 0}, "n = 0: input should be greater than or equal to 1"),
        ({"n": "100"}, "n = 100: input should be a valid integer"),
        ({"mode": "fast"}, "unknown value of 'mode' 'fast' (choices: fixed, sequential)"),
        ({"draws": 3}, "unknown setting of [CERTIFY] 'draws'"),
        ({"noise": "hearing"}, "unknown setting of [CERTIFY] 'noise'"),
        ({"stage": "meld"}, "no representation 'meld'"),
        ({"valid": torch.ones(8000, dtype=torch.bool)}, "valid has the shape (8000,), the model takes clips [16000]"),
    ],
)
def test_mistakes_in_a_certificate_are_refused(
    victim: Victim, clips: Clips, keys: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        earshot.certify(victim, clips.waveforms()[0], **{"sigma": 0.1, **keys})  # type: ignore[arg-type]


def test_a_clip_of_another_length_is_not_certified(victim: Victim, clips: Clips) -> None:
    with pytest.raises(ValueError, match=re.escape("x has the shape (8000,), the model takes clips [16000]")):
        earshot.certify(victim, clips.waveforms()[0][:8000], sigma=0.1)


def test_a_list_stands_for_a_tuple(victim: Victim, clips: Clips) -> None:
    x = clips.waveforms()[0]
    assert earshot.certify(victim, x, sigma=0.01, n0=16, n=32, radii=[0.01]).n_used == 48


def test_the_smallest_perturbation_needs_no_budget(victim: Victim, clips: Clips) -> None:
    clips = own_labels(victim, clips.select(range(4)))
    made = earshot.attack(victim, clips, "ddn", norm="l2", options={"steps": 20}, speech=False)
    assert all(fact["budget"] == math.inf for fact in made.facts)
    assert all(row["success_stage"] for row in earshot.judge(victim, made))
