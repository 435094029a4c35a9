"""Trials of a recognizer with a threshold: from its logits and the true labels to scores of targets and imposters."""

from __future__ import annotations

from torch import Tensor

from src.speaker.error_rates import Trials


def of_clips(logits: Tensor, labels: Tensor) -> Trials:
    """One trial per clip, as the recognizer decides: its best score [n], target where an enrolled speaker speaks.

    Args:
        logits: [n, N + 1], the last column theta.
        labels: [n], N for nobody.
    """
    best, imposter = logits[:, :-1].amax(1), labels == logits.shape[1] - 1
    return Trials.of(best[~imposter], best[imposter])


def of_pairs(logits: Tensor, labels: Tensor) -> Trials:
    """One trial per clip and enrolled speaker, the usual way to count in verification: n N scores, of which those with
    the true speaker are target trials.

    Args:
        logits: [n, N + 1], the last column theta.
        labels: [n], N for nobody.
    """
    scores = logits[:, :-1]
    same = labels[:, None] == labels.new_tensor(range(scores.shape[1]))
    return Trials.of(scores[same], scores[~same])
