"""Attacks that shall transfer: the stop rules of the targeted CW, the size and the gradient of PGD over variants,
features, ensembles of substitutes and the control with another clip's perturbation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from src.attacks import diversity as diversity_module
from src.attacks.gradients.feature_pgd import nearest
from src.attacks.gradients.transfer_pgd import TransferClimb
from src.attacks.minimum_norm.cw_transfer import STOPS
from src.attacks.spec import Report
from src.attacks.substitutes import Substitutes, orders_of
from src.attacks.tap import Tap
from src.models.chunks import Chunked
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel, norm_of

TIME = 400
DOUBLE = torch.float64


def streams(count: int, purpose: str = "transfer") -> RandomStreams:
    return RandomStreams(0, [f"clip{i}" for i in range(count)], purpose)


class Linear(nn.Module):
    """Two classes whose logits are +-slope <w, x> with unit w: the distance to the boundary is |<w, x>|."""

    def __init__(self, slope: float = 20.0):
        super().__init__()
        w = torch.randn(TIME, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
        self.w, self.slope = w / w.norm(), slope

    def forward(self, x: Tensor) -> Tensor:
        score = self.slope * (x @ self.w)
        return torch.stack([score, -score], 1)

    def clips(self, *distances: float) -> Tensor:
        """Clips of unit norm at these distances on the side of class 0."""
        x = torch.randn(len(distances), TIME, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
        x = x - (x @ self.w)[:, None] * self.w
        along = torch.tensor(distances, dtype=DOUBLE)[:, None]
        return x / x.norm(dim=1, keepdim=True) * (1 - along.square()).sqrt() + along * self.w


def cw(model: Callable[[Tensor], Tensor], x: Tensor, **keys: object) -> tuple[Tensor, list[str]]:
    report: Report = {}
    x_adv = ATTACKS["cw_transfer"](
        model, x, torch.ones(len(x), dtype=torch.long), ThreatModel("l2"), rng=streams(len(x)), targeted=True,
        report=report, **keys,
    )  # fmt: skip
    return x_adv, report["stop"]


def snr_of(x_adv: Tensor, x: Tensor) -> Tensor:
    return 20 * torch.log10(norm_of(x, "l2") / norm_of(x_adv - x, "l2"))


def test_cw_says_why_each_clip_stopped() -> None:
    """The boundary at 0.02, 0.07 and 0.3 of the norm of the clip, the SNR floor at 0.1: with a confidence the first
    reaches its probability, the second crosses and is stopped by the floor before it is sure, the third never
    crosses."""
    net = Linear(slope=100.0)
    x = net.clips(0.02, 0.07, 0.3)
    x_adv, stop = cw(net, x, confidence=50.0, steps=300)
    assert stop == ["probability", "snr", "snr"]
    sure = net(x_adv).softmax(1)[:, 1]
    assert sure[0] > 0.95
    assert 0.5 < sure[1] <= 0.95
    assert sure[2] < 0.5
    snr = snr_of(x_adv, x)
    assert bool((snr[1:] >= 20).all()), "handed out is the step before the floor"
    assert bool((snr[1:] < 20.2).all())
    _, early = cw(net, x, confidence=50.0, steps=3)
    assert early == ["steps"] * 3


def test_without_a_confidence_the_probability_is_never_aimed_at() -> None:
    net = Linear(slope=100.0)
    x = net.clips(0.02, 0.05)
    published, stop = cw(net, x, steps=300)
    assert stop == ["steps", "steps"]
    assert float(net(published).softmax(1)[:, 1].max()) < 0.8
    _, stop = cw(net, x, steps=300, confidence=50.0)
    assert stop == ["probability", "probability"]
    smallest, _ = cw(net, x, steps=300, keep="smallest")
    assert bool((net(smallest).argmax(1) == 1).all())
    distance = norm_of(smallest - x, "l2") / torch.tensor([0.02, 0.05], dtype=DOUBLE)
    assert 1 <= float(distance.min()) <= float(distance.max()) < 1.1, "the exact distance of a linear model"


def test_cw_does_not_depend_on_the_level_of_the_clip_nor_on_the_batch() -> None:
    net = Linear()
    x = net.clips(0.02, 0.06, 0.3)
    together, stop = cw(net, x, confidence=50.0, steps=200)
    for i in range(3):
        alone, reason = cw(net, x[i : i + 1], confidence=50.0, steps=200)
        torch.testing.assert_close(alone, together[i : i + 1])
        assert reason == [stop[i]]
    quiet = Linear(slope=2000.0)
    softly, reasons = cw(quiet, x / 100, confidence=50.0, steps=200)
    assert reasons == stop
    torch.testing.assert_close(softly * 100, together)


def test_cw_stops_at_once_where_the_target_is_sure_and_for_silence() -> None:
    net = Linear(slope=100.0)
    x = net.clips(-0.9, 0.1)
    x[1] = 0
    x_adv, stop = cw(net, x, steps=50)
    assert stop == ["probability", "snr"]
    assert torch.equal(x_adv, x)
    assert set(stop) <= set(STOPS)


def test_cw_on_the_grid_keeps_the_floor_on_the_written_clip() -> None:
    net, grid = Linear(), 2.0**-9
    x = (net.clips(0.3, 0.25) / grid).round() * grid
    threat = ThreatModel("l2", math.inf, (-1.0, 1.0 - grid), grid=grid)
    report: Report = {}
    x_adv = ATTACKS["cw_transfer"](
        net, x, torch.ones(2, dtype=torch.long), threat, rng=streams(2), targeted=True, report=report, steps=200
    )
    assert report["stop"] == ["snr", "snr"]
    assert bool((x_adv.remainder(grid) == 0).all())
    assert bool((snr_of(x_adv, x) >= 20).all())


def transfer(
    model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, threat: ThreatModel, targeted: bool = False, **keys: object
) -> Tensor:
    return ATTACKS["transfer_pgd"](
        model, x, y, threat, rng=streams(len(x)), targeted=targeted, sample_rate=16000, **keys
    )


@pytest.mark.parametrize("keys", [{}, {"momentum": 0.9, "nesterov": True}, {"variance_draws": 2}, {"strength": 0.0}])
def test_transfer_pgd_spends_exactly_the_budget(keys: dict[str, object]) -> None:
    net = Linear()
    x, y = net.clips(0.3, 0.5, 0.4), torch.zeros(3, dtype=torch.long)
    eps = norm_of(x, "l2") * 10 ** (-torch.tensor([20.0, 25.0, 30.0], dtype=DOUBLE) / 20)
    x_adv = transfer(net, x, y, ThreatModel("l2", eps), steps=5, **keys)
    torch.testing.assert_close(snr_of(x_adv, x), torch.tensor([20.0, 25.0, 30.0], dtype=DOUBLE))
    assert ThreatModel("l2", eps).contains(x_adv, x).all()


def test_what_the_bounds_cut_off_goes_to_other_samples() -> None:
    """Half of the samples cannot follow the gradient; the budget is spent on the others all the same."""
    net = Linear()
    x = net.clips(0.3)
    direction = -net.w.sign()
    x[0, ::2] = direction[::2]
    threat = ThreatModel("l2", 0.2, (-1.0, 1.0))
    x_adv = transfer(net, x, torch.zeros(1, dtype=torch.long), threat, steps=5, strength=0.0)
    assert float(norm_of(x_adv - x, "l2")) == pytest.approx(0.2, rel=1e-3)
    assert threat.contains(x_adv, x).all()


def test_strength_zero_is_plain_pgd() -> None:
    net = Linear()
    x, y = net.clips(0.3, 0.5), torch.zeros(2, dtype=torch.long)
    threat = ThreatModel("l2", 0.05)
    plain = transfer(net, x, y, threat, strength=0.0, steps=4)
    expected = ATTACKS["pgd"](
        net, x, y, threat, rng=streams(2), targeted=False, steps=4, random_start=False, early_exit=False
    )
    torch.testing.assert_close(plain, expected)
    torch.testing.assert_close(plain - x, -0.05 * net.w.expand(2, -1), atol=1e-6, rtol=1e-6)
    assert not torch.allclose(transfer(net, x, y, threat, steps=4), plain)


def climb(**keys: object) -> TransferClimb:
    return TransferClimb(
        **{"steps": 1, "step": 1.0, "copies": 3, "strength": 1.0, "variance_draws": 0, "variance_radius": 1.5,
           "momentum": 0.0, "nesterov": False, **keys}  # type: ignore[arg-type]
    )  # fmt: skip


def test_the_direction_is_the_mean_gradient_of_the_copies() -> None:
    net = nn.Sequential(nn.Linear(TIME, 5), nn.Tanh(), nn.Linear(5, 2)).to(DOUBLE).requires_grad_(False)
    x = torch.randn(2, TIME, dtype=DOUBLE)
    diversity = diversity_module.Diversity.standard(16000)
    x_adv = climb()(net, x, ThreatModel("l2", 0.1), streams(2), diversity, lambda logits: logits[:, 0])
    rng, strength = streams(2), climb().strengths(x, ThreatModel("l2", 0.1))
    leaf = x.clone().requires_grad_(True)
    total = sum(net(diversity(leaf, strength, rng))[:, 0].sum() for _ in range(3)) / 3
    (grad,) = torch.autograd.grad(total, leaf)
    torch.testing.assert_close(x_adv - x, 0.1 * grad / grad.norm(dim=1, keepdim=True))


def test_weaker_budgets_get_weaker_variants() -> None:
    x = torch.randn(4, TIME, dtype=DOUBLE)
    eps = norm_of(x, "l2") * 10 ** (-torch.tensor([10.0, 20.0, 30.0, 40.0], dtype=DOUBLE) / 20)
    expected = torch.tensor([2.0, 2.0, 2 * 10**-0.5, 0.2], dtype=DOUBLE)
    torch.testing.assert_close(climb(strength=2.0).strengths(x, ThreatModel("l2", eps)), expected)
    torch.testing.assert_close(climb(strength=2.0).strengths(x, ThreatModel("linf", eps / math.sqrt(TIME))), expected)


def test_variance_tuning_adds_what_the_neighbourhood_knows() -> None:
    """On a linear model there is no variance and nothing changes; on a curved one the path does."""
    x, y = Linear().clips(0.3, 0.5), torch.zeros(2, dtype=torch.long)
    for net, same in ((lambda z: Linear()(z), True), (lambda z: Linear(1.0)((40 * z).sin()), False)):
        plain, tuned = (
            transfer(net, x, y, ThreatModel("l2", 0.1), strength=0.0, steps=4, loss="margin", variance_draws=draws)
            for draws in (0, 2)
        )
        assert torch.allclose(plain, tuned) == same


def test_an_ensemble_of_one_is_the_model_and_others_count_alike() -> None:
    first, second = Linear(3.0), Linear(5.0)
    x = first.clips(0.1, 0.2)
    alone = Substitutes([first], orders_of([("a", "b")]))
    torch.testing.assert_close(alone(x), first(x).log_softmax(1))
    both = Substitutes([first, second], orders_of([("a", "b"), ("b", "a")]))
    expected = (first(x).log_softmax(1) + second(x).log_softmax(1)[:, [1, 0]]) / 2
    torch.testing.assert_close(both(x), expected)
    assert (both.draws, both.votes(x)) == (0, None)
    torch.testing.assert_close(both.select(torch.tensor([1]))(x[1:]), expected[1:])
    with pytest.raises(ValueError, match=r"same classes; only one has b, c"):
        orders_of([("a", "b"), ("a", "c")])


class Noisy:
    """A model whose votes are two draws."""

    draws = 4

    def __call__(self, x: Tensor) -> Tensor:
        return Linear()(x)

    def votes(self, x: Tensor) -> Tensor:
        return torch.stack([Linear()(x), -Linear()(x)])


def test_an_ensemble_votes_where_one_of_its_models_is_random() -> None:
    x = Linear().clips(0.1, 0.2)
    both = Substitutes([Linear(2.0), Noisy()], orders_of([("a", "b")] * 2))
    ballots = both.votes(x)
    assert both.draws == 4
    assert ballots is not None
    sure = Linear(2.0)(x).log_softmax(1)
    torch.testing.assert_close(ballots[1], (sure + (-Linear()(x)).log_softmax(1)) / 2)


def layered() -> nn.Sequential:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(TIME, 6), nn.Tanh(), nn.Linear(6, 3)).to(DOUBLE)
    return net.requires_grad_(False).eval()


def test_a_tap_gives_the_layer_of_the_latest_call_and_lets_go() -> None:
    net, x = layered(), torch.randn(2, TIME, dtype=DOUBLE)
    with Tap(net, net, "1") as tap:
        net(x)
        torch.testing.assert_close(tap.value, net[0](x).tanh())
        many = torch.randn(70, TIME, dtype=DOUBLE)
        torch.testing.assert_close(tap.of(many), net[0](many).tanh())
    with Tap(net, net, "input") as tap:
        torch.testing.assert_close(tap.of(x), x)
    assert not net._forward_pre_hooks
    assert not net[1]._forward_hooks
    with pytest.raises(ValueError, match=r"no layer 'conv' \(choices: input, 0, 1, 2\)"):
        Tap(net, net, "conv")


def test_variance_tuning_follows_its_formula() -> None:
    """Wang and He (2021) on a bowl, whose gradient is known: the direction is that of the gradient plus what the
    neighbors of the last iterate had beyond it."""
    curvature, eps, radius = torch.linspace(0.1, 3.0, 20, dtype=DOUBLE), 0.3, 1.5
    x = torch.randn(2, 20, dtype=DOUBLE, generator=torch.Generator().manual_seed(7))
    threat, diversity = ThreatModel("l2", eps), diversity_module.Diversity.standard(16000)
    found = climb(steps=3, strength=0.0, variance_draws=2, variance_radius=radius)(
        lambda z: -(curvature * z.square()).sum(1, keepdim=True) / 2, x, threat, streams(2), diversity,
        lambda logits: logits[:, 0],
    )  # fmt: skip
    rng, iterate, variance = streams(2), x, torch.zeros_like(x)
    for _ in range(3):
        slope = -curvature * iterate
        step = nn.functional.normalize(slope + variance, dim=1) * eps / 3
        beyond = []
        for _ in range(2):
            noise = nn.functional.normalize(rng.normal(x), dim=1)
            beyond.append(-curvature * noise * rng.uniform(x[:, :1]) * radius * eps)
        variance, iterate = torch.stack(beyond).mean(0), iterate + step
    expected = x + nn.functional.normalize(iterate - x, dim=1) * eps
    torch.testing.assert_close(found, expected)


def test_other_clip_takes_no_perturbation_that_is_none() -> None:
    deltas = torch.zeros(4, TIME, dtype=DOUBLE)
    deltas[2] = torch.randn(TIME, dtype=DOUBLE, generator=torch.Generator().manual_seed(8))
    fitted = {"deltas": deltas, "labels": torch.tensor([0, 0, 1, 1])}
    x = 0.1 * torch.randn(6, TIME, dtype=DOUBLE, generator=torch.Generator().manual_seed(9))
    x_adv = ATTACKS["other_clip"](
        layered(), x, torch.zeros(6, dtype=torch.long), ThreatModel("l2", 0.2), rng=streams(6), targeted=True,
        sample_rate=16000, fitted=fitted,
    )  # fmt: skip
    size = torch.full((6,), 0.2, dtype=DOUBLE)
    torch.testing.assert_close(norm_of(x_adv - x, "l2"), size, rtol=1e-6, atol=0)


class Pieces(Chunked):
    """A classifier of chunks of four samples."""

    def __init__(self) -> None:
        super().__init__(4, 12, 1)
        self.layer = nn.Linear(4, 3)

    def chunk_logits(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


def test_a_tap_gives_the_mean_over_the_chunks_of_each_clip() -> None:
    net, x = Pieces().requires_grad_(False), torch.randn(2, 12)
    pieces = net.layer(x.view(2, 3, 4))
    with Tap(net, net, "layer") as tap:
        net(x, torch.arange(12) < torch.tensor([[12], [8]]))
        torch.testing.assert_close(tap.value, torch.stack([pieces[0].mean(0), pieces[1, :2].mean(0)]))
        torch.testing.assert_close(tap.of(x), pieces.mean(1))


@pytest.mark.parametrize("targeted", [False, True])
def test_feature_pgd_moves_the_features(targeted: bool) -> None:
    """With a large weight the features of the layer go further from those of the clip, or nearer to those of the
    nearest example of the target, than the cross-entropy alone takes them."""
    net, x = layered(), 0.05 * torch.randn(4, TIME, dtype=DOUBLE, generator=torch.Generator().manual_seed(5))
    examples = 0.05 * torch.randn(30, TIME, dtype=DOUBLE, generator=torch.Generator().manual_seed(6))
    labels = net(examples).argmax(1)
    y = (net(x).argmax(1) + 1) % 3 if targeted else net(x).argmax(1)
    hidden = lambda z: net[0](z).tanh()  # noqa: E731
    goal = nearest(hidden(x), y, hidden(examples), labels) if targeted else hidden(x)
    distances = []
    for weight in (0.0, 100.0):
        x_adv = ATTACKS["feature_pgd"](
            net, x, y, ThreatModel("l2", 0.3), rng=streams(4), targeted=targeted, sample_rate=16000, layer="1",
            weight=weight, strength=0.0, steps=10, examples=(examples, labels), tap=lambda layer: Tap(net, net, layer),
        )  # fmt: skip
        distances.append((hidden(x_adv) - goal).norm(dim=1).mean())
    assert (distances[1] < distances[0]) == targeted


def test_the_nearest_example_has_the_wanted_label() -> None:
    features, others = torch.tensor([[0.0], [5.0]]), torch.tensor([[1.0], [4.0], [9.0]])
    found = nearest(features, torch.tensor([1, 7]), others, torch.tensor([0, 1, 1]))
    assert found.tolist() == [[4.0], [5.0]]


def test_other_clip_is_a_perturbation_of_another_clip_at_full_size() -> None:
    net = layered()
    fit_clips = 0.1 * torch.randn(12, TIME, dtype=DOUBLE)
    x, y = 0.1 * torch.randn(5, TIME, dtype=DOUBLE), torch.tensor([0, 1, 2, 0, 1])
    threat = ThreatModel("l2", torch.linspace(0.1, 0.5, 5, dtype=DOUBLE))
    control = ATTACKS["other_clip"]
    targets = torch.arange(12) % 3
    fitted = control.fit(  # type: ignore[attr-defined]
        net, fit_clips, targets, replace(threat, eps=0.2), rng=streams(12), targeted=True, sample_rate=16000,
        made_by="transfer_pgd", perturbations=6,
    )  # fmt: skip
    assert fitted["deltas"].shape == (6, TIME)
    x_adv = control(net, x, y, threat, rng=streams(5), targeted=True, sample_rate=16000, fitted=fitted)
    torch.testing.assert_close(norm_of(x_adv - x, "l2"), threat.budgets(x))
    shapes = nn.functional.normalize(fitted["deltas"], dim=1)
    match = (nn.functional.normalize(x_adv - x, dim=1) @ shapes.T).max(1)
    assert float(match.values.min()) > 0.999
    assert fitted["labels"][match.indices].tolist() == y.tolist(), "aimed at the same target"
    with pytest.raises(ValueError, match="name an attack that makes"):
        ATTACKS.check_options("other_clip", {"made_by": "random_signs"})
    with pytest.raises(ValueError, match="inputs of shape"):
        control(net, x[:, 1:], y, threat, rng=streams(5), targeted=True, sample_rate=16000, fitted=fitted)
