"""Training methods: the losses that they compute, and the state that they must not change."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from src.datasets.store import Clips
from src.registry import METHODS
from src.threat import ThreatModel
from src.training import TrainingSettings, fit
from src.training.methods.adversarial import craft
from src.training.methods.learner import Learner
from src.training.run import warn_of_collapse
from src.victims import checkpoint

METHOD_NAMES = [name for name in METHODS.names() if name != "gradient_penalty"]


def learner(classes: int = 3, seed: int = 0) -> Learner:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(20, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, classes))
    generator = torch.Generator()
    generator.manual_seed(1)
    taught = torch.randn(12, classes, generator=torch.Generator().manual_seed(3))
    return Learner(net, net, net, (-1.0, 1.0), generator, 0.0, taught=taught)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(12, 20, generator=generator) - 0.5
    return x, nn.functional.one_hot(torch.arange(12) % 3, 3).float()


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_loss_is_finite_and_reaches_every_weight(name: str) -> None:
    trained, (x, y) = learner(), batch()
    loss = METHODS[name](trained, x, y)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.modules.parameters())


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_batch_norm_sees_each_step_once(name: str) -> None:
    """Crafting and estimating run in evaluation mode: the statistics move by the training forward alone."""
    trained, (x, y) = learner(), batch()
    METHODS[name](trained, x, y)
    assert trained.modules[1].num_batches_tracked == 1
    assert trained.modules.training


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_crafted_examples_stay_in_the_ball_and_raise_the_loss(norm: str) -> None:
    trained, (x, y) = learner(), batch()
    threat = ThreatModel(norm, 0.1, trained.bounds)
    x_adv = craft(trained, x, y, threat, steps=5, step_size=0.5)
    assert threat.contains(x_adv, x).all()
    with trained.evaluating() as model, torch.no_grad():
        assert trained.loss(model(x_adv), y) > trained.loss(model(x), y)
    assert all(p.grad is None for p in trained.modules.parameters())


def test_share_of_adversarial_examples() -> None:
    trained, (x, y) = learner(), batch()
    trained.modules.eval()
    plain = trained.loss(trained(x), y)
    torch.testing.assert_close(METHODS["pgd"](trained, x, y, share=0.0), trained.loss(trained(x), y))
    trained.modules.eval()
    assert METHODS["pgd"](trained, x, y, share=1.0, eps=0.2).item() > plain.item()


def test_consistency_vanishes_without_noise_disagreement() -> None:
    trained, (x, y) = learner(), batch()
    trained.modules.eval()
    base = METHODS["gaussian"](trained, x, y, sigma=1e-9)
    agreed = METHODS["consistency"](trained, x, y, sigma=1e-9, entropy=0.0)
    torch.testing.assert_close(base, agreed, atol=1e-5, rtol=1e-5)
    assert METHODS["consistency"](trained, x, y, sigma=1.0, entropy=0.0) > METHODS["gaussian"](trained, x, y, sigma=1.0)


def test_macer_rewards_a_larger_radius() -> None:
    _, (x, y) = learner(), batch()
    generator = torch.Generator()

    def fixed(scale: float) -> Learner:
        def model(z: torch.Tensor) -> torch.Tensor:
            repeats = len(z) // len(y)
            return scale * (y.repeat_interleave(repeats, 0) - 0.5) + 0.0 * z.sum()

        return Learner(model, model, nn.Identity(), (-1.0, 1.0), generator, 0.0)

    losses = [METHODS["macer"](fixed(scale), x, y, sigma=0.1).item() for scale in (0.05, 0.1, 0.2)]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("method", ["fgsm", "gaussian"])
def test_training_at_the_waveform_records_what_it_did(tmp_path: Path, clips: Clips, method: str) -> None:
    victim = checkpoint.build(
        model="resnet", classes=clips.classes, sample_rate=clips.sample_rate, n_samples=clips.n_samples,
        model_options={"widths": (4, 8)}, front_end_options={"hop_length": 320},
    )  # fmt: skip
    training = TrainingSettings(epochs=2, batch_size=8, method=method, stage="waveform", scheduler_steps=())
    options = {"sigma": 0.01} if method == "gaussian" else {}
    keys = {"name": "m", "model_dir": tmp_path, "training": training, "options": options, "progress": False}
    facts = fit(victim, clips, clips, **keys)
    assert (facts["method"], facts["stage"]) == (method, "waveform")
    if method == "gaussian":
        assert facts["sigma"] == 0.01
    else:
        assert all(0 <= entry["validation_pgd_accuracy"] <= 1 for entry in facts["history"])
    again = fit(victim, clips, clips, **keys)
    assert again == facts


def test_warning_of_catastrophic_overfitting(capsys: pytest.CaptureFixture[str]) -> None:
    history = [{"validation_pgd_accuracy": 0.6}]
    warn_of_collapse("m", history, 0.1)
    assert "catastrophic overfitting" in capsys.readouterr().out
    warn_of_collapse("m", history, 0.5)
    assert not capsys.readouterr().out


def test_penalty_and_method_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="goes with method = standard"):
        TrainingSettings(method="pgd", gradient_penalty=(0.0, 1e-6))
    assert dataclasses.replace(TrainingSettings(), method="pgd").method == "pgd"
