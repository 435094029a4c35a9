"""Adaptive symmetric score normalization (AS-norm; Cumani et al. 2011, the variant that Matejka et al. 2017 call
AS-norm1): each score is seen against those that either side has with the background utterances nearest to it."""

from __future__ import annotations

from torch import Tensor

SMALLEST_DEVIATION = 1e-4
"""Of a score; it keeps the quotient finite where all nearest utterances score the same."""


def nearest(scores: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [n] of the `top` largest of each row of cohort scores [n, cohort]."""
    largest = scores.topk(top, dim=1).values
    return largest.mean(1), (largest.var(1, correction=0) + SMALLEST_DEVIATION**2).sqrt()


def as_norm(scores: Tensor, test: Tensor, enrolled: Tensor, top: int) -> Tensor:
    """Normalized scores [n, speakers], differentiable in everything.

    Args:
        scores: of test utterances and enrolled speakers, [n, speakers].
        test: of test utterances and cohort, [n, cohort].
        enrolled: of enrolled speakers and cohort, [speakers, cohort].
        top: cohort utterances that count for each side, at most as many as there are.
    """
    mean_test, deviation_test = nearest(test, top)
    mean_enrolled, deviation_enrolled = nearest(enrolled, top)
    by_test = (scores - mean_test[:, None]) / deviation_test[:, None]
    by_enrolled = (scores - mean_enrolled) / deviation_enrolled
    return (by_test + by_enrolled) / 2
