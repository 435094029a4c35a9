"""Adversarial training through a defense, and the batch-norm statistics that it leaves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.datasets.store import Clips
from src.registry import METHODS
from src.threat import ThreatModel
from src.training import TrainingSettings, fit
from src.training.methods.adversarial import craft
from src.training.methods.learner import Learner
from src.training.run import TrainingRun
from src.victims import checkpoint
from src.victims.stage import Defense
from src.victims.victim import Victim
from tests.test_training import weights

CPU = torch.device("cpu")
PUBLISHED = {"eps": 0.2, "share": 0.5, "random_start": False}


class Watched(nn.Module):
    """A net with batch norm that notes what it gets in training mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(20, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
        self.trained_on: list[Tensor] = []
        self.firsts: list[int] = []

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        if self.training:
            self.trained_on.append(x.detach())
            self.firsts.append(first)
        return self.net(x)

    @property
    def norm(self) -> nn.BatchNorm1d:
        return self.net[1]  # type: ignore[return-value]


def learner() -> tuple[Watched, Learner]:
    net, generator = Watched(), torch.Generator()
    generator.manual_seed(1)
    return net, Learner(net, net, net, (-1.0, 1.0), generator, 0.0)


def batch() -> tuple[Tensor, Tensor]:
    x = torch.rand(12, 20, generator=torch.Generator().manual_seed(2)) - 0.5
    return x, nn.functional.one_hot(torch.arange(12) % 3, 3).float()


def statistics_after(*parts: Tensor) -> dict[str, Tensor]:
    """The statistics of a fresh net that has seen these batches in training mode."""
    net = Watched()
    for part in parts:
        net(part)
    return {name: value.clone() for name, value in net.norm.state_dict().items() if "running" in name}


def same(norm: nn.BatchNorm1d, expected: dict[str, Tensor]) -> bool:
    return all(torch.allclose(norm.state_dict()[name], value, atol=1e-6) for name, value in expected.items())


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_half_of_the_batch_is_replaced(name: str) -> None:
    net, trained = learner()
    x, y = batch()
    METHODS[name](trained, x, y, **PUBLISHED)
    (seen,) = net.trained_on
    assert torch.equal(seen[6:], x[6:])
    delta = (seen[:6] - x[:6]).abs().amax(1)
    torch.testing.assert_close(delta, torch.full((6,), 0.2))


def test_published_fgsm_is_one_signed_step() -> None:
    net, trained = learner()
    x, y = batch()
    METHODS["fgsm"](trained, x, y, **PUBLISHED, step_size=1.0)
    leaf = x[:6].clone().requires_grad_()
    reference = Watched().eval()
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(reference(leaf), y[:6], reduction="sum"), leaf)
    torch.testing.assert_close(net.trained_on[0][:6], (x[:6] + 0.2 * grad.sign()).clamp(-1, 1))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_only_clean_examples_leave_statistics(share: float) -> None:
    x, y = batch()
    clean = x[6:] if share < 1 else x
    for mode in ("clean", "separate"):
        net, trained = learner()
        METHODS["pgd"](trained, x, y, **PUBLISHED | {"share": share}, batch_norm=mode).backward()
        assert same(net.norm, statistics_after(clean)), mode
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        assert all(len(part) for part in net.trained_on)
    net, trained = learner()
    METHODS["pgd"](trained, x, y, **PUBLISHED | {"share": share})
    assert not same(net.norm, statistics_after(clean)), "together they are polluted"


def test_adversarial_examples_have_statistics_of_their_own() -> None:
    net, trained = learner()
    x, y = batch()
    for _ in range(2):
        METHODS["pgd"](trained, x, y, **PUBLISHED, batch_norm="separate")
    clean, first, _, second = net.trained_on
    own = {name.removeprefix("net.1."): value for name, value in trained.statistics.items()}
    assert torch.equal(clean, x[6:])
    expected = statistics_after(first, second)
    assert all(torch.allclose(own[name], value, atol=1e-6) for name, value in expected.items())
    assert int(own["num_batches_tracked"]) == 2 == int(net.norm.num_batches_tracked)
    assert not torch.equal(own["running_mean"], net.norm.running_mean)
    _, untouched = learner()
    METHODS["pgd"](untouched, x, y, **PUBLISHED, batch_norm="clean")
    assert untouched.statistics == {}


