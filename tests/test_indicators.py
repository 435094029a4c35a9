"""What an indicator says of how many clips, and that chance alone makes none fail."""

from __future__ import annotations

import math

import pytest

from src.evaluation import indicators
from src.evaluation.indicators import Indicator, more_often, not_monotone, sanity_verdict, share


def first(count: int, of: int) -> list[bool]:
    return [i < count for i in range(of)]


@pytest.mark.parametrize(
    ("hits", "clips", "threshold", "failed"),
    [
        (1, 8, 0.1, False),  # one clip of eight is .125, and its interval begins at .006
        (3, 8, 0.1, True),
        (1, 8, 0.0, True),  # what must never happen
        (0, 8, 0.0, False),
        (20, 100, 0.15, False),
        (23, 100, 0.15, True),
    ],
)
def test_share_fails_where_chance_is_ruled_out(hits: int, clips: int, threshold: float, failed: bool) -> None:
    indicator = share("name", first(hits, clips), threshold, "says")
    assert (indicator.value, indicator.clips, indicator.failed) == (hits / clips, clips, failed)


def test_a_tenth_at_the_threshold_fails_in_one_of_twenty_runs_at_most() -> None:
    probability = sum(
        math.comb(24, k) * 0.1**k * 0.9 ** (24 - k) for k in range(25) if share("", first(k, 24), 0.1, "").failed
    )
    assert 0.001 < probability <= 0.05


@pytest.mark.parametrize(
    ("gained", "lost", "failed"),
    [(4, 0, False), (5, 0, True), (7, 1, True), (6, 2, False), (0, 9, False)],
)
def test_difference_is_tested_on_the_clips_that_differ(gained: int, lost: int, failed: bool) -> None:
    hits = [True] * gained + [False] * lost + [True] * 5 + [False] * 5
    usual = [False] * gained + [True] * lost + [True] * 5 + [False] * 5
    indicator = more_often("name", hits, usual, 0.02, "says")
    assert indicator.failed is failed
    assert indicator.value == pytest.approx((gained - lost) / len(hits))
    assert indicator.clips == len(hits)


def test_significant_but_small_difference_is_no_sign() -> None:
    hits, usual = [True] * 5 + [False] * 995, [False] * 1000
    assert not more_often("name", hits, usual, 0.02, "says").failed
    assert more_often("name", hits, usual, 0.002, "says").failed


def test_nothing_to_look_at_is_said() -> None:
    for indicator in (share("name", [], 0.1, ""), more_often("name", [], [], 0.1, ""), not_monotone({})):
        assert math.isnan(indicator.value)
        assert not indicator.failed
        assert indicator.says.startswith("not measured")


def curve(**kept: int) -> dict[float, dict[str, bool]]:
    return {float(eps.removeprefix("eps")): {f"{i}": i < right for i in range(10)} for eps, right in kept.items()}


def test_curve_is_tested_step_by_step() -> None:
    assert not not_monotone(curve(eps1=8, eps2=3)).failed
    rising = not_monotone(curve(eps1=2, eps2=8))
    assert (rising.failed, rising.value) == (True, pytest.approx(0.6))
    assert not not_monotone(curve(eps1=4, eps2=8)).failed  # 4 clips may rise by chance
    assert not not_monotone(curve(eps1=9, eps2=3, eps3=8, eps4=0)).failed  # 5 of 10, but one of three steps
    assert not_monotone(curve(eps1=9, eps2=1, eps3=8, eps4=0)).failed


def test_success_lost_on_the_wav() -> None:
    row = {"correct": 1, "success_stage": 1, "success_wav": 0}
    kept = {**row, "success_wav": 1}
    assert indicators.lost_on_wav([row, kept]).value == 0.5
    assert not indicators.lost_on_wav([row] + [kept] * 7).failed
    assert indicators.lost_on_wav([row] * 3 + [kept] * 5).failed
    assert not indicators.lost_on_wav([]).failed


def test_clips_without_a_budget_are_a_sign() -> None:
    assert not indicators.empty_budget([{"budget": "0.0002"}] * 16).failed
    assert indicators.empty_budget([{"budget": "0.0"}] * 4 + [{"budget": "0.0002"}] * 12).failed


def test_one_infeasible_clip_is_a_sign() -> None:
    assert not indicators.infeasible([{"feasible": 1}] * 8).failed
    assert indicators.infeasible([{"feasible": 1}] * 99 + [{"feasible": 0}]).failed
    assert not indicators.infeasible([]).failed


def test_loss_on_the_wav_alone_is_no_reason_to_distrust() -> None:
    lost = indicators.lost_on_wav([{"correct": 1, "success_stage": 1, "success_wav": 0}] * 4)
    lossy = "; 100 % of the successes are lost on the wav"
    verdict = sanity_verdict([lost, not_monotone(curve(eps1=5, eps2=3))])
    assert verdict.startswith("no sign of failure in 1 checks on up to 10 clips")
    assert lossy in verdict
    verdict = sanity_verdict([lost, not_monotone(curve(eps1=2, eps2=8))])
    assert verdict.startswith("DO NOT TRUST these numbers, 1 sign(s)")
    assert "curve_not_monotone = 0.6 on 10 clips" in verdict
    assert lossy in verdict


def test_no_verdict_without_a_check() -> None:
    unmeasured = indicators.lost_on_wav([])
    lost = indicators.lost_on_wav([{"correct": 1, "success_stage": 1, "success_wav": 0}] * 4)
    for measured in ([], [unmeasured], [lost]):
        assert sanity_verdict(measured).startswith("not checked"), measured
    assert "100 % of the successes are lost on the wav" in sanity_verdict([lost])


def test_facts_make_the_indicator_again() -> None:
    indicator = share("name", first(3, 8), 0.1, "says")
    assert Indicator(**indicator.facts()) == indicator
