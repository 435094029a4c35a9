"""Score- and decision-based attacks in the space of time-frequency tiles: models of band levels are fooled within
half the queries that the search in samples takes, and the weights stand for legal perturbations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from src.attacks.model import votes
from src.attacks.scores.space import SampleSpace, TileSpace, search_space
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel, norm_of
from tests.test_attacks_tile_bandit import RATE, TIME, BandLevel, clips

SCORES = ("nes", "spsa", "siren", "genetic")


def attack(name: str, model: BandLevel, x: Tensor, y: Tensor, threat: ThreatModel, **keys: object) -> Tensor:
    streams = RandomStreams(0, [str(i) for i in range(len(x))], name)
    return ATTACKS[name](model, x, y, threat, rng=streams, sample_rate=RATE, **{"targeted": False, **keys})  # type: ignore[arg-type]


def tile_space(x: Tensor, threat: ThreatModel, model: object = None) -> TileSpace:
    streams = RandomStreams(0, [str(i) for i in range(len(x))], "tiles")
    space = search_space("tiles", model, x, threat, streams, sample_rate=RATE, bands=8, tile_s=0.08)  # type: ignore[arg-type]
    assert isinstance(space, TileSpace)
    return space


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("name", SCORES)
def test_a_search_in_tiles_takes_less_than_half_the_queries(name: str, norm: str) -> None:
    x = clips(2)
    model, y = BandLevel(x, 800, 1200, 2.0), torch.zeros(2, dtype=torch.long)
    distance = model.level(x) / (1 if norm == "l2" else math.sqrt(TIME))
    threat = ThreatModel(norm, (2.5 if norm == "l2" else 3.2) * distance, (-1.0, 1.0))
    queries = {}
    for space in ("tiles", "samples"):
        model.counts.zero_()
        x_adv = attack(name, model, x, y, threat, queries=300, space=space)
        queries[space] = model.counts.clone()
        assert (model.counts <= 300).all()
        assert threat.contains(x_adv, x).all()
        if space == "tiles":
            assert (model(x_adv).argmax(1) == 1).all()
    assert queries["tiles"].sum() < queries["samples"].sum() / 2, queries


@pytest.mark.parametrize("name", SCORES)
def test_a_clip_that_is_misclassified_stays_as_it_is(name: str) -> None:
    x = clips()
    model = BandLevel(x, 800, 1200, 100.0)
    x_adv = attack(name, model, x, torch.tensor([0, 1, 0]), ThreatModel("l2", 0.1), queries=70)
    assert torch.equal(x_adv[1], x[1])
    assert model.counts[1] == 1


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_weights_stand_for_perturbations_of_the_whole_budget(norm: str) -> None:
    x = clips()
    mask = (torch.arange(TIME) < TIME // 2).expand(3, -1)
    eps = 0.01 if norm == "linf" else torch.tensor([0.1, 0.2, 0.3])
    weight = torch.randn(3, 14 * 8, generator=torch.Generator().manual_seed(0))
    masked = ThreatModel(norm, eps, (-1.0, 1.0), mask)
    x_adv = tile_space(x, masked).decode(weight[:, : tile_space(x, masked).start.shape[1]])
    assert masked.contains(x_adv, x).all()
    assert torch.equal(x_adv[:, TIME // 2 :], x[:, TIME // 2 :])
    threat = ThreatModel(norm, eps, (-1.0, 1.0))
    space = tile_space(x, threat)
    weight = weight[:, : space.start.shape[1]]
    x_adv = space.decode(weight)
    assert threat.contains(x_adv, x).all()
    torch.testing.assert_close(norm_of(x_adv - x, norm), threat.budgets(x), rtol=0.06, atol=0)
    torch.testing.assert_close(space.decode(0.1 * weight), x_adv, rtol=0, atol=1e-5)
    assert torch.equal(space.decode(space.start), x)


def test_a_spectrogram_is_searched_bin_by_bin() -> None:
    x, threat = torch.zeros(2, 4, 6), ThreatModel("l2", 1.0)
    space = search_space("tiles", lambda z: z, x, threat, RandomStreams(0, "ab", ""), sample_rate=1, bands=1, tile_s=1)
    assert isinstance(space, SampleSpace)
    assert space.start is x
    assert space.threat is threat


def test_votes_are_cast_on_the_clips() -> None:
    """A success of a randomized model is confirmed by its votes on the clips, not on the weights."""

    class Random:
        draws = 5

        def votes(self, x: Tensor) -> Tensor:
            assert x.shape == (3, TIME)
            return torch.stack([x[:, :2]] * 7)

    x = clips()
    space = tile_space(x, ThreatModel("l2", 0.1), Random())
    ballots = votes(space.model, space.start)
    assert ballots is not None
    assert torch.equal(ballots[6], x[:, :2])
    assert space.model.draws == 5


def test_hopskipjump_in_tiles_keeps_what_the_success_needs() -> None:
    """Class 1 begins where a band has three times its level. From noise of all frequencies, what is outside the band is
    removed within the queries; a search in samples keeps most of it."""
    x = clips()
    model, y = BandLevel(x, 800, 1200, 3.0), torch.zeros(3, dtype=torch.long)
    nearest = 2 * model.level(x)
    excess = {}
    for space in ("tiles", "samples"):
        model.counts.zero_()
        x_adv = attack("hopskipjump", model, x, y, ThreatModel("l2", bounds=(-1.0, 1.0)), queries=600, space=space)
        assert (model.counts <= 600).all()
        assert (model(x_adv).argmax(1) == 1).all()
        excess[space] = norm_of(x_adv - x, "l2") / nearest
        assert (excess[space] > 1 - 1e-3).all()
    assert (excess["tiles"] < 0.85 * excess["samples"]).all(), excess