def test_they_are_crafted_with_their_own_statistics() -> None:
    net, trained = learner()
    x, y = batch()
    own = {f"net.1.{name}": value + 1.0 for name, value in net.norm.state_dict().items() if name.startswith("run")}
    trained.statistics.update({name: value.clone() for name, value in own.items()})
    METHODS["fgsm"](trained, x, y, **PUBLISHED, batch_norm="separate")
    other, plain = learner()
    METHODS["fgsm"](plain, x, y, **PUBLISHED, batch_norm="clean")
    assert not torch.equal(net.trained_on[-1], other.trained_on[-1])
    reference = Watched().eval()
    for name, value in own.items():
        setattr(reference.norm, name.removeprefix("net.1."), value)
    x_adv = craft(Learner(reference, reference, reference, (-1, 1), plain.generator, 0.0), x[:6], y[:6],
                  ThreatModel("linf", 0.2, (-1.0, 1.0)), 1, 1.25, random_start=False)  # fmt: skip
    torch.testing.assert_close(net.trained_on[-1], x_adv)


@pytest.mark.parametrize("batch_norm", ["clean", "separate"])
@pytest.mark.parametrize(("n", "crafted"), [(2, 2), (3, 3), (4, 2), (6, 3)])
def test_no_batch_norm_gets_a_single_example(n: int, crafted: int, batch_norm: str) -> None:
    """The last batch of an epoch may be of two or three clips, and one has no statistics where one frame is left."""
    net, student = learner()
    x, y = batch()
    METHODS["pgd"](student, x[:n], y[:n], **PUBLISHED, steps=1, batch_norm=batch_norm).backward()
    sizes = [len(seen) for seen in net.trained_on]
    assert crafted in sizes
    assert 1 not in sizes


def test_the_second_part_of_a_batch_knows_its_place() -> None:
    """Masks of padding belong to positions in the batch."""
    net, trained = learner()
    METHODS["pgd"](trained, *batch(), **PUBLISHED, batch_norm="clean")
    assert net.firsts == [6, 0]


def build(clips: Clips, *defenses: dict[str, Any]) -> Victim:
    torch.manual_seed(0)
    return checkpoint.build(
        model="resnet", classes=clips.classes, sample_rate=clips.sample_rate, n_samples=clips.n_samples,
        model_options={"widths": (4, 8)}, front_end_options={"hop_length": 320}, defenses=list(defenses),
    )  # fmt: skip


def training(**keys: Any) -> TrainingSettings:
    return TrainingSettings(epochs=1, batch_size=8, method="pgd", stage="waveform", scheduler_steps=(), **keys)


def running(victim: Victim, clips: Clips, **options: object) -> Learner:
    run = TrainingRun(victim, clips, clips, "waveform", "pgd", options, training(), None, CPU, "m", False)

    class NoAugmentation:
        generator = torch.Generator()

        def features(self, x: Tensor) -> Tensor:
            return x

    return run.learner(NoAugmentation(), None)  # type: ignore[arg-type]


class Flip(Defense):
    """Turns the sign without a gradient; its substitute knows."""

    differentiable = False
    waveform_only = True

    def __init__(self) -> None:
        super().__init__("flip")

    def forward(self, x: Tensor) -> Tensor:
        return -x.detach()

    def substitute(self, x: Tensor, value: Tensor) -> Tensor:
        return -x


class Jitter(Defense):
    """Random noise."""

    randomized = True

    def __init__(self) -> None:
        super().__init__("jitter")

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.01 * torch.randn_like(x)

    def draw(self, x: Tensor, rng: object) -> Tensor:
        return self(x)


def examples(clips: Clips) -> tuple[Tensor, Tensor]:
    return clips.waveforms()[:6], nn.functional.one_hot(clips.labels[:6], 4).float()


