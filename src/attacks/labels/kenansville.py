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
    levels: Count = 20,
    steps: Count = 15,
) -> Tensor:
    """Zero all DFT bins of a waveform below a magnitude: the first of equally spaced levels that succeeds, refined by
    bisection. Failures are returned unchanged.

    Args:
        levels: levels that are tried from the weakest removal up to silence, equally spaced in the L2 norm of what is
            removed; one query each, until the first success.
        steps: bisection steps of one query each, between that level and the one below.
    """
    oracle = Oracle(ActiveBatch(model, x, y, threat, rng, targeted), 1 + levels + steps)
    spectrum = torch.fft.rfft(x)
    ordered, order = spectrum.abs().sort(1)
    rank = order.argsort(1)
    norms = ordered.square().cumsum(1).sqrt()
    already_fooled = oracle.query(x, torch.ones(len(x), dtype=torch.bool, device=x.device))

    def without(count: Tensor) -> Tensor:
        """The clips without their `count` [batch] weakest bins."""
        removed = torch.fft.irfft(torch.where(rank < column(count, rank), spectrum, 0), n=x.shape[1])
        return threat.clip(x - removed, x)

    # Success need not grow with the removal, least of all where silence itself has the label of the clip: the scan
    # looks for the first success. A level is a rank among the magnitudes, whatever the clip's own level.
    low, high = torch.zeros_like(oracle.used), torch.zeros_like(oracle.used)
    succeeded = torch.zeros_like(already_fooled)
    for level in range(1, levels + 1):
        searching = ~(succeeded | already_fooled)
        if not searching.any():
            break
        below = torch.searchsorted(norms, norms[:, -1:] * (level / levels)).squeeze(1)
        count = torch.full_like(below, rank.shape[1]) if level == levels else below
        hit = oracle.query(without(count), searching)
        succeeded = succeeded | hit
        low = torch.where(searching & ~hit, count, low)
        high = torch.where(hit, count, high)
    for _ in range(steps):
        middle = (low + high) // 2
        unresolved = succeeded & (high - low > 1)
        hit = oracle.query(without(middle), unresolved)
        high = torch.where(hit, middle, high)
        low = torch.where(unresolved & ~hit, middle, low)
    return within(threat, torch.where(column(succeeded, x), without(high), x), x)
