"""The pieces of certify.py: what is attacked behind a defense, what stands in one figure, what is refused at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from src import config
from src.commands import selection
from src.commands.certify import CertificationRun
from src.datasets.store import Clips
from src.distributed import Team
from src.smoothing import check_certifiable
from src.victims import checkpoint
from src.victims.victim import Victim

Start = Callable[..., CertificationRun]


@pytest.fixture
def start(trained_net: tuple[Victim, Tensor, Tensor], clips: Clips, tmp_path: Path) -> Start:
    """A run on three clips, of the model behind defenses."""

    def build(*overrides: str, defenses: tuple[str, ...] = (), weights: str = "0" * 64) -> CertificationRun:
        path = tmp_path / "config.ini"
        path.write_text(
            f"[RESULTS]\nresults_dir = {tmp_path}/results\nplot_dir = {tmp_path}/plots\n"
            "[CERTIFY]\nsigma = 0.005\nn0 = 16\nn = 32\nbatch_size = 16\nattack_n = 100\nbaselines =\n"
        )
        settings = config.load(path, list(overrides))
        victim = checkpoint.defend(trained_net[0], selection.configured_defenses(settings, defenses))
        model = selection.Trained("net", weights, victim, {})
        return CertificationRun(settings, model, None, clips.select(range(3)), [0, 1, 2], Team())

    return build


def test_the_smoothed_model_behind_a_defense_without_gradient_is_attacked_through_bpda(start: Start) -> None:
    gradients = {}
    for name, defenses in (("plain", ()), ("quantize", ("quantize",))):
        run = start("DEFENSE.quantize.step=2", defenses=defenses)
        smooth, z = run.certifier.smoothed(run.clip(0)[0], 0.005)
        point = z[None].clone().requires_grad_()
        (gradients[name],) = torch.autograd.grad(smooth.model(point).logsumexp(1).sum(), point)
    similarity = torch.nn.functional.cosine_similarity(gradients["quantize"].flatten(), gradients["plain"].flatten(), 0)
    assert similarity > 0.9, "the step of the quantizer is far below the clip"


def test_only_curves_of_the_same_model_and_defenses_share_a_figure(start: Start) -> None:
    def certify(*overrides: str, **of: object) -> set[str]:
        run = start(*overrides, **of)
        run.report(run.certify(), [])
        return set(run.in_sound())

    assert certify() == {"waveform"}
    assert certify("CERTIFY.stage=magnitude", "CERTIFY.sigma=0.1") == {"waveform", "magnitude"}
    assert certify("CERTIFY.stage=magnitude", "CERTIFY.sigma=0.1", weights="1" * 64) == {"magnitude"}
    assert "magnitude" not in certify(defenses=("quantize",))


def test_a_baseline_in_a_wrong_place_is_refused_before_any_work(start: Start) -> None:
    with pytest.raises(ValueError, match="no defense can stand at 'logmel'"):
        start("CERTIFY.baselines=median", "DEFENSE.median.at=logmel", "CERTIFY.attack_clips=1")
    run = start("CERTIFY.baselines=median,quantize", "CERTIFY.attack_clips=1")
    assert list(run.baseline_victims) == ["median", "quantize"]


def test_models_that_cannot_be_used_are_left_out_unless_asked_for(
    trained_net: tuple[Victim, Tensor, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = selection.Trained("plain", "", trained_net[0], {})
    noisy = selection.Trained("noisy", "", checkpoint.defend(trained_net[0], [{"name": "pagn"}]), {})
    assert selection.usable([noisy, plain], check_certifiable, None) == [plain]
    assert "left out: noisy: the model draws fresh noise" in capsys.readouterr().out
    with pytest.raises(ValueError, match="noisy: the model draws fresh noise"):
        selection.usable([plain, noisy], check_certifiable, ["plain", "noisy"])
    with pytest.raises(ValueError, match="noisy: the model draws fresh noise"):
        selection.usable([noisy], check_certifiable, None)


def test_true_lengths_are_part_of_what_clips_are(clips: Clips) -> None:
    shorter = replace(clips, lengths=clips.lengths - 7)
    assert shorter.fingerprint() != clips.fingerprint()
    assert shorter.fingerprint() != replace(clips, lengths=clips.lengths - 8).fingerprint()


@pytest.mark.parametrize(
    ("overrides", "classifiers"),
    [
        (["CERTIFY.baselines=quantize"], {"smoothed", "undefended", "quantize"}),
        ([], {"smoothed"}),
        (["CERTIFY.baselines=quantize", "CERTIFY.kind=gain", "CERTIFY.sigma=3"], {"smoothed"}),
        (["CERTIFY.baselines=quantize", "CERTIFY.stage=magnitude", "CERTIFY.sigma=0.1"], {"smoothed"}),
    ],
)
def test_defenses_stand_beside_white_noise_at_the_waveform_only(
    start: Start, overrides: list[str], classifiers: set[str]
) -> None:
    """Elsewhere their budgets are not those of the certificate."""
    run = start("CERTIFY.attack_clips=1", "CERTIFY.attack_steps=1", "CERTIFY.radii=0.1", *overrides)
    assert {row["classifier"] for row in run.attack(run.certify())} == classifiers