def test_training_passes_a_defense_by_its_substitute(clips: Clips, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = examples(clips)
    threat = ThreatModel("linf", 0.01, (-1.0, 1.0))

    def rise() -> float:
        trained = running(build(clips).defended([Flip()]), clips)
        x_adv = craft(trained, x, y, threat, 5, 0.5, random_start=False)
        with trained.evaluating() as model, torch.no_grad():
            return float(trained.loss(model(x_adv), y) - trained.loss(model(x), y))

    assert rise() > 0
    monkeypatch.setattr(Flip, "substitute", lambda self, x, value: x)
    assert rise() < 0, "the identity leads the wrong way here"


@pytest.mark.parametrize("draws", [1, 4])
def test_a_random_defense_is_averaged_over_draws(clips: Clips, draws: int) -> None:
    x, y = examples(clips)
    trained = running(build(clips).defended([Jitter()]), clips)
    seen: list[int] = []
    forward = Jitter.forward

    def counted(self: Jitter, x: Tensor) -> Tensor:
        seen.append(len(x))
        return forward(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Jitter, "forward", counted)
        craft(trained, x, y, ThreatModel("linf", 0.01, (-1.0, 1.0)), 3, 0.5, draws=draws)
    assert seen == [6] * 3 * draws


def test_more_draws_give_a_steadier_gradient() -> None:
    """Of a linear model with noise in its logits, PGD's first step has the right signs more often with more draws."""
    torch.manual_seed(3)
    weight = torch.randn(20, 3) * 0.3

    class Noisy(nn.Module):
        def forward(self, x: Tensor, first: int = 0) -> Tensor:
            return (x * (1 + 1.5 * torch.randn_like(x))) @ weight

    net = Noisy()
    trained = Learner(net, net, net, (-1.0, 1.0), torch.Generator(), 0.0)
    x, y = batch()
    leaf = x.clone().requires_grad_()
    (truth,) = torch.autograd.grad(nn.functional.cross_entropy(leaf @ weight, y, reduction="sum"), leaf)
    agreement = {}
    for draws in (1, 64):
        x_adv = craft(trained, x, y, ThreatModel("linf", 0.1, (-1, 1)), 1, 1.0, random_start=False, draws=draws)
        agreement[draws] = float(((x_adv - x).sign() == truth.sign()).float().mean())
    assert agreement[64] > agreement[1] + 0.1


@pytest.mark.parametrize("batch_norm", ["clean", "separate"])
def test_an_interrupted_training_ends_with_the_same_weights(
    tmp_path: Path, clips: Clips, monkeypatch: pytest.MonkeyPatch, batch_norm: str
) -> None:
    options = {"steps": 2, "share": 0.5, "batch_norm": batch_norm, "random_start": False, "eps": 0.02}

    def train(folder: Path, defense: dict[str, Any]) -> None:
        settings = dataclasses.replace(training(), epochs=2, keep="last", learning_rate=0.01)
        fit(
            build(clips, defense), clips, clips.select(range(4)), name="m", model_dir=folder, training=settings,
            options=options, progress=False,
        )  # fmt: skip

    defense = {"name": "quantize"}
    train(tmp_path / "whole", defense)
    epoch, started = TrainingRun.epoch, list[int]()

    def interrupted(self: TrainingRun, number: int, bar: Any) -> None:
        started.append(number)
        if started == [0, 1]:
            raise KeyboardInterrupt
        epoch(self, number, bar)

    monkeypatch.setattr(TrainingRun, "epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", defense)
    train(tmp_path / "stopped", defense)
    assert started == [0, 1, 1]
    whole, stopped = (weights(tmp_path / folder / "m.pt") for folder in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)


def test_features_are_augmented_where_the_objective_starts_from_the_waveform(clips: Clips) -> None:
    victim = build(clips)
    run = TrainingRun(victim, clips, clips, "waveform", "pgd", {}, training(), None, CPU, "m", False)
    seen: list[tuple[int, ...]] = []

    class Noted:
        generator = torch.Generator()

        def features(self, x: Tensor) -> Tensor:
            seen.append(tuple(x.shape))
            return x

    x = clips.waveforms()[:2]
    run.learner(Noted(), torch.ones(2, x.shape[1], dtype=torch.bool))(x)  # type: ignore[arg-type]
    assert seen == [tuple(victim.split(victim.representations[-1])[0](x).shape)]
