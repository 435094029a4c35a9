"""Kenansville attack, the DFT variant (Abdullah et al. 2021): remove the weakest frequencies of a clip until it is
misclassified. It needs predicted labels only and minimizes what is removed."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.core import attack
from src.attacks.labels.oracle import Oracle, within
from src.attacks.model import Model
from src.random_streams import RandomStreams
from src.registry import Count
from src.threat import ThreatModel, column


@attack("kenansville", kind="minimum_norm", norms=("l2", "linf"), access="labels", targetable=False, stages="waveform")
def kenansville(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    steps: Count = 15,
) -> Tensor:
    """Zero all DFT bins of a waveform below a magnitude found by bisection; failures are returned unchanged.

    Args:
        steps: bisection steps of one query each, after one query for the clean clip and one for silence.
    """
    oracle = Oracle(ActiveBatch(model, x, y, threat, rng, targeted), steps + 2)
    spectrum = torch.fft.rfft(x)
    rank = spectrum.abs().argsort(1).argsort(1)
    all_examples = torch.ones(len(x), dtype=torch.bool, device=x.device)
    already_fooled = oracle.query(x, all_examples)

    def without(count: Tensor) -> Tensor:
        """The clips without their `count` [batch] weakest bins."""
        removed = torch.fft.irfft(torch.where(rank < column(count, rank), spectrum, 0), n=x.shape[1])
        return threat.clip(x - removed, x)

    # The threshold is a rank among the sorted magnitudes: the resolution does not depend on the level of the clip.
    low, high = torch.zeros_like(oracle.used), torch.full_like(oracle.used, rank.shape[1])
    silence_succeeds = oracle.query(without(high), ~already_fooled)
    for _ in range(steps):
        middle = (low + high) // 2
        hit = oracle.query(without(middle), silence_succeeds & (high - low > 1))
        high = torch.where(hit, middle, high)
        low = torch.where(hit | (high - low <= 1), low, middle)
    return within(threat, torch.where(column(silence_succeeds, x), without(high), x), x)
