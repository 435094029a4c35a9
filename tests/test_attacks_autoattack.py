"""AutoAttack: at least as strong as its members, exact on linear models, and warns of models it cannot evaluate."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from src.attacks.gradients.autoattack import flags
from src.losses import fooled
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel, norm_of

BATCH, ENTRIES = 10, 40
QUICK = {"steps": 20, "queries": 50, "targets": 3}


def problem(classes: int = 5) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(6)
    net = nn.Sequential(nn.Linear(ENTRIES, 32), nn.Tanh(), nn.Linear(32, classes)).requires_grad_(False)
    x = torch.randn(BATCH, ENTRIES)
    return net, x, net(x).argmax(1)


def run(
    name: str, model: object, x: Tensor, y: Tensor, threat: ThreatModel, targeted: bool = False, **keys: object
) -> Tensor:
    streams = RandomStreams(0, [str(i) for i in range(len(x))], name)
    return ATTACKS[name](model, x, y, threat, rng=streams, targeted=targeted, **keys)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.25), ("l1", 0.9)])
@pytest.mark.parametrize("targeted", [False, True])
def test_not_behind_any_member(norm: str, eps: float, targeted: bool) -> None:
    net, x, y = problem()
    y = (y + 1) % 5 if targeted else y
    threat = ThreatModel(norm, eps, (-5.0, 5.0))
    x_adv = run("autoattack", net, x, y, threat, targeted, **QUICK)
    assert threat.contains(x_adv, x).all()
    fooled_by_ensemble = fooled(net(x_adv), y, targeted)
    for member, keys in (("apgd", {"steps": 20}), ("fmn", {"steps": 20}), ("pgd", {"steps": 20})):
        assert (
            fooled_by_ensemble.sum() >= fooled(net(run(member, net, x, y, threat, targeted, **keys)), y, targeted).sum()
        ), member


def test_each_member_runs_only_on_survivors() -> None:
    net, x, y = problem()
    easy = torch.arange(BATCH) < 7
    threat = ThreatModel("linf", torch.where(easy, 5.0, 1e-6))
    batch_sizes = []
    counting = lambda x: batch_sizes.append(len(x)) or net(x)  # noqa: E731
    x_adv = run("autoattack", counting, x, y, threat, **QUICK)
    assert torch.equal(fooled(net(x_adv), y), easy)
    assert set(batch_sizes[len(batch_sizes) // 3 :]) == {3}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes(norm: str, classes: int) -> None:
    net, x, y = problem(classes)
    assert fooled(net(run("autoattack", net, x, y, ThreatModel(norm, 100.0), **QUICK)), y).all()


def test_exact_on_a_linear_model() -> None:
    torch.manual_seed(4)
    w, x = torch.randn(ENTRIES), torch.randn(BATCH, ENTRIES)
    model = lambda x: torch.stack([x @ w, -(x @ w)], 1)  # noqa: E731
    y = model(x).argmax(1)
    exact = (x @ w).abs() / norm_of(w[None], "l1")
    for fraction, expected in ((0.98, False), (1.02, True)):
        x_adv = run("autoattack", model, x, y, ThreatModel("linf", exact * fraction), steps=50, queries=50)
        assert (fooled(model(x_adv), y) == expected).all(), fraction


def test_warnings_about_models_it_cannot_evaluate() -> None:
    net, x, y = problem()
    assert flags(net, x, y) == {"randomized": 0.0, "zero_gradient": 0.0}
    noisy = lambda x: net(x + 0.01 * torch.randn_like(x))  # noqa: E731
    stairs = lambda x: net((10 * x).round() / 10 + 0 * x)  # noqa: E731
    assert flags(noisy, x, y)["randomized"] == 1
    assert flags(stairs, x, y)["zero_gradient"] == 1
    with pytest.warns(UserWarning, match=r"zero.*adaptive.*100%"):
        run("autoattack", stairs, x, y, ThreatModel("linf", 0.01), **QUICK)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run("autoattack", net, x, y, ThreatModel("linf", 0.01), **QUICK)
