"""i-vectors: expectation maximization against data drawn from the model, the posterior against Bayesian regression, the
gradient down to the waveform, and training without gradients."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from src.datasets.store import Clips
from src.models.ivector import IVector
from src.models.total_variability import Statistics, em_step, estimate_loadings, log_likelihood, posterior
from src.registry import MODELS
from src.training import TrainingSettings, fit
from src.victims import checkpoint
from src.victims.victim import Victim

COMPONENTS, SIZE, RANK = 4, 5, 2


def drawn(utterances: int, frames: int) -> tuple[Tensor, Tensor, Statistics]:
    """(true loadings, true factors, statistics) of utterances from the model, in whitened coordinates: the frames of
    component k are T_k w + standard normal noise."""
    rng = torch.Generator().manual_seed(0)
    loadings = torch.randn(COMPONENTS, SIZE, RANK, generator=rng, dtype=torch.float64)
    factors = torch.randn(utterances, RANK, generator=rng, dtype=torch.float64)
    counts = torch.multinomial(torch.ones(utterances, COMPONENTS), frames, True, generator=rng)
    counts = torch.nn.functional.one_hot(counts, COMPONENTS).sum(1).double()
    noise = torch.randn(utterances, COMPONENTS, SIZE, generator=rng, dtype=torch.float64)
    firsts = counts[:, :, None] * torch.einsum("kdr,nr->nkd", loadings, factors) + counts.sqrt()[:, :, None] * noise
    return loadings, factors, Statistics(counts, firsts)


def test_expectation_maximization_never_lowers_the_likelihood_and_finds_the_loadings() -> None:
    true, factors, statistics = drawn(1500, 60)
    loadings, likelihoods = estimate_loadings(statistics, RANK, 40, torch.Generator().manual_seed(1))
    assert all(after >= before - 1e-9 for before, after in itertools.pairwise(likelihoods))
    assert likelihoods[-1] > likelihoods[0] + 10
    # Nothing beats the truth by more than the freedom of the fit explains.
    assert abs(likelihoods[-1] - float(log_likelihood(statistics, true).mean())) < 0.1
    # T is known up to a rotation of w: T T' and the distances between the factors are not affected by it.
    flat, flat_true = loadings.flatten(0, 1), true.flatten(0, 1)
    difference = (flat @ flat.T - flat_true @ flat_true.T).norm() / (flat_true @ flat_true.T).norm()
    assert float(difference) < 0.1
    mean, _ = posterior(statistics, loadings)
    ours, expected = torch.cdist(mean[:200], mean[:200]), torch.cdist(factors[:200], factors[:200])
    assert np.corrcoef(ours.flatten(), expected.flatten())[0, 1] > 0.98


def test_the_true_loadings_are_a_fixed_point() -> None:
    true, _, statistics = drawn(20000, 200)
    stepped = em_step(statistics, true)
    assert float((stepped - true).norm() / true.norm()) < 0.02


def test_posterior_is_bayesian_regression() -> None:
    """All frames of an utterance as one linear system with unit noise and a unit prior, solved by numpy."""
    rng = np.random.default_rng(0)
    loadings = rng.standard_normal((COMPONENTS, SIZE, RANK))
    component = rng.integers(COMPONENTS, size=30)
    frames = rng.standard_normal((30, SIZE))
    design = np.concatenate([loadings[k] for k in component])
    covariance = np.linalg.inv(np.eye(RANK) + design.T @ design)
    expected = covariance @ design.T @ frames.flatten()
    assignment = np.eye(COMPONENTS)[component]
    statistics = Statistics(*(torch.from_numpy(part)[None] for part in (assignment.sum(0), assignment.T @ frames)))
    mean, factor = posterior(statistics, torch.from_numpy(loadings))
    np.testing.assert_allclose(mean[0].numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(torch.cholesky_inverse(factor)[0].numpy(), covariance, rtol=1e-10)
    # The marginal likelihood of the stacked frames against that without loadings.
    full = np.eye(len(design)) + design @ design.T
    y = frames.flatten()
    evidence = -0.5 * (y @ np.linalg.solve(full, y) + np.linalg.slogdet(full)[1]) + 0.5 * y @ y
    assert float(log_likelihood(statistics, torch.from_numpy(loadings))) == pytest.approx(evidence, rel=1e-10)


@pytest.fixture(scope="module")
def talkers() -> tuple[Tensor, Tensor, Tensor]:
    """(features [120, 5, 50], labels, mask) of three classes, each with a mixture of its own that lies near that of
    the others."""
    rng = np.random.default_rng(1)
    means, moved = 4 * rng.standard_normal((3, 5)), 1.5 * rng.standard_normal((3, 3, 5))
    labels = np.arange(120) % 3
    component = rng.integers(3, size=(120, 50))
    center = means[component] + moved[labels[:, None], component]
    features = center + rng.standard_normal((120, 50, 5)) * np.array([1, 0.3, 5, 1, 1])
    lengths = rng.integers(30, 51, size=120)
    mask = torch.arange(50) < torch.from_numpy(lengths)[:, None]
    x = torch.from_numpy(features).float().transpose(1, 2)
    return torch.where(mask[:, None], x, torch.full_like(x, 50.0)), torch.from_numpy(labels), mask


@pytest.fixture(scope="module")
def estimated(talkers: tuple[Tensor, Tensor, Tensor]) -> tuple[IVector, list[float]]:
    model = MODELS["ivector"](n_classes=3, shape=(5, 50), components=3, rank=4)
    return model, model.estimate(*talkers, 0)


def test_estimation_separates_the_classes(
    estimated: tuple[IVector, list[float]], talkers: tuple[Tensor, Tensor, Tensor]
) -> None:
    model, likelihoods = estimated
    features, labels, mask = talkers
    assert len(likelihoods) == 11
    assert all(after >= before - 1e-6 for before, after in itertools.pairwise(likelihoods))
    assert float((model(features, mask).argmax(1) == labels).float().mean()) > 0.95
    again = MODELS["ivector"](n_classes=3, shape=(5, 50), components=3, rank=4)
    again.estimate(features, labels, mask, 0)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


def test_responsibilities_are_scikit_learns(
    estimated: tuple[IVector, list[float]], talkers: tuple[Tensor, Tensor, Tensor]
) -> None:
    model, _ = estimated
    mixture = GaussianMixture(3, covariance_type="full")
    mixture.weights_, mixture.means_ = model.log_weights.double().exp().numpy(), model.means.double().numpy()
    white = model.whitening.double()
    mixture.precisions_cholesky_ = white.numpy()
    mixture.covariances_ = torch.linalg.inv(white @ white.transpose(1, 2)).numpy()
    x = talkers[0][:1].transpose(1, 2)
    expected = mixture.predict_proba(x[0].double().numpy())
    np.testing.assert_allclose(model.responsibilities(x)[0].numpy(), expected, atol=1e-4)


def test_two_classes_and_mistakes(talkers: tuple[Tensor, Tensor, Tensor]) -> None:
    features, labels, mask = talkers
    pair = labels < 2
    model = MODELS["ivector"](n_classes=2, shape=(5, 50), components=2, rank=3)
    model.estimate(features[pair], labels[pair], mask[pair], 0)
    assert float((model(features[pair], mask[pair]).argmax(1) == labels[pair]).float().mean()) > 0.95
    with pytest.raises(ValueError, match="clips of every class, there are none of 1"):
        MODELS["ivector"](n_classes=4, shape=(5, 50), components=2).estimate(features, labels, mask, 0)
    with pytest.raises(ValueError, match=r"at least 10000 training frames for 1000 components, there are \d+"):
        MODELS["ivector"](n_classes=3, shape=(5, 50), components=1000).estimate(features, labels, mask, 0)


def built(clips: Clips) -> Victim:
    torch.manual_seed(0)
    return checkpoint.build(
        model="ivector", model_options={"components": 4, "rank": 8}, classes=clips.classes,
        front_end_options={"n_mfcc": 8, "cmvn": 60}, sample_rate=clips.sample_rate, n_samples=clips.n_samples,
    )  # fmt: skip


def test_training_is_one_estimation(many_clips: Clips, tmp_path: Path) -> None:
    index = torch.randperm(len(many_clips), generator=torch.Generator().manual_seed(0))
    train, valid = many_clips.select(index[:64]), many_clips.select(index[64:])
    settings = TrainingSettings(epochs=3, noise=0.3, ema=0.9)
    options = {"name": "iv", "model_dir": tmp_path, "training": settings, "progress": False}
    facts = fit(built(train), train, valid, **options)
    assert len(facts["history"]) == facts["best_epoch"] == 1
    assert facts["validation_accuracy"] > 0.5
    assert not (tmp_path / "iv.last.state").exists()
    victim, _ = checkpoint.load(tmp_path / "iv.pt")
    logits = victim(valid.waveforms())
    assert float((logits.argmax(1) == valid.labels).float().mean()) == pytest.approx(facts["validation_accuracy"])
    torch.testing.assert_close(victim.frozen()(valid.waveforms()), logits, atol=1e-4, rtol=1e-4)
    # Nothing to do the second time; and the same file from another run.
    assert fit(built(train), train, valid, **options)["seconds"] == facts["seconds"]
    fit(built(train), train, valid, **{**options, "name": "other"})
    other, _ = checkpoint.load(tmp_path / "other.pt")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in victim.state_dict().items())
    for refused in ({"mixup": 0.2}, {"method": "pgd"}):
        with pytest.raises(ValueError, match="estimated, not trained by gradients"):
            fit(built(train), train, valid, **{**options, "name": "no", "training": TrainingSettings(**refused)})
    # The score has a gradient down to the waveform: along it, finite differences agree.
    double = victim.double()
    x = valid.waveforms()[:1].double().requires_grad_()
    (gradient,) = torch.autograd.grad(double(x)[0, 1], x)
    direction, h = gradient / gradient.norm(), 1e-6
    with torch.no_grad():
        slope = (double(x + h * direction) - double(x - h * direction))[0, 1] / (2 * h)
    assert float(slope) == pytest.approx(float(gradient.norm()), rel=1e-3)
