"""The default evaluations, and the decaying step of PGD that they are made of."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from src.evaluation.call_counter import CallCounter
from src.losses import fooled
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel, norm_of
from tests.test_attacks_autoattack import BATCH, ENTRIES, problem, run


@pytest.mark.parametrize("name", ["standard", "quick"])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.25), ("l1", 0.9)])
def test_at_least_as_strong_as_the_first_stage(name: str, targeted: bool, norm: str, eps: float) -> None:
    net, x, y = problem()
    y = (y + 1) % 5 if targeted else y
    threat = ThreatModel(norm, eps, (-5.0, 5.0))
    keys = {
        "steps": 18 if name == "quick" else 20,
        "loss": "margin",
        "random_start": False,
        "momentum": 0.75 if name == "quick" else 0.0,
    }
    first = fooled(net(run("pgd", net, x, y, threat, targeted, **keys)), y, targeted)
    x_adv = run(name, net, x, y, threat, targeted)
    assert threat.contains(x_adv, x).all()
    assert (fooled(net(x_adv), y, targeted) | ~first).all()


@pytest.mark.parametrize("name", ["standard", "quick", "pgd"])
def test_exact_on_a_linear_model(name: str) -> None:
    torch.manual_seed(4)
    w, x = torch.randn(ENTRIES), torch.randn(BATCH, ENTRIES)
    model = lambda x: torch.stack([x @ w, -(x @ w)], 1)  # noqa: E731
    y = model(x).argmax(1)
    exact = (x @ w).abs() / norm_of(w[None], "l1")
    for fraction, expected in ((0.98, False), (1.02, True)):
        x_adv = run(name, model, x, y, ThreatModel("linf", exact * fraction))
        assert (fooled(model(x_adv), y) == expected).all(), fraction


class Mirage(nn.Module):
    """The margin points to class 1, which no point of the ball reaches; class 2 is reached against it."""

    def forward(self, x: Tensor) -> Tensor:
        near, far = x[:, 0], x[:, 1]
        return torch.stack([torch.zeros_like(near), (4 * near).tanh() * 0.9 - 1.0, 2 * far - 1.5 - 10 * near.relu()], 1)


@pytest.mark.parametrize("name", ["standard", "quick"])
def test_targeted_stages_find_what_the_margin_misses(name: str) -> None:
    model, x, y = Mirage(), torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)
    threat = ThreatModel("linf", 1.0)
    first = run("pgd", model, x, y, threat, loss="margin", random_start=False, steps=20)
    assert not fooled(model(first), y).any()
    assert fooled(model(run(name, model, x, y, threat)), y).all()
    without = fooled(model(run(name, model, x, y, threat, targets=0)), y)
    assert not without.any() if name == "quick" else not without.all()  # a random start of APGD may land beyond


def test_later_stages_run_on_survivors_only() -> None:
    net, x, y = problem()
    easy = torch.arange(BATCH) < 7
    counter = CallCounter.start(net, BATCH)
    run("standard", counter, x, y, ThreatModel("linf", torch.where(easy, 5.0, 1e-6)))
    assert counter.backwards[easy].max() <= 3
    assert counter.backwards[~easy].min() > 150


@pytest.mark.parametrize(
    ("name", "keys", "passes"),
    [
        ("standard", {}, 20 + 20 + 40 + 3 * 71),
        ("standard", {"apgd_steps": 10}, 20 + 20 + 40 + 3 * 11),
        ("standard", {"targets": 1}, 20 + 40 + 3 * 71),
        ("standard", {"targets": 3, "steps": 5}, 5 + 2 * 5 + 10 + 3 * 71),
        ("quick", {}, 4 * 18),
        ("quick", {"targets": 0}, 2 * 18),
    ],
)
def test_what_an_example_that_stands_costs(name: str, keys: dict[str, int], passes: int) -> None:
    net, x, y = problem()
    counter = CallCounter.start(net, BATCH)
    run(name, counter, x, y, ThreatModel("linf", 1e-6), **keys)
    assert set(counter.backwards.tolist()) == {passes}


def test_the_margin_run_is_not_repeated_towards_the_likeliest_class() -> None:
    """It goes there by itself; the targeted runs take the classes after it."""
    aims: set[int] = set()

    def model(x: Tensor) -> Tensor:
        logits = torch.tensor([5.0, 1.0, 2.0, 3.0, 0.0]) + 1e-3 * x.sum(1, keepdim=True) * torch.arange(5)
        if logits.requires_grad:
            logits.register_hook(lambda grad: aims.update(grad[0].argmax()[None].tolist()))
        return logits

    run("quick", model, torch.zeros(1, 4), torch.zeros(1, dtype=torch.long), ThreatModel("linf", 1e-6), targets=0)
    assert aims == {3}
    aims.clear()
    run("quick", model, torch.zeros(1, 4), torch.zeros(1, dtype=torch.long), ThreatModel("linf", 1e-6))
    assert aims == {3, 2, 1}


def test_the_default_step_of_pgd_falls_from_eps_to_nothing() -> None:
    w = torch.ones(1, ENTRIES)
    points: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        points.append(x.detach().clone())
        return torch.cat([x @ w.T, torch.zeros(len(x), 1)], 1)

    x, y = torch.full((1, ENTRIES), 100.0), torch.zeros(1, dtype=torch.long)
    streams = RandomStreams(0, ["0"], "pgd")
    threat = ThreatModel("l2", 1000.0)  # never left, so that steps are what was asked for; the margin is out of reach
    w *= 1e-3
    ATTACKS["pgd"](model, x, y, threat, rng=streams, targeted=False, steps=10, random_start=False, early_exit=False)
    lengths = [float((b - a).norm()) for a, b in itertools.pairwise(points)]
    assert lengths[0] == pytest.approx(1000, rel=1e-3)
    assert lengths[-1] < 0.05 * lengths[0]
