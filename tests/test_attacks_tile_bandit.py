"""Search over time-frequency tiles: the transform is orthonormal, the allocation optimal, the query limit kept, and
models of band levels, whose distance to the boundary is known, are fooled."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from src.attacks.scores.tile_bandit import Posterior
from src.attacks.scores.tiles import DEEPEST_CUT, Tiles
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.stages.mdct import Mdct
from src.threat import ThreatModel, norm_of

RATE = 4000
TIME = 2000


class BandLevel:
    """Logits (s, -s): class 1 where the L2 norm of a band exceeds `ratio` times that of the clean clip. Counts the
    queries per example."""

    def __init__(self, x: Tensor, low_hz: float, high_hz: float, ratio: float):
        hz = torch.fft.rfftfreq(x.shape[1], 1 / RATE)
        self.inside = (hz >= low_hz) & (hz < high_hz)
        self.goal, self.counts = ratio * self.level(x), torch.zeros(len(x), dtype=torch.long)
        self.index = torch.arange(len(x))

    def level(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * self.inside, n=x.shape[1]).norm(dim=1)

    def __call__(self, x: Tensor) -> Tensor:
        self.counts[self.index] += 1
        s = (self.goal[self.index] / self.level(x).clamp_min(1e-9)).log()
        return torch.stack([s, -s], 1)

    def select(self, index: Tensor) -> BandLevel:
        part = object.__new__(BandLevel)
        part.__dict__.update(self.__dict__)
        part.index = self.index[index]
        return part


def clips(batch: int = 3) -> Tensor:
    """Noise whose spectrum falls by 40 dB towards the upper end."""
    generator = torch.Generator().manual_seed(1)
    spectrum = torch.fft.rfft(torch.randn(batch, TIME, generator=generator))
    fall = 10 ** (-2 * torch.linspace(0, 1, spectrum.shape[1]))
    return 0.1 * torch.fft.irfft(spectrum * fall, n=TIME)


def run(model: BandLevel, x: Tensor, y: Tensor, threat: ThreatModel, queries: int, **keys: object) -> Tensor:
    ids = [str(i) for i in range(len(x))]
    return ATTACKS["tile_bandit"](
        model, x, y, threat, rng=RandomStreams(0, ids, "tiles"), sample_rate=RATE, bands=8, queries=queries,
        **{"targeted": False, **keys},
    )  # fmt: skip


@given(st.integers(1, 300), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_the_transform_is_orthonormal(n_samples: int, hop_length: int) -> None:
    x = torch.randn(2, n_samples, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mdct = Mdct(n_samples, hop_length, x)
    y = mdct.analyze(x)
    assert y.shape == (2, mdct.n_frames, hop_length)
    torch.testing.assert_close(y.flatten(1).norm(dim=1), x.norm(dim=1))
    torch.testing.assert_close(mdct.synthesize(y), x)


def test_a_tone_is_in_one_band_and_a_click_in_one_tile_of_time() -> None:
    t = torch.arange(TIME) / RATE
    tone, click = torch.sin(2 * math.pi * 700 * t), (t == t[1000]).float()
    tiles = Tiles(torch.stack([tone, click]), RATE, 0.01, 0.04, 8)
    power = tiles.level.square().view(2, *tiles.shape)
    assert tiles.shape == (13, 8)
    by_band, by_time = power[0].sum(0), power[1].sum(1)
    mel = 8 * math.log1p(700 / 700) / math.log1p(RATE / 2 / 700)
    assert by_band.argmax() == int(mel)
    assert by_band.max() > 0.95 * by_band.sum()
    assert by_time.max() > 0.99 * by_time.sum()
    assert by_time.argmax() == 1000 // (4 * 40)


def test_the_allocation_gains_most() -> None:
    """No other change of the same norm nearby gains more in sum(weight * log level)."""
    torch.manual_seed(0)
    tiles = Tiles(clips(), RATE, 0.01, 0.04, 8)
    weight, size = torch.randn_like(tiles.level), 0.3 * tiles.level.norm(dim=1)

    def gain(change: Tensor) -> Tensor:
        return (weight * (1 + change / tiles.level).log()).sum(1)

    change = tiles.allocate(weight, size)
    torch.testing.assert_close(change.norm(dim=1), size, rtol=1e-2, atol=0)
    torch.testing.assert_close(norm_of(tiles.synthesize(change), "l2"), size, rtol=3e-2, atol=0)
    assert (change.sign() == weight.sign()).all()
    assert (change >= -DEEPEST_CUT * tiles.level).all()
    norm = change.norm(dim=1, keepdim=True)
    for _ in range(50):
        other = change + 0.03 * norm * torch.nn.functional.normalize(torch.randn_like(change))
        other = (other * norm / other.norm(dim=1, keepdim=True)).maximum(-DEEPEST_CUT * tiles.level)
        assert (gain(other) < gain(change)).all()


def test_the_posterior_recovers_a_linear_function() -> None:
    torch.manual_seed(0)
    like = torch.zeros(2, dtype=torch.float64)
    posterior = Posterior.prior((4, 3), 1e-6, like)
    weights = torch.randn(2, 12, dtype=torch.float64)
    for _ in range(30):
        features = torch.randn(2, 12, dtype=torch.float64)
        posterior.observe(features, (features * weights).sum(1))
    posterior.observe(features, torch.full((2,), -math.inf, dtype=torch.float64))
    torch.testing.assert_close(posterior.mean, weights, rtol=0, atol=1e-3)
    sample = posterior.sample(RandomStreams(0, ["a", "b"], "test"), 1.0)
    torch.testing.assert_close(sample, weights, rtol=0, atol=0.05)


@pytest.mark.parametrize(("norm", "slack"), [("l2", 2.5), ("linf", 4.0)])
def test_a_band_is_raised_beyond_its_threshold(norm: str, slack: float) -> None:
    """To double the level of a band takes an L2 norm of that level at least; spread over all samples, an linf of
    that / sqrt(samples)."""
    x = clips()
    model = BandLevel(x, 800, 1200, 2.0)
    distance = model.level(x) / (1 if norm == "l2" else math.sqrt(TIME))
    y = torch.zeros(3, dtype=torch.long)
    threat = ThreatModel(norm, 0.98 * distance, (-1.0, 1.0))
    assert (model(run(model, x, y, threat, 50)).argmax(1) == 0).all()
    threat = ThreatModel(norm, slack * distance, (-1.0, 1.0))
    x_adv = run(model, x, y, threat, 300)
    assert (model(x_adv).argmax(1) == 1).all()
    assert threat.contains(x_adv, x).all()


def test_it_aims_at_a_target() -> None:
    x = clips()
    model = BandLevel(x, 400, 2000, 2.0)
    x_adv = run(model, x, torch.ones(3, dtype=torch.long), ThreatModel("l2", 2 * model.level(x)), 300, targeted=True)
    assert (model(x_adv).argmax(1) == 1).all()
    assert (model.level(x_adv) > 2 * model.level(x)).all()


def test_queries_are_counted_and_limited() -> None:
    x = clips()
    model = BandLevel(x, 800, 1200, 100.0)
    x_adv = run(model, x, torch.tensor([0, 1, 0]), ThreatModel("l2", 0.1), 20)
    assert model.counts.tolist() == [20, 1, 20]
    assert torch.equal(x_adv[1], x[1]), "misclassified before"


def test_no_budget_means_an_unchanged_clip() -> None:
    x = torch.cat([clips(1), torch.zeros(1, TIME)])
    model = BandLevel(x, 800, 1200, 2.0)
    model.goal = torch.full((2,), 1.0)
    x_adv = run(model, x, torch.zeros(2, dtype=torch.long), ThreatModel("l2", 0.0), 10)
    assert torch.equal(x_adv, x)
    assert model.counts.tolist() == [10, 10]


def test_digital_silence_can_be_made_louder() -> None:
    """The dither gives silence a content; the masked half stays silent."""
    x = torch.zeros(2, TIME)
    mask = (torch.arange(TIME) < TIME // 2).expand(2, -1)
    model = BandLevel(x, 800, 1200, 1.0)
    model.goal = torch.full((2,), 0.05)
    x_adv = run(model, x, torch.zeros(2, dtype=torch.long), ThreatModel("l2", 0.2, (-1.0, 1.0), mask), 300)
    assert (model(x_adv).argmax(1) == 1).all()
    assert torch.equal(x_adv[:, TIME // 2 :], x[:, TIME // 2 :])
