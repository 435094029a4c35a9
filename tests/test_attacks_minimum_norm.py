"""DDN, FMN, DeepFool, EAD and CW linf on linear models, whose distances are known, and against foolbox on a trained
net."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from src.attacks.minimum_norm.search import DUAL
from src.losses import fooled
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel, norm_of

BATCH, ENTRIES, CLASSES = 8, 40, 5
CASES = [
    ("ddn", "l2", 1.01), ("fmn", "l2", 1.01), ("fmn", "linf", 1.01), ("fmn", "l1", 1.03), ("deepfool", "l2", 1.01),
    ("deepfool", "linf", 1.01), ("ead", "l1", 1.05), ("cw_linf", "linf", 1.03), ("cw", "l2", 1.02),
]  # fmt: skip


def linear(scale: float = 1.0) -> tuple[nn.Linear, Tensor, Tensor]:
    """(model, x, y): 5 classes, inputs of the given scale, labels as the model gives them."""
    torch.manual_seed(3)
    model = nn.Linear(ENTRIES, CLASSES).requires_grad_(False)
    model.bias.mul_(scale)
    x = torch.randn(BATCH, ENTRIES) * scale
    return model, x, model(x).argmax(1)


def distance(model: nn.Linear, x: Tensor, y: Tensor, norm: str, targeted: bool = False) -> Tensor:
    """Exact: the nearest plane to another class. Towards a target a lower bound: the farthest plane to cross."""
    logits = model(x)
    gaps = logits.gather(1, y[:, None]) - logits
    slopes = norm_of((model.weight[y][:, None] - model.weight).flatten(0, 1), DUAL[norm]).view(len(x), -1)
    distances = gaps / slopes
    is_label = nn.functional.one_hot(y, CLASSES).bool()
    return (
        (-distances).masked_fill(is_label, -math.inf).amax(1)
        if targeted
        else distances.masked_fill(is_label, math.inf).amin(1)
    )


def run(
    name: str, model: object, x: Tensor, y: Tensor, threat: ThreatModel, targeted: bool = False, **keys: object
) -> Tensor:
    streams = RandomStreams(0, [str(i) for i in range(len(x))], name)
    return ATTACKS[name](model, x, y, threat, rng=streams, targeted=targeted, **keys)


@pytest.mark.parametrize(("name", "norm", "limit"), CASES)
@pytest.mark.parametrize("scale", [1.0, 1e-4], ids=["loud", "quiet"])
def test_the_exact_distance_of_a_linear_model(name: str, norm: str, limit: float, scale: float) -> None:
    model, x, y = linear(scale)
    x_adv = run(name, model, x, y, ThreatModel(norm))
    assert fooled(model(x_adv), y).all()
    ratio = norm_of(x_adv - x, norm) / distance(model, x, y, norm)
    # The attack's path may end at another class than the nearest.
    assert (ratio > 0.999).all(), ratio
    assert ratio.median() < limit, ratio
    assert (ratio < 1.3).all(), ratio


@pytest.mark.parametrize(("name", "norm", "limit"), CASES)
def test_towards_a_target(name: str, norm: str, limit: float) -> None:
    model, x, y = linear()
    target = (y + 1) % CLASSES
    x_adv = run(name, model, x, target, ThreatModel(norm), targeted=True)
    assert fooled(model(x_adv), target, targeted=True).all()
    assert (norm_of(x_adv - x, norm) > 0.999 * distance(model, x, target, norm, targeted=True)).all()


def test_fewest_entries() -> None:
    """l0 with bounds: move the entries with the largest |w| * room to their bounds until the sign flips."""
    torch.manual_seed(5)
    w, x = torch.randn(ENTRIES), torch.rand(BATCH, ENTRIES) - 0.5
    model = lambda x: torch.stack([x @ w, -(x @ w)], 1)  # noqa: E731
    y = model(x).argmax(1)
    toward = -(x @ w).sign()[:, None] * w
    gain = (toward.abs() * (1 - toward.sign() * x)).sort(1, descending=True).values.cumsum(1)
    fewest = (gain <= (x @ w).abs()[:, None]).sum(1) + 1
    x_adv = run("fmn", model, x, y, ThreatModel("l0", bounds=(-1.0, 1.0)))
    assert fooled(model(x_adv), y).all()
    assert (norm_of(x_adv - x, "l0") <= fewest + 1).all()
    assert (norm_of(x_adv - x, "l0") >= fewest).all()


@pytest.mark.parametrize(("name", "norm"), [case[:2] for case in CASES[:-1]])
def test_misclassified_and_hopeless_examples_are_unchanged(name: str, norm: str) -> None:
    model, x, y = linear()
    wrong = (y + 1) % CLASSES
    assert torch.equal(run(name, model, x, wrong, ThreatModel(norm)), x)
    flat = lambda x: torch.eye(3)[0] + 0 * x.sum(1, keepdim=True)  # noqa: E731
    assert torch.equal(run(name, flat, x, torch.zeros_like(y), ThreatModel(norm), **short(name)), x)


@pytest.mark.parametrize(("name", "norm"), [case[:2] for case in CASES[:-1]])
def test_more_steps_and_a_final_bisection_never_hurt(name: str, norm: str) -> None:
    net, x, y = curved()
    rough = run(name, net, x, y, ThreatModel(norm), shrink_steps=0)
    fine = run(name, net, x, y, ThreatModel(norm), shrink_steps=12)
    assert (norm_of(fine - x, norm) <= norm_of(rough - x, norm) * (1 + 1e-6)).all()


def short(name: str) -> dict[str, int]:
    return {key.name: 5 for key in ATTACKS.keys(name) if key.name in ("steps", "rounds", "refine")}


def curved() -> tuple[nn.Module, Tensor, Tensor]:
    """A smooth random net with inputs it is sure of."""
    torch.manual_seed(6)
    net = nn.Sequential(nn.Linear(ENTRIES, 32), nn.Tanh(), nn.Linear(32, CLASSES)).requires_grad_(False)
    x = torch.randn(BATCH, ENTRIES)
    return net, x, net(x).argmax(1)


@pytest.fixture(scope="module")
def foolbox_ddn(trained_net: tuple[nn.Module, Tensor, Tensor]) -> Tensor:
    """L2 of foolbox's DDN with the initial radius that suits audio, 100 passes."""
    foolbox = pytest.importorskip("foolbox")
    net, x, y = trained_net
    attack = foolbox.attacks.DDNAttack(init_epsilon=0.05, steps=100)
    x_adv = attack.run(foolbox.PyTorchModel(net, bounds=(-1, 1)), x, foolbox.criteria.Misclassification(y))
    return norm_of(x_adv - x, "l2")


@pytest.mark.parametrize(("name", "limit", "keys"), [
    ("ddn", 1.05, {"steps": 100}), ("fmn", 1.05, {"steps": 100}),
    ("deepfool", 1.5, {"steps": 20, "candidates": 3, "refine": 40}),
], ids=str)  # fmt: skip
def test_not_behind_foolbox(
    name: str, limit: float, keys: dict, trained_net: tuple[nn.Module, Tensor, Tensor], foolbox_ddn: Tensor
) -> None:
    net, x, y = trained_net
    x_adv = run(name, net, x, y, ThreatModel("l2", bounds=(-1.0, 1.0)), **keys)
    assert fooled(net(x_adv), y).all()
    assert norm_of(x_adv - x, "l2").median() <= limit * foolbox_ddn.median()
