"""Error rates of accepting and rejecting: equal error rate, detection cost, DET points, and the choice of a threshold.

A trial is a score and whether the speaker is the claimed (target) or another one (non-target). A score of at least
theta is accepted. FRR(theta) is the share of target trials that are rejected, FAR(theta) that of non-target trials
accepted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import beta, norm
from torch import Tensor


@dataclass(frozen=True)
class Trials:
    """Scores of target and of non-target trials, sorted.

    Raises:
        ValueError: no trials of one kind, or a score that is not a finite number.
    """

    target: np.ndarray
    non_target: np.ndarray

    @classmethod
    def of(cls, target: Tensor | np.ndarray, non_target: Tensor | np.ndarray) -> Trials:
        scores = [np.sort(np.asarray(kind, dtype=np.float64)) for kind in (target, non_target)]
        for kind, name in zip(scores, ("target", "imposter"), strict=True):
            if not len(kind):
                raise ValueError(f"there are no {name} trials, so error rates and a threshold have no meaning")
            if not np.isfinite(kind).all():
                raise ValueError(f"{name} trials have scores that are not finite numbers")
        return cls(*scores)

    def thresholds(self) -> np.ndarray:
        """One theta for each way to divide the trials, rising: midpoints of neighboring scores, which no rounding moves
        across a score, and one beyond either end."""
        scores = np.unique(np.concatenate([self.target, self.non_target]))
        step = max(float(np.diff(scores).mean()) if len(scores) > 1 else 0.0, 1e-3 * max(1.0, np.abs(scores).max()))
        return np.concatenate([[scores[0] - step], (scores[1:] + scores[:-1]) / 2, [scores[-1] + step]])

    def rejected(self, theta: np.ndarray | float) -> np.ndarray:
        """Target trials below theta."""
        return np.searchsorted(self.target, theta, side="left")

    def accepted(self, theta: np.ndarray | float) -> np.ndarray:
        """Non-target trials at theta or above."""
        return len(self.non_target) - np.searchsorted(self.non_target, theta, side="left")

    def rates(self, theta: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """(FRR, FAR) at theta."""
        return self.rejected(theta) / len(self.target), self.accepted(theta) / len(self.non_target)


def wilson(errors: np.ndarray, n: int, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score intervals (1927) of error rates, from counts of n trials: (low, high), shaped as `errors`."""
    z = norm.isf((1 - confidence) / 2)
    rate = errors / n
    center = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return (center - half).clip(0), (center + half).clip(None, 1)


def clopper_pearson(errors: np.ndarray, n: int, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Exact intervals of error rates (Clopper and Pearson 1934), from counts of n trials: (low, high), shaped as
    `errors`. They hold the true rate with at least this probability, which those of Wilson do on average alone."""
    tail = (1 - confidence) / 2
    with np.errstate(invalid="ignore"):  # a beta distribution with a parameter of 0, where the bound is 0 or 1
        low, high = beta.ppf(tail, errors, n - errors + 1), beta.isf(tail, errors + 1, n - errors)
    return np.where(errors == 0, 0.0, low), np.where(errors == n, 1.0, high)


def equal_error_rate(trials: Trials) -> tuple[float, float]:
    """(EER, theta) where FRR and FAR are nearest to each other, and least; the EER is their mean there."""
    thetas = trials.thresholds()
    # Both rates over one denominator are whole numbers, so that a tie is one whatever the rounding.
    frr = trials.rejected(thetas) * len(trials.non_target)
    far = trials.accepted(thetas) * len(trials.target)
    best = int(np.lexsort((frr + far, np.abs(frr - far)))[0])
    return float((frr[best] + far[best]) / (2 * len(trials.target) * len(trials.non_target))), float(thetas[best])


def equal_error_interval(trials: Trials, confidence: float = 0.95) -> tuple[float, float]:
    """Interval that holds the true EER with at least this probability, whatever the distributions of the scores.

    At the theta where the true rates are equal, each lies inside its exact interval; so the EER is below the highest
    value at which both upper limits meet over all theta, and above the lowest at which the lower ones do. Each interval
    takes half of the error.
    """
    inside = 1 - (1 - confidence) / 2
    thetas = trials.thresholds()
    frr = clopper_pearson(trials.rejected(thetas), len(trials.target), inside)
    far = clopper_pearson(trials.accepted(thetas), len(trials.non_target), inside)
    return float(np.maximum(frr[0], far[0]).min()), float(np.minimum(frr[1], far[1]).max())


def min_dcf(trials: Trials, target_prior: float = 0.01, miss: float = 1.0, false_alarm: float = 1.0) -> float:
    """Smallest detection cost over theta (NIST speaker recognition evaluations), as a multiple of the cost of accepting
    all or none, whichever is less; 1 at most.

    Args:
        target_prior: assumed share of target trials, above 0 and below 1.
        miss, false_alarm: costs of the two errors.
    """
    frr, far = trials.rates(trials.thresholds())
    cost_miss, cost_accept = miss * target_prior, false_alarm * (1 - target_prior)
    return float((cost_miss * frr + cost_accept * far).min() / min(cost_miss, cost_accept))


def choose_threshold(trials: Trials, rate: float | Literal["eer"]) -> float:
    """Theta at the equal error rate, or the lowest at which at most this share of non-target trials is accepted."""
    if rate == "eer":
        return equal_error_rate(trials)[1]
    thetas = trials.thresholds()
    return float(thetas[np.flatnonzero(trials.rates(thetas)[1] <= rate)[0]])


def at_threshold(trials: Trials, theta: float) -> dict[str, Any]:
    """False rejects and false accepts at theta: counts, rates and their 95 % Wilson intervals."""
    row: dict[str, Any] = {}
    for name, errors, n in (
        ("false_rejects", int(trials.rejected(theta)), len(trials.target)),
        ("false_accepts", int(trials.accepted(theta)), len(trials.non_target)),
    ):
        low, high = wilson(np.array([errors]), n)
        rate = "FRR" if name == "false_rejects" else "FAR"
        row |= {
            name: f"{errors} of {n}",
            rate: errors / n,
            f"{rate}_low_95": float(low[0]),
            f"{rate}_high_95": float(high[0]),
        }
    return row


def summarize(trials: Trials, target_prior: float = 0.01) -> dict[str, Any]:
    """What does not depend on a chosen theta: numbers of trials, EER with its 95 % interval, minDCF."""
    low, high = equal_error_interval(trials)
    return {
        "target_trials": len(trials.target),
        "non_target_trials": len(trials.non_target),
        "EER": equal_error_rate(trials)[0],
        "EER_low_95": low,
        "EER_high_95": high,
        "minDCF": min_dcf(trials, target_prior),
    }


def det_points(trials: Trials) -> tuple[np.ndarray, np.ndarray]:
    """(FAR, FRR) at every theta that divides the trials in another way, FAR falling."""
    frr, far = trials.rates(trials.thresholds())
    return far, frr
