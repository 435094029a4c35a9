"""Singular spectrum analysis against the trajectory matrix itself, and the Kenansville attack with it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from src.attacks.labels.singular_spectrum import Decomposition, scatter, window_of
from src.evaluation.call_counter import CallCounter
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel

N = 1000


def noisy(batch: int = 2, n: int = N) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.05 * torch.randn(batch, n, generator=generator).cumsum(1)


def by_definition(x: np.ndarray, window: int, kept: int) -> np.ndarray:
    """The trajectory matrix from the SVD's `kept` leading terms, averaged over its anti-diagonals."""
    trajectory = np.lib.stride_tricks.sliding_window_view(x, window).T  # [L, K]
    u, s, v = np.linalg.svd(trajectory, full_matrices=False)
    low_rank = (u[:, :kept] * s[:kept]) @ v[:kept]
    flipped = low_rank[::-1]
    return np.array([np.diagonal(flipped, k).mean() for k in range(1 - window, trajectory.shape[1])])


@pytest.mark.parametrize("n", [400, 999, 1024])
def test_the_scatter_matrix_is_that_of_the_windows(n: int) -> None:
    x = noisy(n=n)
    for window in (2, 17, window_of(n)):
        windows = x.double().unfold(1, window, 1)
        torch.testing.assert_close(scatter(x, window), windows.mT @ windows, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kept", [1, 3, 20, 49])
def test_the_leading_components_are_those_of_the_svd(kept: int) -> None:
    x = noisy()
    spectrum = Decomposition(x)
    assert spectrum.window == 50
    for i in range(2):
        expected = by_definition(x[i].double().numpy(), 50, kept)
        np.testing.assert_allclose(spectrum.leading(i, 50 - kept).numpy(), expected, atol=2e-6)
        singular = np.linalg.svd(np.lib.stride_tricks.sliding_window_view(x[i].double().numpy(), 50), compute_uv=False)
        np.testing.assert_allclose(spectrum.energy[i].numpy(), singular[::-1] ** 2, rtol=1e-5, atol=1e-7)


def test_all_components_together_are_the_clip() -> None:
    x = noisy()
    spectrum = Decomposition(x)
    for i in range(2):
        torch.testing.assert_close(spectrum.component_sum(i, 0, 50), x[i], rtol=0, atol=1e-6)
        assert torch.equal(spectrum.leading(i, 0), x[i])
        assert (spectrum.leading(i, 50) == 0).all()
        parts = spectrum.component_sum(i, 0, 20) + spectrum.component_sum(i, 20, 50)
        torch.testing.assert_close(parts, x[i], rtol=0, atol=1e-6)


def test_the_window_is_the_published_one() -> None:
    assert [window_of(n) for n in (640, 8000, 60000, 100000)] == [32, 400, 3000, 3000]


def attack(model: object, x: Tensor, ids: str = "ab", **keys: object) -> Tensor:
    y, rng = torch.zeros(len(x), dtype=torch.long), RandomStreams(0, ids, "kenansville")
    threat = ThreatModel("l2", bounds=(-1.0, 1.0))
    return ATTACKS["kenansville"](model, x, y, threat, rng=rng, targeted=False, method="ssa", **keys)


def two_tones(n: int = 4000) -> tuple[Tensor, Tensor, Tensor]:
    t = torch.arange(n) / n
    strong, weak = torch.sin(2 * math.pi * 400 * t), torch.sin(2 * math.pi * 200 * t)
    return 0.5 * strong, 0.1 * weak, torch.arange(2)[:, None] * 0.05 * strong


def test_the_weaker_tone_is_removed_and_no_more() -> None:
    strong, weak, louder = two_tones()
    x = strong + weak + louder + 0.001 * torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))

    def model(x: Tensor) -> Tensor:
        s = x @ weak / (weak @ weak) - 0.5
        return torch.stack([s, -s], 1)

    counter = CallCounter.start(model, 2)
    x_adv = attack(counter, x)
    assert (model(x_adv).argmax(1) == 1).all()
    assert (counter.forwards <= 36).all()
    torch.testing.assert_close(x_adv @ strong / (strong @ strong), 1 + torch.tensor([0.0, 0.1]), rtol=0, atol=0.02)
    assert ((x - x_adv).norm(dim=1) < 1.1 * (weak.norm() + 0.1)).all()
    alone = attack(model, x[1:], "b")
    torch.testing.assert_close(alone, x_adv[1:], rtol=0, atol=1e-6)


def test_one_level_bisects_as_published() -> None:
    strong, weak, _ = two_tones(1000)
    x = (strong + weak)[None]
    kept: list[float] = []

    def model(x: Tensor) -> Tensor:
        kept.append(float(x.norm()))
        return torch.stack([x @ weak - 1e-3, torch.zeros(len(x))], 1)

    x_adv = attack(model, x, "a", levels=1, steps=15)
    assert kept[1] == 0.0, "silence first"
    assert len(kept) <= 2 + 15
    assert x_adv.norm() > 0.5 * x.norm()


def test_a_real_clip_loses_little_at_first(shared: Path) -> None:
    path = sorted((shared / "speech_commands").rglob("*.wav"))[0]
    x = torch.from_numpy(soundfile.read(path, dtype="float32")[0])[None, :8000]
    spectrum = Decomposition(x)
    kept = [float((spectrum.leading(0, n) - x[0]).norm()) for n in (0, 100, 200, 300, 400)]
    assert kept == sorted(kept)
    assert kept[-1] == pytest.approx(float(x.norm()))
    assert kept[2] < 0.5 * kept[-1], "half of the components hold most of a clip"
