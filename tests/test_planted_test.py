"""The planted example is really there, a working attack finds it, a broken one is caught."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from src.evaluation.planted_test import SelfTest, plant, self_test
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel

IDS = [f"clip{i}" for i in range(8)]


def streams(purpose: str) -> RandomStreams:
    return RandomStreams(0, IDS, purpose)


@pytest.fixture
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(100, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)).requires_grad_(False)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.01), ("l2", 0.1)])
def test_a_working_attack_finds_it(net: torch.nn.Module, norm: str, eps: float) -> None:
    x = torch.randn(8, 100)
    outcome = self_test(partial(ATTACKS["pgd"], steps=40), net, x, ThreatModel(norm, eps), streams=streams)
    assert outcome.planted >= 6
    assert outcome.found == 1.0
    assert outcome.by_chance < 0.5
    assert "finds what is there" in str(outcome)


def test_a_broken_attack_is_caught(net: torch.nn.Module) -> None:
    def lazy(model, x, y, threat, *, rng, targeted):
        return x.clone()

    outcome = self_test(lazy, net, torch.randn(8, 100), ThreatModel("linf", 0.01), streams=streams)
    assert outcome.found == 0.0
    assert "MISSES" in str(outcome)


def test_the_share_agrees_with_the_judgment() -> None:
    assert "MISSES what is known to be there: 94.6%" in str(SelfTest(111, 105 / 111, 0.0))


def test_the_clean_clip_is_class_zero_and_the_point_class_one(net: torch.nn.Module) -> None:
    x = torch.randn(8, 100)
    planted, there = plant(net, x, ThreatModel("linf", 0.01), streams("plant"))
    assert (planted(x).argmax(1)[there] == 0).all()


def test_constant_model_and_infinite_budget_are_refused() -> None:
    constant = torch.nn.Linear(100, 10).requires_grad_(False)
    constant.weight.zero_()
    with pytest.raises(ValueError, match="could not plant"):
        self_test(ATTACKS["pgd"], constant, torch.randn(8, 100), ThreatModel("linf", 0.01), streams=streams)
    with pytest.raises(ValueError, match="finite eps"):
        self_test(ATTACKS["pgd"], constant, torch.randn(8, 100), ThreatModel("linf"), streams=streams)


def test_what_chance_finds_too_is_said_to_prove_little() -> None:
    assert "says little" in str(SelfTest(planted=10, found=1.0, by_chance=0.9))
    assert "says little" not in str(SelfTest(planted=10, found=1.0, by_chance=0.1))
