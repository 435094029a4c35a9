"""FGSM, PGD and CW where the truth is known: linear models, whose distance to the boundary is |s| / dual norm of w."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from src.losses import LOSSES, LossName, fooled, margin
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel, norm_of

BATCH, ENTRIES = 6, 30


def linear(offset: float = 0.0) -> tuple[object, Tensor, Tensor, Tensor]:
    """(model, x, y, w): logits (s, -s) plus `offset`, s = w x, of either sign."""
    generator = torch.Generator().manual_seed(4)
    x, w = torch.randn(BATCH, ENTRIES, generator=generator), torch.randn(ENTRIES, generator=generator)

    def model(x: Tensor) -> Tensor:
        s = x @ w
        return torch.stack([s, -s], 1) + offset

    return model, x, (x @ w < 0).long(), w


def distance(x: Tensor, w: Tensor, norm: str) -> Tensor:
    dual = {"linf": w.abs().sum(), "l2": w.norm(), "l1": w.abs().max()}[norm]
    return (x @ w).abs() / dual


def run(
    name: str, model: object, x: Tensor, y: Tensor, threat: ThreatModel, targeted: bool = False, **keys: object
) -> Tensor:
    ids = [str(i) for i in range(len(x))]
    return ATTACKS[name](model, x, y, threat, rng=RandomStreams(0, ids, name), targeted=targeted, **keys)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("keys", [
    ("fgsm", {}), ("pgd", {}), ("pgd", {"loss": "margin", "momentum": 0.9, "random_start": False}),
    ("pgd", {"early_exit": False, "restarts": 2}),
], ids=str)  # fmt: skip
def test_budget_attacks_fail_below_the_distance_and_succeed_above(norm: str, keys: tuple[str, dict]) -> None:
    name, options = keys
    model, x, y, w = linear()
    for fraction, expected in ((0.98, False), (1.02, True)):
        x_adv = run(name, model, x, y, ThreatModel(norm, distance(x, w, norm) * fraction), **options)
        assert (fooled(model(x_adv), y) == expected).all(), fraction


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_targeted_pgd_at_the_distance(norm: str) -> None:
    model, x, y, w = linear()
    for fraction, expected in ((0.98, False), (1.02, True)):
        x_adv = run("pgd", model, x, 1 - y, ThreatModel(norm, distance(x, w, norm) * fraction), targeted=True)
        assert (fooled(model(x_adv), 1 - y, targeted=True) == expected).all()


@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), (-8.0, 8.0), (-4.0, math.inf)], ids=str)
@pytest.mark.parametrize("offset", [0.0, -50.0], ids=["", "negative logits"])
@pytest.mark.parametrize("scale", [1.0, 1e-3], ids=["", "quiet"])
def test_cw_finds_the_distance(bounds: tuple[float, float], offset: float, scale: float) -> None:
    model, x, y, w = linear(offset)
    x = x * scale
    if offset and scale < 1:
        pytest.skip("float32 logits near -50 cannot tell margins of a thousandth")
    x_adv = run("cw", model, x, y, ThreatModel("l2", math.inf, bounds))
    assert fooled(model(x_adv), y).all()
    ratio = norm_of(x_adv - x, "l2") / distance(x, w, "l2")
    assert (ratio < 1.02).all(), ratio
    assert (ratio > 0.999).all(), ratio


def test_cw_targeted_and_masked() -> None:
    model, x, y, w = linear()
    mask = (torch.arange(ENTRIES) < 20)[None]
    x_adv = run("cw", model, x, 1 - y, ThreatModel("l2", math.inf, mask=mask), targeted=True)
    assert fooled(model(x_adv), 1 - y, targeted=True).all()
    assert torch.equal(x_adv[:, 20:], x[:, 20:])
    ratio = norm_of(x_adv - x, "l2") / ((x @ w).abs() / w[:20].norm())
    assert ((ratio > 0.999) & (ratio < 1.02)).all()


def test_cw_confidence_is_a_margin_between_logits() -> None:
    model, x, y, _ = linear()
    x_adv = run("cw", model, x, y, ThreatModel("l2"), confidence=2.0)
    label_margin = model(x_adv)[:, 0] * (2 * y - 1) * 2
    assert (label_margin > 2).all()
    assert (label_margin < 2.2).all()


def test_infinite_budget_within_bounds() -> None:
    model, x, y, _ = linear()
    for name in ("fgsm", "pgd"):
        x_adv = run(name, model, x, y, ThreatModel("linf", math.inf, (-5, 5)))
        assert fooled(model(x_adv), y).all()
        with pytest.raises(ValueError, match="finite eps"):
            run(name, model, x, y, ThreatModel("linf", math.inf))


def test_a_success_on_the_way_is_returned() -> None:
    """A model that only a narrow shell around x fools: the last iterate is outside of it."""

    def shell(x: Tensor) -> Tensor:
        size = x.abs().amax(1)
        wrong = 0.3 - (size - 0.3).abs() * 4
        return torch.stack([1 - size, wrong + 0.8], 1)

    x, y = torch.zeros(3, 5), torch.zeros(3, dtype=torch.long)
    for early_exit in (True, False):
        x_adv = run("pgd", shell, x + 0.01, y, ThreatModel("linf", 1.0), early_exit=early_exit, steps=20, loss="margin")
        assert fooled(shell(x_adv), y).all()


def test_finished_examples_leave_the_batch() -> None:
    model, x, y, _ = linear()
    sizes = []

    def counting(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return model(x)

    eps = torch.tensor([100.0] * 5 + [1e-4])
    run("pgd", counting, x, y, ThreatModel("linf", eps), steps=10, loss="margin")
    assert sizes[0] == BATCH
    assert sizes[2:] == [1] * 9
    sizes.clear()
    run("pgd", counting, x, y, ThreatModel("linf", eps), steps=10, early_exit=False)
    assert sizes == [BATCH] * 11


def test_restarts_keep_the_best_of_each_example() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 5)).requires_grad_(False)
    x = torch.randn(40, 20)
    y, threat = net(x).argmax(1), ThreatModel("linf", 0.1)
    one_start = fooled(net(run("pgd", net, x, y, threat, steps=3)), y)
    five_starts = fooled(net(run("pgd", net, x, y, threat, steps=3, restarts=5)), y)
    assert (five_starts | ~one_start).all(), "five starts fool what one start fools"
    with pytest.raises(ValueError, match="restarts"):
        run("pgd", net, x, y, threat, restarts=2, random_start=False)


def test_no_gradient_is_reported() -> None:
    with pytest.raises(ValueError, match="no gradient"):
        run(
            "pgd",
            lambda x: x.detach()[:, :3],
            torch.zeros(2, 5),
            torch.zeros(2, dtype=torch.long),
            ThreatModel(eps=1.0),
        )


def test_same_decisions_as_foolbox() -> None:
    foolbox = pytest.importorskip("foolbox")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(40, 64), torch.nn.ReLU(), torch.nn.Linear(64, 6)).eval()
    x = torch.rand(200, 40) * 0.8 - 0.4
    y = net(x).argmax(1)
    foolbox_pgd = foolbox.attacks.LinfPGD(steps=20, rel_stepsize=2.5 / 20, random_start=False)
    for eps in (0.02, 0.05, 0.1):
        _, _, theirs = foolbox_pgd(foolbox.PyTorchModel(net, bounds=(-1, 1), device="cpu"), x, y, epsilons=eps)
        ours = run(
            "pgd",
            net,
            x,
            y,
            ThreatModel("linf", eps, (-1, 1)),
            steps=20,
            step=2.5,
            random_start=False,
            early_exit=False,
        )
        ours = fooled(net(ours), y)
        assert 0 < theirs.float().mean() < 1
        # Our PGD evaluates every iterate, foolbox only the last.
        assert (ours >= theirs).all()
        assert (ours == theirs).float().mean() >= 0.99


def test_pgd_with_a_confidence_stops_at_that_margin() -> None:
    """CW-Linf: an example leaves when its margin exceeds kappa, and keeps its best iterate where it never does."""
    model, x, y, w = linear()
    threat = ThreatModel("linf", 1.5 * distance(x, w, "linf"))
    reach = 2 * 0.5 * (x @ w).abs()  # the margin at the corner of the ball
    keys = {"loss": "margin", "steps": 20, "random_start": False, "step": 2.0}
    first = run("pgd", model, x, y, threat, **keys)
    for kappa in (0.25 * reach.min(), 0.9 * reach.min(), 1.5 * reach.max()):
        x_adv = run("pgd", model, x, y, threat, confidence=float(kappa), **keys)
        value = margin(model(x_adv), y)
        if kappa < reach.min():
            assert (value > kappa).all()
            assert (value < reach).any(), "it stops there"
        else:
            torch.testing.assert_close(value, reach)  # the corner of the ball
    assert (margin(model(first), y) < 0.25 * reach).any()
    with pytest.raises(ValueError, match="confidence is a margin between logits: it needs loss = margin"):
        run("pgd", model, x, y, threat, confidence=1.0)


def test_restarts_are_chosen_per_example() -> None:
    """Each example keeps the best of its own restarts: its margin never falls with more of them, although different
    examples are best at different restarts."""
    generator = torch.Generator().manual_seed(0)
    x, frequency = torch.zeros(16, 4), 8 * torch.randn(4, generator=generator)

    def model(x: Tensor) -> Tensor:
        s = torch.sin(3 * x @ frequency + torch.linspace(0, 6, len(x))) + 0.5 * torch.cos(11 * x.sum(1)) + 5
        return torch.stack([s, torch.zeros_like(s)], 1)

    y, best = torch.zeros(16, dtype=torch.long), []
    for restarts in range(1, 6):
        x_adv = run(
            "pgd", model, x, y, ThreatModel("linf", 0.5), restarts=restarts, steps=2, step=0.1, loss="margin",
            early_exit=False,
        )  # fmt: skip
        best.append(margin(model(x_adv), y))
    rises = torch.stack(best).diff(dim=0)
    assert (rises >= 0).all()
    assert len({int(column.argmax()) for column in rises.T if column.max() > 0}) > 1, "at different restarts"


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_both_losses_climb_towards_success_on_a_threshold(loss: LossName, label: int, targeted: bool) -> None:
    """Verification: the logits are [s, theta]. Accepted speakers are to be rejected and imposters accepted, or, with a
    target, the other way round: cross-entropy must not move the score the wrong way."""
    score, y = torch.tensor([0.3], requires_grad=True), torch.tensor([label])

    def logits(score: Tensor) -> Tensor:
        return torch.stack([score, torch.full_like(score, 0.5)], 1)

    (grad,) = torch.autograd.grad(LOSSES[loss](logits(score), y, targeted).sum(), score)
    towards_acceptance = (label == 0) == targeted
    assert (grad > 0) == towards_acceptance
    beyond = torch.tensor([2.0 if towards_acceptance else -2.0])
    assert fooled(logits(beyond), y, targeted).all()


PUBLISHED = {"schedule": "published", "search_steps": 9, "initial_c": 1e-3, "learning_rate": 0.01, "steps": 300}
"""CW2 of the speaker-recognition study, with fewer steps."""


def test_published_cw_finds_the_distance_and_has_the_confidence() -> None:
    model, x, y, w = linear()
    threat = ThreatModel("l2", math.inf, (-8.0, 8.0))
    x_adv = run("cw", model, x, y, threat, **PUBLISHED)
    excess = norm_of(x_adv - x, "l2") - distance(x, w, "l2")
    assert ((excess > -1e-4) & (excess < 0.2)).all(), "an absolute step of 0.01 of the range is coarse where it is near"
    assert ((excess < 0.025).sum() >= 5).all()
    sure = run("cw", model, x, y, threat, **PUBLISHED, confidence=2.0)
    assert (margin(model(sure), y) > 2).all()
    assert (margin(model(sure), y) < 2.5).all()
    aimed = run("cw", model, x, 1 - y, threat, targeted=True, **PUBLISHED)
    assert fooled(model(aimed), 1 - y, targeted=True).all()
    with pytest.raises(ValueError, match="finite bounds"):
        run("cw", model, x, y, ThreatModel("l2"), **PUBLISHED)


def test_published_cw_bisects_c_and_stops_early() -> None:
    """c is the only thing that the attack knows of a model whose margin is always -1: it rises tenfold."""
    calls = []

    def hopeless(x: Tensor) -> Tensor:
        calls.append(len(x))
        return torch.stack([0 * x.sum(1) + 1, 0 * x.sum(1)], 1)

    x, y = torch.zeros(2, 5), torch.zeros(2, dtype=torch.long)
    threat = ThreatModel("l2", math.inf, (-1.0, 1.0))
    assert torch.equal(run("cw", hopeless, x, y, threat, **PUBLISHED | {"steps": 20}), x)
    assert len(calls) == 9 * 3, "no progress after a tenth of the steps"
    calls.clear()
    run("cw", hopeless, x, y, threat, **PUBLISHED | {"steps": 20, "abort_early": False})
    assert len(calls) == 9 * 20


def test_published_cw_is_that_of_foolbox() -> None:
    foolbox = pytest.importorskip("foolbox")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(40, 64), torch.nn.Tanh(), torch.nn.Linear(64, 6)).eval()
    x = torch.rand(20, 40) * 0.8 - 0.4
    y = net(x).argmax(1)
    attack = foolbox.attacks.L2CarliniWagnerAttack(9, 200, 0.01, 0.0, 1e-3, False)
    _, theirs, found = attack(foolbox.PyTorchModel(net, bounds=(-1, 1), device="cpu"), x, y, epsilons=None)
    ours = run(
        "cw", net, x, y, ThreatModel("l2", math.inf, (-1.0, 1.0)), **PUBLISHED | {"steps": 200, "abort_early": False}
    )
    assert found.all()
    assert fooled(net(ours), y).all()
    torch.testing.assert_close(norm_of(ours - x, "l2"), norm_of(theirs - x, "l2"), rtol=0.02, atol=1e-4)
