"""Accuracy, intervals and tables against answers known from elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.datasets.store import Clips
from src.evaluation.accuracy import confusion, logits_of, per_class, r1, summarize, wilson
from src.victims import checkpoint

LABELS = torch.tensor([0, 0, 0, 1, 1, 2])
PREDICTIONS = torch.tensor([0, 0, 1, 1, 1, 0])


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_known_answers(right: int, n: int, low: float, high: float) -> None:
    """The last row is the example of Newcombe (1998)."""
    assert wilson(right, n) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_proportion(case: tuple[int, int]) -> None:
    right, n = case
    low, high = wilson(right, n)
    assert -1e-12 <= low <= right / n + 1e-12
    assert right / n - 1e-12 <= high <= 1 + 1e-12


def test_confusion() -> None:
    assert confusion(LABELS, PREDICTIONS, 3).tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]


def test_per_class() -> None:
    a, b, c = per_class(confusion(LABELS, PREDICTIONS, 3), ("a", "b", "c"))
    assert (a["precision"], a["recall"], a["f1"], a["support"]) == pytest.approx((2 / 3, 2 / 3, 2 / 3, 3))
    assert (b["precision"], b["recall"], b["f1"]) == pytest.approx((2 / 3, 1, 0.8))
    assert math.isnan(c["precision"])
    assert c["recall"] == c["f1"] == 0


def test_summary() -> None:
    found = summarize(torch.eye(3)[PREDICTIONS] * 100, LABELS)
    assert (found["n"], found["correct"], found["accuracy"]) == (6, 4, pytest.approx(4 / 6))
    assert found["low_95"] < found["accuracy"] < found["high_95"]
    assert found["cross_entropy"] == pytest.approx(200 / 6)


def test_predictions_do_not_depend_on_the_batch(clips: Clips) -> None:
    torch.manual_seed(0)
    victim = checkpoint.build(
        model="tc_resnet8", classes=clips.classes, sample_rate=clips.sample_rate, n_samples=clips.n_samples
    )
    logits = logits_of(victim, clips)
    assert logits.shape == (len(clips), 4)
    torch.testing.assert_close(logits, logits_of(victim, clips, batch_size=3), atol=1e-4, rtol=1e-4)


PUBLISHED = {
    "none": (99.8, [42.3, 0, 0, 6.5, 0, 19.8, 18.7, 8.0]),
    "QT": (86.8, [76.8, 61.2, 67.2, 86.8, 49.9, 91.3, 88.2, 31.7]),
    "AS": (98.1, [46.0, 0, 0, 96.8, 0, 47.5, 69.3, 21.9]),
    "MS": (83.9, [65.6, 21.3, 24.5, 77.1, 26.9, 71.5, 70.6, 41.8]),
}
"""Rows of the published table: accuracy on benign clips and under eight of the attacks."""


def test_r1_is_the_harmonic_mean() -> None:
    assert r1(0.0, [0.0]) == 0.0
    assert r1(1.0, [0.0, 0.0]) == 0.0
    assert r1(0.8, [0.8, 0.8]) == pytest.approx(0.8)
    assert r1(90.0, [30.0, 60.0]) == pytest.approx(100 * r1(0.9, [0.3, 0.6]))
    with pytest.raises(ValueError, match="at least one attack"):
        r1(0.9, [])
    for benign, attacks in PUBLISHED.values():
        mean = sum(attacks) / len(attacks)
        assert 1 / r1(benign, attacks) == pytest.approx((1 / benign + 1 / mean) / 2)
