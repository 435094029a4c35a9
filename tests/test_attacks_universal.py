"""Universal perturbations: fitted to some clips, scored on others; budgets, files, and the way through attack.py."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from src import config
from src.attacks import fitted
from src.attacks.gradients.universal import _placed
from src.attacks.registration import registered_attack
from src.budget import Budget
from src.commands import fitting
from src.commands.selection import Trained
from src.datasets.store import FULL_SCALE, Clips, to_int16
from src.evaluation import AttackSettings, Crafter
from src.perception import snr
from src.random_streams import RandomStreams
from src.registry import ATTACKS, INVERSIONS
from src.threat import ThreatModel, norm_of
from src.victims import checkpoint
from src.victims.victim import Victim

RATE, TIME = 4000, 2048
UNIVERSAL = registered_attack("universal")


class LoudestBand(nn.Module):
    """Which of three bands is the loudest: smooth and tolerant to shifts."""

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.stft(x, 128, 64, window=torch.hann_window(128), return_complex=True).abs().square().mean(-1)
        return 2 * (spectrum[:, 1:64].unflatten(1, (3, 21)).sum(-1) + 1e-4).log()


def tones(seed: int, count: int = 18) -> tuple[Tensor, Tensor]:
    """Decaying tones in the upper two bands over noise, [count, time], and their labels; a tone in the lowest band
    changes them all."""
    generator = torch.Generator().manual_seed(seed)
    y = 1 + torch.arange(count) % 2
    pitch = 333 + 667 * y[:, None] + torch.rand(count, 1, generator=generator) * 50
    t = torch.arange(TIME) / RATE
    x = 0.3 * torch.sin(2 * math.pi * pitch * t) * torch.exp(-3 * t)
    return x + 0.02 * torch.randn(count, TIME, generator=generator), y


def fit(
    x: Tensor, y: Tensor, threat: ThreatModel, targeted: bool = False, seed: int = 0, **options: object
) -> dict[str, Tensor]:
    streams = RandomStreams(seed, [str(i) for i in range(len(x))], "fit universal")
    keys = {"steps": 40, "batch_size": 6, **options}
    return UNIVERSAL.fit(LoudestBand(), x, y, threat, rng=streams, targeted=targeted, **keys)


def apply(x: Tensor, y: Tensor, threat: ThreatModel, tensors: dict[str, Tensor], targeted: bool = False) -> Tensor:
    streams = RandomStreams(0, [f"test {i}" for i in range(len(x))], "universal")
    return UNIVERSAL(LoudestBand(), x, y, threat, rng=streams, targeted=targeted, fitted=tensors)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fitted_to_some_clips_it_fools_others(norm: str) -> None:
    x, y = tones(0)
    x_test, y_test = tones(1)
    threat = ThreatModel(norm, 0.2 if norm == "linf" else 5.0, (-1.0, 1.0))
    tensors = fit(x, y, threat)
    x_adv = apply(x_test, y_test, threat, tensors)
    assert threat.contains(x_adv, x_test).all()
    success = (LoudestBand()(x_adv).argmax(1) != y_test).float().mean()
    noise = RandomStreams(0, "a", "").signs(x[:1]) if norm == "linf" else RandomStreams(0, "a", "").normal(x[:1])
    control = threat.project(x_test + noise / norm_of(noise, norm) * threat.eps, x_test)
    assert success >= 0.5
    assert success > (LoudestBand()(control).argmax(1) != y_test).float().mean()


def test_towards_a_target_and_at_any_alignment() -> None:
    x, _ = tones(0)
    x_test, _ = tones(1)
    threat, target = ThreatModel("linf", 0.3), torch.zeros(18, dtype=torch.long)
    tensors = fit(x, target, threat, targeted=True, shift_invariant=True)
    x_adv = apply(x_test, target, threat, tensors, targeted=True)
    torch.testing.assert_close(x_adv - x_test, (0.3 * tensors["delta"]).expand_as(x), atol=1e-6, rtol=0)
    assert (LoudestBand()(x_adv).argmax(1) == 0).all()
    rolled = 0.3 * _placed(tensors["delta"], 100 * torch.arange(18)[:, None], 18)
    assert (LoudestBand()(x_test + rolled).argmax(1) == 0).all()


def test_the_iterate_that_fools_most_clips_is_kept() -> None:
    x, y = tones(0)
    threat = ThreatModel("linf", 0.2, (-1.0, 1.0))

    def successes(steps: int) -> int:
        # The same step size for every number of steps, so that a short run is the beginning of a long one.
        tensors = fit(x, y, threat, steps=steps, step=5.0 * steps / 60)
        return int((LoudestBand()(apply(x, y, threat, tensors)).argmax(1) != y).sum())

    rates = [successes(steps) for steps in (3, 15, 60)]
    assert rates == sorted(rates)
    assert rates[0] < rates[-1]


def test_a_seed_decides_and_every_clip_counts() -> None:
    x, y = tones(0)
    threat = ThreatModel("linf", 0.05, (-1.0, 1.0))
    delta = fit(x, y, threat, steps=6)["delta"]
    assert torch.equal(delta, fit(x, y, threat, steps=6)["delta"])
    assert not torch.equal(delta, fit(x, y, threat, steps=6, seed=1)["delta"])
    changed = x.clone()
    changed[-1] = x[0]
    assert not torch.equal(delta, fit(changed, y, threat, steps=6)["delta"])


def test_gradients_come_in_batches() -> None:
    x, y = tones(0)
    sizes: list[int] = []

    def model(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return LoudestBand()(x)

    streams = RandomStreams(0, [str(i) for i in range(18)], "fit universal")
    UNIVERSAL.fit(model, x, y, ThreatModel("linf", 0.1), rng=streams, targeted=False, steps=7, batch_size=8)
    # Two passes of 8 + 8 + 2 clips, each followed by an evaluation of all clips, then one step and the last evaluation.
    assert sizes == [8, 8, 2, 8, 8, 2] * 2 + [8, 8, 8, 2]


def test_every_clip_spends_its_own_snr_budget() -> None:
    x, y = tones(0)
    level = torch.linspace(1.0, 0.1, 18)[:, None]
    x, budget = x * level, Budget(10, is_snr=True)
    tensors = fit(x, y, ThreatModel("l2", budget.eps(x, "l2"), (-1.0, 1.0)))
    assert norm_of(tensors["delta"], "l2").item() <= 1.0001, "in units of eps"
    x_test, y_test = tones(1)
    x_test = x_test * torch.linspace(0.01, 1.0, 18)[:, None]
    threat = ThreatModel("l2", budget.eps(x_test, "l2"))
    x_adv = apply(x_test, y_test, threat, tensors)
    assert threat.contains(x_adv, x_test).all()
    assert (snr(x_test, x_adv) >= 10 - 1e-3).all()
    budgets = threat.budgets(x_test)
    torch.testing.assert_close(
        norm_of(x_adv - x_test, "l2"), budgets * norm_of(tensors["delta"], "l2"), rtol=1e-3, atol=1e-6
    )
    assert (norm_of(tensors["delta"], "l2") > 0.9).all(), "a quiet training clip does not make it small"


def test_another_shape_is_refused() -> None:
    x, y = tones(0)
    with pytest.raises(ValueError, match=r"fitted to inputs of shape \(100,\), these have \(2048,\)"):
        apply(x, y, ThreatModel("linf", 0.1), {"delta": torch.zeros(1, 100)})


def test_placing_is_rolling() -> None:
    delta = torch.arange(12.0).reshape(1, 2, 6)
    placed = _placed(delta, torch.tensor([[0], [2]]), 2)
    assert torch.equal(placed[1], delta[0].roll(2, -1))
    assert torch.equal(_placed(placed, torch.tensor([[0], [-2]]), 2)[1], delta[0])


def test_config_keys_are_those_of_fit() -> None:
    names = [key.name for key in ATTACKS.keys("universal")]
    assert names == ["steps", "step", "momentum", "batch_size", "shift_invariant", "loss"]
    assert "fit_clips" not in AttackSettings(names=("pgd",)).identity(), "rows of other attacks do not depend on them"
    assert AttackSettings(names=("pgd", "universal"), fit_clips=7).identity()["fit_clips"] == 7


def test_file_round_trip(tmp_path: Path) -> None:
    entry = fitted.FittedAttack(
        attack="universal", victim="net", weights="0" * 64, stage="waveform", norm="linf", eps="0.1", targeted=False,
        options="1", clips="2", tensors={"delta": torch.randn(1, 10)},
    )  # fmt: skip
    fitted.save(tmp_path / "a.pt", entry)
    loaded = fitted.load(tmp_path / "a.pt")
    assert torch.equal(loaded.tensors["delta"], entry.tensors["delta"])
    assert dataclasses.replace(loaded, tensors={}).__dict__ == dataclasses.replace(entry, tensors={}).__dict__
    assert loaded.fits("0" * 64)
    assert not loaded.fits("1" * 64)
    checkpoint.write(tmp_path / "model.pt", {"format": checkpoint.FORMAT, "recipe": {}})
    with pytest.raises(ValueError, match=r"model\.pt: not a fitted attack"):
        fitted.load(tmp_path / "model.pt")
    (tmp_path / "damaged.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"damaged\.pt"):
        fitted.load(tmp_path / "damaged.pt")


def make_clips(seed: int, prefix: str) -> Clips:
    x, y = tones(seed)
    ids = tuple(f"{prefix}{i}" for i in range(len(x)))
    lengths = torch.full((len(x),), TIME)
    return Clips(to_int16(x.numpy()), y, lengths, ids, ("low", "middle", "high"), RATE, False, "test")


def test_the_program_fits_on_training_clips_and_scores_test_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = {"train": make_clips(0, "train"), "validation": make_clips(2, "validation")}
    monkeypatch.setattr(fitting.store, "load", lambda data_dir, split: splits[split])
    path = tmp_path / "config.ini"
    path.write_text(
        "[ATTACK]\nnames = universal\neps = 0.2\nspeech = no\nfit_clips = 15\n[ATTACK.universal]\nsteps = 30\n"
    )
    loaded = config.load(path)
    victim = Victim([], LoudestBand(), classes=("low", "middle", "high"), sample_rate=RATE, n_samples=TIME)
    crafter = Crafter(victim, loaded.attack, INVERSIONS["gain_mask"], torch.device("cpu"))
    model, eps = Trained("net", "0" * 64, victim, {}), Budget(0.2)
    assert len(fitting.clips(loaded)) == 15
    assert fitting.tensors(loaded, crafter, model, "pgd", eps, tmp_path) is None
    tensors = fitting.tensors(loaded, crafter, model, "universal", eps, tmp_path)
    assert tensors is not None
    test_clips, options = make_clips(1, "test"), loaded.component("ATTACK", "universal")
    crafted = list(crafter.craft(test_clips, "universal", options, eps, tensors))
    assert all(clip.facts["feasible"] and clip.facts["forwards"] == clip.facts["backwards"] == 0 for clip in crafted)
    assert np.mean([clip.facts["prediction_audio"] != clip.facts["label"] for clip in crafted]) >= 0.5
    delta = np.stack([clip.samples for clip in crafted]).astype(int) - test_clips.samples
    expected = np.rint(eps.value * tensors["delta"].numpy() * FULL_SCALE)
    assert np.abs(delta - expected).max() <= 1, "one perturbation for all clips"

    files = list((tmp_path / "fitted" / "net").glob("universal_0.2_*.pt"))
    assert len(files) == 1
    monkeypatch.setattr(crafter, "fit", lambda *_: pytest.fail("it was fitted already"))
    again = fitting.tensors(loaded, crafter, model, "universal", eps, tmp_path)
    assert again is not None
    assert torch.equal(again["delta"], tensors["delta"])
    monkeypatch.undo()
    monkeypatch.setattr(fitting.store, "load", lambda data_dir, split: splits[split])
    for override in ("ATTACK.fit_split=validation", "ATTACK.fit_clips=9", "ATTACK.universal.steps=31"):
        other = fitting.tensors(config.load(path, [override]), crafter, model, "universal", eps, tmp_path)
        assert other is not None
        assert not torch.equal(other["delta"], tensors["delta"]), override
    assert len(list((tmp_path / "fitted" / "net").glob("*.pt"))) == 4
