"""Lower confidence bounds on the probability p of a class from k hits in n noise draws.

The Clopper-Pearson bound needs a number of draws fixed beforehand (Cohen, Rosenfeld and Kolter 2019). The betting test
(Voracek 2024) may be evaluated after every draw and stopped at any time, for all radii at once. Its wealth against the
hypothesis "the probability is p" is the Beta(1/2, 1/2) mixture likelihood ratio; at the true p it is a martingale of
mean 1, so by Ville's inequality it ever reaches 1 / alpha with probability at most alpha."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_DOWN, Context, Decimal
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaln, log_ndtr, ndtr, ndtri
from scipy.stats import beta

TOLERANCE = 1e-9
"""Absolute error of the root finder; it is subtracted, so that it never enlarges a radius."""


def lower_bound(k: int, n: int, alpha: float) -> float:
    """One-sided Clopper-Pearson bound: p is below it with probability at most alpha.

    >>> lower_bound(1000, 1000, 0.001) == 0.001 ** (1 / 1000)
    True
    """
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"need 0 <= k <= n and n >= 1, got k = {k}, n = {n}")
    if k == n:
        return alpha ** (1 / n)  # the Beta(n, 1) quantile in closed form
    return float(beta.ppf(alpha, k, n - k + 1)) if k else 0.0


def round_down(radius: float, digits: int = 6) -> float:
    """The radius rounded down to so many significant digits: the printed radius must be certified too.

    >>> round_down(0.12345678)
    0.123456
    """
    return float(Context(prec=digits, rounding=ROUND_DOWN).create_decimal(Decimal(radius)))


def log_wealth(k: Any, n: Any, log_p: Any, log_q: Any) -> Any:
    """Logarithm of the wealth against a probability p, given as log p and log(1 - p), after k hits in n draws; arrays
    broadcast. Logarithms, because float64 rounds p to 1 for large z."""
    return betaln(k + 0.5, n - k + 0.5) - math.log(math.pi) - k * log_p - (n - k) * log_q


class BettingTest:
    """Decides for each target z whether p >= Phi(z), draw by draw.

    Args:
        targets: the z = radius / sigma to decide, >= 0.
        n: maximum number of draws.
        alpha: probability that any decision of this test about p is wrong.
    """

    def __init__(self, targets: Sequence[float], n: int, alpha: float):
        self.z, self.limit, self.threshold = np.asarray(targets, dtype=np.float64), n, -math.log(alpha)
        self.p, self.logs = ndtr(self.z), (log_ndtr(self.z), log_ndtr(-self.z))
        self.k = self.n = 0
        self.won = np.zeros(len(self.z), dtype=bool)
        self.lost = np.zeros(len(self.z), dtype=bool)

    def observe(self, hits: np.ndarray) -> bool:
        """Process draws (bool [m], True = the class) one by one until all targets are decided or no draws are left;
        the remaining draws of the call are ignored, so decisions do not depend on how draws are batched.

        Returns:
            whether every target is decided.
        """
        k = (self.k + np.cumsum(hits))[:, None]
        n = (self.n + np.arange(1, len(hits) + 1))[:, None]
        crossed = log_wealth(k, n, *self.logs) >= self.threshold
        above = k > n * self.p
        # Even if all remaining draws were hits, the target would not be won: giving up is always sound. Under hits
        # alone the wealth falls and then rises, so its last value decides.
        hopeless = log_wealth(k + self.limit - n, self.limit, *self.logs) < self.threshold
        won: np.ndarray = np.logical_or.accumulate(crossed & above) | self.won
        lost: np.ndarray = np.logical_or.accumulate((crossed & ~above) | (hopeless & ~won)) | self.lost
        decided: np.ndarray = np.all(won | lost, axis=1)
        last = int(decided.argmax()) if decided.any() else len(hits) - 1
        self.k, self.n, self.won, self.lost = int(k[last, 0]), int(n[last, 0]), won[last], lost[last]
        return bool(decided[last])

    def lower_z(self) -> float:
        """The largest z for which p >= Phi(z) is proven so far, or -inf where not even p >= 1/2 is."""
        best = max(self.z[self.won], default=-math.inf)

        def excess(z: float) -> float:
            return float(log_wealth(self.k, self.n, log_ndtr(z), log_ndtr(-z)) - self.threshold)

        if 2 * self.k <= self.n or excess(0.0) < 0:
            return float(best)
        # The wealth is at most 1 at k / n and at least 1 / alpha at 1/2: the bound lies between.
        root = brentq(excess, 0.0, ndtri(self.k / self.n) if self.k < self.n else 40.0, xtol=TOLERANCE / 2)
        return float(max(best, root - TOLERANCE, 0.0))
