"""Kenansville attack (Abdullah et al. 2021): remove the weakest parts of a clip, DFT bins or components of its singular
spectrum, until it is misclassified. It needs predicted labels only and minimizes what is removed."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.labels.oracle import Oracle, within
from src.attacks.labels.singular_spectrum import Decomposition
from src.attacks.model import Model
from src.attacks.registration import attack
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
    method: Literal["fft", "ssa"] = "fft",
    levels: Count = 20,
    steps: Count = 15,
) -> Tensor:
    """Remove all parts of a waveform below a magnitude: the first of equally spaced levels that succeeds, refined by
    bisection. Failures are returned unchanged.

    Args:
        method: the parts: DFT bins (fft), or components of singular spectrum analysis (ssa), with a window of 5 % of
            the clip and at most 3000 samples, whose square takes 4 bytes per clip of the batch.
        levels: levels that are tried from the weakest removal up to silence, equally spaced in the L2 norm of what is
            removed; one query each, until the first success. 1 bisects from silence, as published.
        steps: bisection steps of one query each, between that level and the one below.
    """
    oracle = Oracle(ActiveBatch(model, x, y, threat, rng, targeted), 1 + levels + steps)
    parts = (Bins if method == "fft" else Components)(x)
    norms = parts.norms
    already_fooled = oracle.query(x, torch.ones(len(x), dtype=torch.bool, device=x.device))

    def without(count: Tensor, selected: Tensor) -> Tensor:
        """The clips without their `count` [batch] weakest parts; only those `selected` [batch] bool matter."""
        return threat.clip(x - parts.removed(count, selected), x)

    # Success need not grow with the removal, least of all where silence itself has the label of the clip: the scan
    # looks for the first success. A level is a rank among the parts, whatever the clip's own level.
    low, high = torch.zeros_like(oracle.used), torch.zeros_like(oracle.used)
    succeeded = torch.zeros_like(already_fooled)
    for level in range(1, levels + 1):
        searching = ~(succeeded | already_fooled)
        if not searching.any():
            break
        below = torch.searchsorted(norms, norms[:, -1:] * (level / levels)).squeeze(1)
        count = torch.full_like(below, norms.shape[1]) if level == levels else below
        hit = oracle.query(without(count, searching), searching)
        succeeded = succeeded | hit
        low = torch.where(searching & ~hit, count, low)
        high = torch.where(hit, count, high)
    for _ in range(steps):
        middle = (low + high) // 2
        unresolved = succeeded & (high - low > 1)
        hit = oracle.query(without(middle, unresolved), unresolved)
        high = torch.where(hit, middle, high)
        low = torch.where(unresolved & ~hit, middle, low)
    return within(threat, torch.where(column(succeeded, x), without(high, succeeded), x), x)


class Bins:
    """The DFT bins of clips.

    Args:
        x: waveforms [batch, time].

    Attributes:
        norms: L2 norm of the weakest parts together, up to each, [batch, parts].
    """

    def __init__(self, x: Tensor):
        self.n_samples, self.spectrum = x.shape[1], torch.fft.rfft(x)
        ordered, order = self.spectrum.abs().sort(1)
        self.rank = order.argsort(1)
        self.norms = ordered.square().cumsum(1).sqrt()

    def removed(self, count: Tensor, selected: Tensor) -> Tensor:
        """What clips lose without their `count` [batch] weakest parts, [batch, time]. Only those that are `selected`
        [batch] bool matter."""
        kept = torch.where(self.rank < column(count, self.rank), self.spectrum, 0)
        return torch.fft.irfft(kept, n=self.n_samples)


class Components:
    """The same of the components of singular spectrum analysis."""

    def __init__(self, x: Tensor):
        self.x, self.spectrum = x, Decomposition(x)
        self.norms = self.spectrum.energy.cumsum(1).sqrt().to(x.dtype)

    def removed(self, count: Tensor, selected: Tensor) -> Tensor:
        clips = zip(self.x, count.tolist(), selected.tolist(), strict=True)
        return torch.stack(
            [
                x - self.spectrum.leading(i, n) if wanted else torch.zeros_like(x)
                for i, (x, n, wanted) in enumerate(clips)
            ]
        )
