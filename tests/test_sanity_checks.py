"""Every sign of failure is provoked on purpose and caught; a sound attack on a plain model raises none."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from src.evaluation import sanity_checks
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


def signs(indicators: list[sanity_checks.Indicator]) -> set[str]:
    return {i.name for i in indicators if i.failed}


PGD = partial(ATTACKS["pgd"], steps=40)


def test_a_sound_evaluation_shows_no_sign() -> None:
    chain, x, y = setup()
    indicators = sanity_checks.check(PGD, chain, chain, x, y, THREAT, streams=streams)
    assert not signs(indicators), sanity_checks.sanity_verdict(indicators)
    assert len(indicators) >= 9
    assert sanity_checks.sanity_verdict(indicators).startswith("no sign of failure")


def test_quantiser_without_bpda() -> None:
    defense = DEFENSES["quantize"](sample_rate=16000, step=4096)
    chain, x, y = setup(defense)
    plain, _, _ = setup()
    indicators = sanity_checks.check(
        PGD, chain, chain, x, y, THREAT, streams=streams, is_adaptive=False, undefended=plain
    )
    assert {"not_adaptive", "zero_gradient"} <= signs(indicators)
    assert "BPDA" in sanity_checks.sanity_verdict(indicators)
    indicators = sanity_checks.check(PGD, chain, adaptive(chain), x, y, THREAT, streams=streams, undefended=plain)
    assert not {"not_adaptive", "zero_gradient"} & signs(indicators)


def test_detached_front_end() -> None:
    chain, x, y = setup(Detached("detached"))
    indicators = sanity_checks.check(PGD, chain, chain, x, y, THREAT, streams=streams)
    assert "zero_gradient" in signs(indicators)
    assert "no gradient arrives" in sanity_checks.sanity_verdict(indicators)


def test_three_tiny_steps() -> None:
    chain, x, y = setup()
    weak = partial(ATTACKS["pgd"], steps=3, step=0.03, random_start=False)
    indicators = sanity_checks.check(weak, chain, chain, x, y, THREAT, streams=streams)
    assert {"reach", "incomplete"} <= signs(indicators)


def test_saturated_softmax() -> None:
    chain, x, y = setup(scale=1e4)
    indicators = sanity_checks.check(PGD, chain, chain, x, y, THREAT, streams=streams)
    assert "zero_gradient" in signs(indicators)
    assert "saturated softmax" in sanity_checks.sanity_verdict(indicators)


def test_black_box_better_than_a_useless_attack() -> None:
    chain, x, y = setup()

    def lazy(model, x, y, threat, *, rng, targeted):
        return x.clone()

    indicators = sanity_checks.check(lazy, chain, chain, x, y, ThreatModel("linf", 0.1, (-1.0, 1.0)), streams=streams)
    assert {"black_box_is_better", "unbounded_accuracy"} <= signs(indicators)


def test_returning_the_last_iterate_is_a_silent_success() -> None:
    chain, x, y = setup()

    def forgetful(model, x, y, threat, *, rng, targeted):
        model(PGD(lambda z: chain(z), x, y, threat, rng=rng, targeted=targeted))
        return x.clone()

    indicators = sanity_checks.check(
        forgetful, chain, chain, x, y, ThreatModel("linf", 0.1, (-1.0, 1.0)), streams=streams
    )
    assert "silent_success" in signs(indicators)


def test_larger_eps_less_successful() -> None:
    chain, x, y = setup()

    def shrinking(model, x, y, threat, *, rng, targeted):
        small = ThreatModel("linf", 0.1 if float(threat.budgets(x)[0]) < 0.15 else 1e-6, (-1.0, 1.0))
        return PGD(model, x, y, small, rng=rng, targeted=targeted)

    indicators = sanity_checks.check(
        shrinking, chain, chain, x, y, ThreatModel("linf", 0.1, (-1.0, 1.0)), streams=streams
    )
    assert "eps_not_monotone" in signs(indicators)
    assert sanity_checks.not_monotone({0.1: 0.5, 0.2: 0.7}).failed
    assert not sanity_checks.not_monotone({0.2: 0.3, 0.1: 0.5}).failed


def test_another_start_gives_another_answer() -> None:
    chain, x, y = setup()

    def dice(model, x, y, threat, *, rng, targeted):
        lucky = rng.uniform(x[:, :1]).flatten() < 0.5
        return torch.where(lucky[:, None], PGD(model, x, y, threat, rng=rng, targeted=targeted), x)

    indicators = sanity_checks.check(dice, chain, chain, x, y, ThreatModel("linf", 0.1, (-1.0, 1.0)), streams=streams)
    assert "start_matters" in signs(indicators)


def test_success_lost_on_the_wav() -> None:
    row = {"correct": 1, "success_stage": 1, "success_wav": 0}
    assert sanity_checks.lost_on_wav([row, {**row, "success_wav": 1}]).value == 0.5
    assert sanity_checks.lost_on_wav([row]).failed
    assert not sanity_checks.lost_on_wav([]).failed


def test_loss_on_the_wav_alone_is_no_reason_to_distrust() -> None:
    lost = sanity_checks.lost_on_wav([{"correct": 1, "success_stage": 1, "success_wav": 0}])
    sound, lossy = sanity_checks.not_monotone({0.1: 0.5, 0.2: 0.3}), "; 100 % of the successes are lost on the wav"
    verdict = sanity_checks.sanity_verdict([lost, sound])
    assert verdict.startswith("no sign of failure in 1 checks")
    assert lossy in verdict
    verdict = sanity_checks.sanity_verdict([lost, sanity_checks.not_monotone({0.1: 0.5, 0.2: 0.7})])
    assert verdict.startswith("DO NOT TRUST these numbers, 1 sign(s)")
    assert lossy in verdict


@pytest.mark.parametrize("draws", [1])
def test_randomised_stage_attacked_without_eot(draws: int) -> None:
    chain, _, _ = setup(DEFENSES["noise_at_snr"](sample_rate=16000))
    assert sanity_checks.unhandled(chain, is_adaptive=False).failed
    assert not sanity_checks.unhandled(chain, is_adaptive=True).failed
    assert "noise_at_snr" in sanity_checks.unhandled(chain, is_adaptive=False).says


@pytest.mark.parametrize(
    ("path", "share"),
    [
        (range(21), 0.5),  # the last ten calls made 10 of 20
        ([0, *[1] * 20], 0.0),
        ([*[0] * 10, 1, 1], 1.0),  # the last ten calls made all of it
        (range(10), 1.0),  # no longer than the calls that must show nothing
        ([3], 0.0),  # nothing to compare
        ([3, 2, 1], 0.0),  # never rose
    ],
)
def test_incomplete_is_the_share_of_the_rise_that_the_last_calls_made(path: list[int], share: float) -> None:
    fooled_at_once = list(range(21))
    indicator = sanity_checks.incomplete([list(path), fooled_at_once], torch.tensor([False, True]))
    assert indicator.value == pytest.approx(share)
    assert indicator.failed is (share > 0)
