"""Every sign of failure is provoked on purpose and caught; a sound attack on a plain model raises none."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from src.attacks.registration import spec_of
from src.evaluation import sanity_checks
from src.evaluation.indicators import Indicator, sanity_verdict
from src.evaluation.sanity_checks import Evaluation
from src.losses import fooled
from src.random_streams import RandomStreams
from src.registry import ATTACKS, DEFENSES
from src.threat import ThreatModel
from src.victims.adaptive import adaptive
from src.victims.chain import Chain
from src.victims.stage import Stage

IDS = [f"clip{i}" for i in range(12)]
THREAT = ThreatModel("linf", 0.02, (-1.0, 1.0))


def streams(purpose: str) -> RandomStreams:
    return RandomStreams(0, IDS, purpose)


class Scaled(torch.nn.Module):
    """A small net with a settable temperature."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = torch.randn(200, 32, generator=generator) / 14
        self.last = torch.randn(32, 5, generator=generator) / 5
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.first * 4) @ self.last * 4 * self.scale


class Detached(Stage):
    """A front end that cuts the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def setup(*stages: Stage, scale: float = 1.0) -> tuple[Chain, Tensor, Tensor]:
    chain = Chain(list(stages), Scaled(scale)).eval()
    x = torch.randn(12, 200, generator=torch.Generator().manual_seed(1)).clamp(-3, 3) / 10
    return chain, x, chain(x).argmax(1)


def signs(indicators: list[Indicator]) -> set[str]:
    return {i.name for i in indicators if i.failed}


PGD = partial(ATTACKS["pgd"], steps=40)


def check(attack, chain, model, x, y, threat, *, name="pgd", loss="cross_entropy", **more) -> list[Indicator]:
    """The indicators of an attack that stands for the registered one of this name."""
    return sanity_checks.check(
        Evaluation(
            attack=attack, spec=spec_of(name), loss=loss, chain=chain, model=model, x=x, y=y, threat=threat,
            streams=streams, **more,
        )
    )  # fmt: skip


def value_of(indicators: list[Indicator], name: str) -> Indicator:
    (indicator,) = (i for i in indicators if i.name == name)
    return indicator


def test_a_sound_evaluation_shows_no_sign() -> None:
    chain, x, y = setup()
    indicators = check(PGD, chain, chain, x, y, THREAT)
    assert not signs(indicators), sanity_verdict(indicators)
    assert len(indicators) >= 9
    assert sanity_verdict(indicators).startswith("no sign of failure")


def test_quantiser_without_bpda() -> None:
    defense = DEFENSES["quantize"](sample_rate=16000, step=4096)
    chain, x, y = setup(defense)
    plain, _, _ = setup()
    indicators = check(PGD, chain, chain, x, y, THREAT, is_adaptive=False, undefended=plain)
    assert {"not_adaptive", "zero_gradient"} <= signs(indicators)
    assert "BPDA" in sanity_verdict(indicators)
    indicators = check(PGD, chain, adaptive(chain), x, y, THREAT, undefended=plain)
    assert not {"not_adaptive", "zero_gradient"} & signs(indicators)


def test_detached_front_end() -> None:
    chain, x, y = setup(Detached("detached"))
    indicators = check(PGD, chain, chain, x, y, THREAT)
    assert "zero_gradient" in signs(indicators)
    assert "no gradient arrives" in sanity_verdict(indicators)


def test_three_tiny_steps() -> None:
    chain, x, y = setup()
    weak = partial(ATTACKS["pgd"], steps=3, step=0.03, random_start=False)
    indicators = check(weak, chain, chain, x, y, THREAT)
    assert {"reach", "incomplete"} <= signs(indicators)


def test_saturated_softmax() -> None:
    chain, x, y = setup(scale=1e4)
    indicators = check(PGD, chain, chain, x, y, THREAT)
    assert "zero_gradient" in signs(indicators)
    assert "use the margin loss" in sanity_verdict(indicators)


def test_black_box_better_than_a_useless_attack() -> None:
    chain, x, y = setup()

    def lazy(model, x, y, threat, *, rng, targeted):
        return x.clone()

    indicators = check(lazy, chain, chain, x, y, ThreatModel("linf", 0.1, (-1.0, 1.0)))
    assert {"black_box_is_better", "unbounded_accuracy"} <= signs(indicators)


def test_returning_the_last_iterate_is_a_silent_success() -> None:
    chain, x, y = setup()

    def forgetful(model, x, y, threat, *, rng, targeted):
        model(PGD(lambda z: chain(z), x, y, threat, rng=rng, targeted=targeted))
        return x.clone()

    indicators = check(forgetful, chain, chain, x, y, ThreatModel("linf", 0.1, (-1.0, 1.0)))
    assert "silent_success" in signs(indicators)


def test_larger_eps_less_successful() -> None:
    chain, x, y = setup()

    def shrinking(model, x, y, threat, *, rng, targeted):
        small = ThreatModel("linf", 0.1 if float(threat.budgets(x)[0]) < 0.15 else 1e-6, (-1.0, 1.0))
        return PGD(model, x, y, small, rng=rng, targeted=targeted)

    indicators = check(shrinking, chain, chain, x, y, ThreatModel("linf", 0.1, (-1.0, 1.0)))
    assert "eps_not_monotone" in signs(indicators)


def test_another_start_gives_another_answer() -> None:
    chain, x, y = setup()

    def dice(model, x, y, threat, *, rng, targeted):
        lucky = rng.uniform(x[:, :1]).flatten() < 0.5
        return torch.where(lucky[:, None], PGD(model, x, y, threat, rng=rng, targeted=targeted), x)

    indicators = check(dice, chain, chain, x, y, ThreatModel("linf", 0.1, (-1.0, 1.0)))
    assert "start_matters" in signs(indicators)


@pytest.mark.parametrize("draws", [1])
def test_randomised_stage_attacked_without_eot(draws: int) -> None:
    chain, _, _ = setup(DEFENSES["noise_at_snr"](sample_rate=16000))
    assert sanity_checks.unhandled(chain, is_adaptive=False).failed
    assert not sanity_checks.unhandled(chain, is_adaptive=True).failed
    assert "noise_at_snr" in sanity_checks.unhandled(chain, is_adaptive=False).says


@pytest.mark.parametrize(
    ("path", "rising"),
    [
        (range(21), True),  # the last ten calls made 10 of 20
        ([0, *[1] * 20], False),
        ([0, *[100] * 10, 109], False),  # they made 9 of 109
        ([*[0] * 10, 1, 1], True),  # they made all of it
        (range(10), True),  # no longer than the calls that must show nothing
        ([3, 2, 1], False),  # never rose
        ([float("nan"), 0, 0], False),
    ],
)
def test_incomplete_is_the_share_of_failures_that_still_rise(path: list[float], rising: bool) -> None:
    fooled_at_once = list(range(21))
    indicator = sanity_checks.incomplete([list(path)] * 8 + [fooled_at_once, [3]], [False] * 8 + [True, False])
    assert indicator.value == float(rising)
    assert indicator.clips == 8
    assert indicator.failed is rising


def test_few_failures_that_still_rise_are_no_sign() -> None:
    assert not sanity_checks.incomplete([list(range(21))] * 4, [False] * 4).failed
    assert sanity_checks.incomplete([list(range(21))] * 5, [False] * 5).failed


@pytest.mark.parametrize(("loss", "vanishes"), [("cross_entropy", True), ("margin", False), ("dlr", False)])
def test_gradient_of_the_climbed_loss_is_judged(loss: str, vanishes: bool) -> None:
    chain, x, y = setup(scale=1e4)
    indicators = check(partial(PGD, loss=loss), chain, chain, x, y, THREAT, loss=loss)
    assert ("zero_gradient" in signs(indicators)) is vanishes


def test_small_gradient_that_still_points_somewhere_is_no_sign() -> None:
    """The cross-entropy hardly changes, but its signs are as good as those of the margin."""
    chain, x, y = setup(scale=40)
    assert float(torch.nn.functional.cross_entropy(chain(x), y, reduction="none").median()) < 1e-6
    assert "zero_gradient" not in signs(check(PGD, chain, chain, x, y, THREAT))


@pytest.mark.parametrize(
    ("name", "options", "loss"),
    [
        ("pgd", {}, "cross_entropy"),
        ("pgd", {"loss": "dlr"}, "dlr"),
        ("ddn", {}, "margin"),
        ("autoattack", {}, "margin"),
        ("apgd_targeted", {}, "margin"),
    ],
)
def test_climbed_loss(name: str, options: dict[str, str], loss: str) -> None:
    assert sanity_checks.climbed_loss(name, options) == loss


def test_black_box_attack_is_not_compared_with_itself_or_its_gradient() -> None:
    chain, x, y = setup(scale=1e4)
    square = partial(ATTACKS["square"], queries=100)
    indicators = check(square, chain, chain, x, y, ThreatModel("linf", 0.1, (-1.0, 1.0)), name="square")
    for name in ("zero_gradient", "black_box_is_better", "incomplete"):
        assert math.isnan(value_of(indicators, name).value)
        assert "not measured" in value_of(indicators, name).says


@pytest.mark.parametrize(("name", "limited"), [("snr_pgd", True), ("gain_mask", True), ("pgd", False)])
def test_attack_with_limits_of_its_own_need_not_use_eps(name: str, limited: bool) -> None:
    assert spec_of(name).limited is limited
    chain, x, y = setup()

    def cautious(model, x, y, threat, *, rng, targeted):
        return PGD(model, x, y, replace(threat, eps=threat.budgets(x).clamp(max=1e-3)), rng=rng, targeted=targeted)

    found = {"reach", "unbounded_accuracy"} & signs(check(cautious, chain, chain, x, y, THREAT, name=name))
    assert found == (set() if limited else {"reach", "unbounded_accuracy"})


def test_logits_that_are_not_finite() -> None:
    chain, x, y = setup()
    chain.classifier.first[0, 0] = torch.nan
    assert value_of(check(PGD, chain, chain, x, y, THREAT), "not_finite").value == 1.0


def test_calls_outside_the_budget_are_no_success() -> None:
    """APGD in l1 begins in a ball of three times eps: what fools the model there was never within the budget."""
    chain, x, y = setup()
    far = x + 10 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))

    def explorer(model, x, y, threat, *, rng, targeted):
        model(far)
        model(x)
        return x.clone()

    assert fooled(chain(far), y).sum() >= 4
    assert value_of(check(explorer, chain, chain, x, y, THREAT), "silent_success").value == 0.0


def test_random_model_is_judged_by_the_same_draws() -> None:
    chain, x, y = setup(DEFENSES["noise_at_snr"](sample_rate=16000, snr_db=30.0))
    first, second = (check(PGD, chain, adaptive(chain, rng=streams("eot")), x, y, THREAT) for _ in range(2))
    assert [i.value for i in first[3:]] == [i.value for i in second[3:]]


def test_attack_weaker_than_a_simple_search_is_a_sign() -> None:
    chain, x, y = setup()
    large = ThreatModel("linf", 0.1, (-1.0, 1.0))
    away_from_another = partial(lambda model, x, y, *args, **keys: PGD(model, x, (y + 1) % 5, *args, **keys))
    assert "reference_is_better" in signs(check(away_from_another, chain, chain, x, y, large))
    assert value_of(check(PGD, chain, chain, x, y, large), "reference_is_better").value <= 0.1
    for name in ("band_limited", "square"):  # confined to less than the ball, or to scores
        indicators = check(away_from_another, chain, chain, x, y, large, name=name)
        assert math.isnan(value_of(indicators, "reference_is_better").value)


def test_the_unbounded_budget_is_the_legal_range_or_a_thousand_times_the_clip() -> None:
    x = torch.full((2, 100), 0.5)
    assert sanity_checks.widest(x, ThreatModel("linf", 0.1, (-1.0, 1.0))).budgets(x).tolist() == [2.0, 2.0]
    assert sanity_checks.widest(x, ThreatModel("l2", 0.1)).budgets(x).tolist() == pytest.approx([5000.0, 5000.0])
    assert sanity_checks.widest(0 * x, ThreatModel("l2", 0.1)).budgets(x).tolist() == [1000.0, 1000.0]
