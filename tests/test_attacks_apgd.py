"""APGD and targeted APGD: exact on linear models, monotone, independent of the batch, not behind ART's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from src.attacks.minimum_norm.search import DUAL
from src.losses import LOSSES, fooled
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel, norm_of

BATCH, ENTRIES, CLASSES = 6, 40, 5


def linear() -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(3)
    model = nn.Linear(ENTRIES, CLASSES).requires_grad_(False)
    x = torch.randn(BATCH, ENTRIES)
    return model, x, model(x).argmax(1)


def nearest(model: nn.Linear, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """Exact distance to the nearest other class."""
    logits = model(x)
    slopes = norm_of((model.weight[y][:, None] - model.weight).flatten(0, 1), DUAL[norm]).view(len(x), -1)
    each = (logits.gather(1, y[:, None]) - logits) / slopes
    return each.masked_fill(nn.functional.one_hot(y, CLASSES).bool(), torch.inf).amin(1)


def run(
    name: str, model: object, x: Tensor, y: Tensor, threat: ThreatModel, targeted: bool = False, **keys: object
) -> Tensor:
    streams = keys.pop("streams", None) or RandomStreams(0, [str(i) for i in range(len(x))], name)
    return ATTACKS[name](model, x, y, threat, rng=streams, targeted=targeted, **keys)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_targeted_apgd_is_exact_on_a_linear_model(norm: str) -> None:
    model, x, y = linear()
    for fraction, expected in ((0.98, False), (1.02, True)):
        threat = ThreatModel(norm, nearest(model, x, y, norm) * fraction)
        assert (fooled(model(run("apgd_targeted", model, x, y, threat)), y) == expected).all(), fraction


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "dlr"])
@pytest.mark.parametrize("targeted", [False, True])
def test_apgd_between_two_classes(norm: str, loss: str, targeted: bool) -> None:
    """Three and more logits, all but two far below: one plane, known distance."""
    torch.manual_seed(4)
    w, x = torch.randn(ENTRIES), torch.randn(BATCH, ENTRIES)
    model = lambda x: torch.stack([x @ w, -(x @ w), *3 * [0 * (x @ w) - 1e3]], 1)  # noqa: E731
    y = model(x).argmax(1)
    exact = (x @ w).abs() / norm_of(w[None], DUAL[norm])
    goal_label = 1 - y if targeted else y
    for fraction, expected in ((0.98, False), (1.02, True)):
        x_adv = run("apgd", model, x, goal_label, ThreatModel(norm, exact * fraction), targeted, loss=loss)
        assert (fooled(model(x_adv), goal_label, targeted) == expected).all(), fraction


def curved() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(6)
    net = nn.Sequential(nn.Linear(ENTRIES, 32), nn.Tanh(), nn.Linear(32, CLASSES)).double().requires_grad_(False)
    x = torch.randn(BATCH, ENTRIES, dtype=torch.float64)
    return net, x, net(x).argmax(1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_restarts_and_the_best_point_never_lose(norm: str) -> None:
    net, x, y = curved()
    threat = ThreatModel(norm, {"linf": 0.05, "l2": 0.2, "l1": 0.6}[norm])
    keys = {"early_exit": False, "steps": 30}
    loss = lambda x: LOSSES["cross_entropy"](net(x), y)  # noqa: E731
    one_run, three_runs = (run("apgd", net, x, y, threat, restarts=n, **keys) for n in (1, 3))
    assert (loss(three_runs) >= loss(one_run)).all()
    assert (loss(one_run) > loss(x)).all()
    assert threat.contains(one_run, x).all()


def test_the_step_halves_where_the_loss_stalls() -> None:
    """The loss peaks well inside the ball; 2 eps, the first step, only jumps over it."""
    peak = torch.tensor([[0.31, -0.17]])
    model = lambda x: torch.stack([(x - peak).norm(dim=1) + 0.1, 0 * x[:, 0]], 1)  # noqa: E731
    x, y = torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)
    x_adv = run("apgd", model, x, y, ThreatModel("l2", 1.0), loss="margin", steps=100)
    assert norm_of(x_adv - peak, "l2") < 0.02


@pytest.mark.parametrize("name", ["apgd", "apgd_targeted"])
def test_the_same_alone_and_in_a_batch(name: str) -> None:
    net, x, y = curved()
    threat = ThreatModel("linf", torch.linspace(0.02, 0.2, BATCH, dtype=torch.float64))
    x_adv = run(name, net, x, y, threat, steps=20)
    for i in range(BATCH):
        index = torch.tensor([i])
        alone = run(
            name, net, x[index], y[index], threat.select(index), steps=20, streams=RandomStreams(0, [str(i)], name)
        )
        torch.testing.assert_close(alone, x_adv[index], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["apgd", "apgd_targeted"])
def test_finished_examples_leave_the_batch(name: str) -> None:
    model, x, y = linear()
    batch_sizes = []
    counting = lambda x: batch_sizes.append(len(x)) or model(x)  # noqa: E731
    eps = nearest(model, x, y, "linf") * torch.tensor([5.0, 5.0, 5.0, 5.0, 5.0, 0.5])
    run(name, counting, x, y, ThreatModel("linf", eps), steps=20)
    assert batch_sizes[-1] == 1
    assert sum(batch_sizes) < 0.6 * BATCH * len(batch_sizes)


def test_two_classes_and_bad_keys() -> None:
    model, x, y = linear()
    two_class_model = lambda x: model(x)[:, :2]  # noqa: E731
    y = two_class_model(x).argmax(1)
    assert fooled(two_class_model(run("apgd_targeted", two_class_model, x, y, ThreatModel("l2", 10.0))), y).all()
    with pytest.raises(ValueError, match="at least 3 classes"):
        run("apgd", two_class_model, x, y, ThreatModel("l2", 1.0), loss="dlr")
    with pytest.raises(ValueError, match="random_start"):
        run("apgd", model, x, y, ThreatModel("l2", 1.0), restarts=2, random_start=False)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 1.5e-4), ("l2", 0.012)])
def test_not_behind_art(norm: str, eps: float, trained_net: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = trained_net
    art = pytest.importorskip("art.attacks.evasion")
    from art.estimators.classification import PyTorchClassifier

    estimator = PyTorchClassifier(
        net, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 4, clip_values=(-1.0, 1.0), device_type="cpu"
    )
    art_apgd = art.AutoProjectedGradientDescent(
        estimator, norm={"linf": "inf", "l2": 2}[norm], eps=eps, eps_step=2 * eps, max_iter=50, nb_random_init=1,
        loss_type="cross_entropy", verbose=False,
    )  # fmt: skip
    theirs = torch.from_numpy(art_apgd.generate(x.numpy(), y.numpy()))
    ours = run("apgd", net, x, y, ThreatModel(norm, eps, (-1.0, 1.0)), steps=50)
    robust = lambda x: float((net(x).argmax(1) == y).float().mean())  # noqa: E731
    assert robust(ours) <= robust(theirs) + 1 / len(x)
