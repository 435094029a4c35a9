"""Error rates on score sets whose answers are known, thresholds, and the logits they come from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_curve

from src.evaluation import accuracy
from src.speaker import error_rates, trials
from src.speaker.error_rates import Trials, at_threshold, choose_threshold, equal_error_rate, min_dcf

KNOWN = Trials.of(np.array([5.0, 4, 3, 1]), np.array([2.0, 0, -1, -2]))
"""One target trial (1) below one imposter (2): a threshold between 1 and 3 errs on one of four of either kind."""

scores = st.lists(st.integers(-8, 8).map(float), min_size=1, max_size=30).map(np.array)


def test_known_scores() -> None:
    eer, theta = equal_error_rate(KNOWN)
    assert (eer, theta) == (0.25, 1.5)
    assert KNOWN.rates(1.5) == (0.25, 0.25)
    assert KNOWN.rates(2.5) == (0.25, 0)
    assert KNOWN.rates(0.5) == (0, 0.25)


def test_a_score_at_the_threshold_is_accepted_as_argmax_does() -> None:
    assert KNOWN.rates(3.0) == (0.25, 0)
    assert KNOWN.rates(2.0) == (0.25, 0.25)
    assert torch.tensor([[3.0, 3.0]]).argmax(1).item() == 0


def test_min_dcf_by_hand() -> None:
    # Prior .5: FRR/2 + FAR/2 over .5, least at no imposter or no target lost, .25. Prior .01: accepting none is best.
    assert min_dcf(KNOWN, 0.5) == pytest.approx(0.25)
    assert min_dcf(KNOWN, 0.01) == pytest.approx(0.25)
    # Targets at 0 and 2, imposters at 1 and -1: at theta > 1 half the targets are lost, at -.5 half the imposters pass.
    mixed = Trials.of(np.array([0.0, 2]), np.array([1.0, -1]))
    assert min_dcf(mixed, 0.5) == pytest.approx(0.5)
    assert min_dcf(mixed, 0.1) == pytest.approx(0.5)
    assert min_dcf(mixed, 0.9, miss=1, false_alarm=9) == pytest.approx(0.5)


def test_a_useless_recognizer_costs_one() -> None:
    same = np.arange(10.0)
    assert min_dcf(Trials.of(same, same), 0.01) == pytest.approx(1)
    assert equal_error_rate(Trials.of(same, same))[0] == pytest.approx(0.5, abs=0.05)
    assert equal_error_rate(Trials.of(-1 - same, same))[0] == pytest.approx(1, abs=0.05)


def test_separate_scores_have_no_errors_and_theta_in_the_gap() -> None:
    apart = Trials.of(np.array([4.0, 5]), np.array([1.0, 2]))
    assert equal_error_rate(apart) == (0, 3.0)
    assert min_dcf(apart) == 0


def test_equal_error_rate_of_gaussians() -> None:
    """Two normal distributions of unit variance, d apart, cross at half: EER = Phi(-d / 2)."""
    rng = np.random.default_rng(0)
    for d in (1.0, 3.0):
        made = Trials.of(d + rng.standard_normal(20000), rng.standard_normal(30000))
        eer, theta = equal_error_rate(made)
        assert eer == pytest.approx(norm.cdf(-d / 2), abs=0.005)
        assert theta == pytest.approx(d / 2, abs=0.05)


def test_equal_error_rate_against_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    target, imposter = 1 + rng.standard_normal(200), rng.standard_normal(300)
    far, tpr, _ = roc_curve(np.repeat([1, 0], [200, 300]), np.concatenate([target, imposter]), drop_intermediate=False)
    apart, total = np.abs(1 - tpr - far).round(9), (1 - tpr + far).round(9)
    assert equal_error_rate(Trials.of(target, imposter))[0] == pytest.approx(total[apart == apart.min()].min() / 2)
    x, y = error_rates.det_points(Trials.of(target, imposter))
    assert {(round(a, 9), round(b, 9)) for a, b in zip(x, y, strict=True)} == {
        (round(a, 9), round(1 - b, 9)) for a, b in zip(far, tpr, strict=True)
    }


@settings(deadline=None)
@given(scores, scores)
def test_rates_are_counts(target: np.ndarray, imposter: np.ndarray) -> None:
    made = Trials.of(target, imposter)
    thetas = made.thresholds()
    frr, far = made.rates(thetas)
    assert frr.tolist() == [np.mean(target < theta) for theta in thetas]
    assert far.tolist() == [np.mean(imposter >= theta) for theta in thetas]
    assert (frr[0], far[0], frr[-1], far[-1]) == (0, 1, 1, 0)
    assert not set(thetas) & {*target, *imposter}, "no theta is a score"
    eer, theta = equal_error_rate(made)
    low, high = error_rates.equal_error_interval(made)
    assert 0 <= low <= eer <= high <= 1
    assert abs(np.subtract(*made.rates(theta))) == pytest.approx(np.abs(frr - far).min())


@settings(deadline=None)
@given(scores, scores, st.floats(0, 1))
def test_a_wanted_rate_is_kept_by_the_lowest_threshold(target: np.ndarray, imposter: np.ndarray, rate: float) -> None:
    made = Trials.of(target, imposter)
    theta = choose_threshold(made, rate)
    assert np.mean(imposter >= theta) <= rate
    lower = made.thresholds()[made.thresholds() < theta]
    assert all(np.mean(imposter >= t) > rate for t in lower)


def test_the_threshold_of_equal_errors() -> None:
    assert choose_threshold(KNOWN, "eer") == 1.5
    assert choose_threshold(KNOWN, 0.0) == 2.5
    assert choose_threshold(KNOWN, 1.0) < -2


def test_wilson_is_the_interval_of_the_accuracies() -> None:
    for n in (1, 7, 263):
        counts = np.arange(n + 1)
        low, high = error_rates.wilson(counts, n)
        expected = np.array([accuracy.wilson(k, n) for k in counts])
        np.testing.assert_allclose(np.stack([low, high], 1), expected, atol=1e-12)


def test_errors_at_a_threshold() -> None:
    row = at_threshold(KNOWN, 1.5)
    assert (row["false_rejects"], row["false_accepts"]) == ("1 of 4", "1 of 4")
    assert (row["FRR"], row["FAR"]) == (0.25, 0.25)
    assert (row["FAR_low_95"], row["FAR_high_95"]) == pytest.approx(accuracy.wilson(1, 4))


def test_the_interval_of_the_equal_error_rate_holds_it() -> None:
    """Of 300 experiments with a true EER of Phi(-1) = .159, at most 5 % may miss it. The interval is at
    most twice as wide as that of one rate, so it says something."""
    rng = np.random.default_rng(2)
    truth, missed, widths = norm.cdf(-1), 0, []
    for _ in range(300):
        made = Trials.of(2 + rng.standard_normal(60), rng.standard_normal(90))
        low, high = error_rates.equal_error_interval(made)
        missed += not low <= truth <= high
        widths.append(high - low)
    assert missed <= 15
    low, high = error_rates.wilson(np.array([10]), 60)
    assert np.mean(widths) < 2 * (high - low)[0]


@pytest.mark.parametrize(("target", "imposter", "who"), [([], [1.0], "target"), ([1.0], [], "imposter")])
def test_trials_of_one_kind_are_refused(target: list[float], imposter: list[float], who: str) -> None:
    with pytest.raises(ValueError, match=f"there are no {who} trials"):
        Trials.of(np.array(target), np.array(imposter))
    with pytest.raises(ValueError, match="not finite"):
        Trials.of(np.array([np.nan]), np.array([0.0]))


LOGITS = torch.tensor([[3.0, 1.0, 0.0], [-1.0, 2.0, 0.0], [-5.0, -4.0, 0.0], [1.0, -3.0, 0.0]])
LABELS = torch.tensor([0, 0, 1, 2])
"""Right; accepted as the wrong one; rejected; an imposter accepted."""


def test_trials_of_clips_are_the_decisions() -> None:
    made = trials.of_clips(LOGITS, LABELS)
    assert made.target.tolist() == [-4, 2, 3]
    assert made.non_target.tolist() == [1]
    row = at_threshold(made, 0.0)
    assert (row["false_rejects"], row["false_accepts"]) == ("1 of 3", "1 of 1")


def test_trials_of_pairs() -> None:
    made = trials.of_pairs(LOGITS, LABELS)
    assert made.target.tolist() == [-4, -1, 3]
    assert made.non_target.tolist() == [-5, -3, 1, 1, 2]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["eer", 0.0, 0.1]))
def test_decisions_by_argmax_are_the_error_rates(seed: int, rate: float) -> None:
    """theta among the logits, at float32 precision, accepts and rejects what the counts say."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(40, 3, generator=generator)
    labels = torch.arange(40) % 4
    blank = torch.cat([scores, torch.zeros(40, 1)], 1)
    made = trials.of_clips(blank, labels)
    theta = choose_threshold(made, rate)  # type: ignore[arg-type]
    logits = torch.cat([scores, torch.full((40, 1), theta)], 1)
    accepted = logits.argmax(1) != 3
    row = at_threshold(made, float(logits[0, -1]))
    assert row["false_accepts"] == f"{int(accepted[labels == 3].sum())} of 10"
    assert row["false_rejects"] == f"{int((~accepted)[labels != 3].sum())} of 30"


def test_few_trials_leave_the_interval_of_the_equal_error_rate_its_probability() -> None:
    """Three target trials: with Wilson's intervals in the place of the exact ones it was .93."""
    rng, true, covered = np.random.default_rng(1), 0.05, 0
    distance = -2 * norm.ppf(true)
    for _ in range(600):
        made = Trials.of(rng.normal(distance, 1, 3), rng.normal(0, 1, 100))
        low, high = error_rates.equal_error_interval(made)
        covered += low <= true <= high
    assert covered >= 0.95 * 600


@pytest.mark.parametrize(("errors", "n"), [(0, 7), (7, 7), (1, 7), (3, 40)])
def test_exact_intervals_of_rates(errors: int, n: int) -> None:
    low, high = error_rates.clopper_pearson(np.array([errors]), n, 0.9)
    expected = binomtest(errors, n).proportion_ci(0.9, method="exact")
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high))
