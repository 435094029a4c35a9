"""PGD within (or outside) a frequency band. Every step is filtered in the frequency domain, and the budget is enforced
by scaling, which preserves the band, instead of clipping, which spreads energy over all frequencies. Bounds and mask
are applied last and can leak energy out of the band where they are active."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.core import check_interval, finite_budgets
from src.attacks.model import Model
from src.attacks.registration import attack
from src.losses import LossName
from src.random_streams import RandomStreams
from src.registry import Count, NonNegative, Positive
from src.threat import ThreatModel, column, norm_of


def check_band(options: Mapping[str, Any]) -> None:
    """Raises ValueError where the band is empty or beyond half the sample rate."""
    low_hz, high_hz, sample_rate = options["low_hz"], options["high_hz"], options.get("sample_rate", math.inf)
    if low_hz >= high_hz:
        raise ValueError(f"low_hz = {low_hz:g} must be below high_hz = {high_hz:g}")
    if high_hz > sample_rate / 2:
        raise ValueError(
            f"band_limited: high_hz = {high_hz:g} is beyond half the sample rate of the clips, {sample_rate / 2:g} Hz"
        )


@attack(
    "band_limited",
    kind="budget",
    norms=("linf", "l2"),
    access="gradients",
    stages="waveform",
    needs_sample_rate=True,
    limited=True,
    check_options=check_band,
)
def band_limited(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    sample_rate: int,
    low_hz: NonNegative = 4000.0,
    high_hz: Positive = 8000.0,
    inside: bool = True,
    steps: Count = 40,
    step: Positive = 2.5,
    loss: LossName = "cross_entropy",
    early_exit: bool = True,
) -> Tensor:
    """PGD that perturbs a waveform only inside, or only outside, a band of frequencies.

    Args:
        low_hz: lower edge of the band, Hz.
        high_hz: upper edge, Hz.
        inside: perturb inside the band; no perturbs all other frequencies.
        steps: gradient steps.
        step: step size in units of eps / steps.
        loss: objective that the steps maximize.
        early_exit: an example stops at its first success; otherwise its loss is maximized to the end.
    """
    frequency = torch.fft.rfftfreq(x.shape[1], 1 / sample_rate, device=x.device)
    allowed = ((frequency >= low_hz) & (frequency <= high_hz)) == inside
    if not bool(allowed.any()):
        raise ValueError(f"no DFT frequency of these clips may be perturbed ({low_hz:g} to {high_hz:g} Hz)")

    def filtered(delta: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(delta) * allowed, n=delta.shape[1])

    batch, eps, delta = ActiveBatch(model, x, y, threat, rng, targeted), finite_budgets(threat, x), torch.zeros_like(x)
    for iteration in range(steps + 1):
        grad = batch.gradient_at(batch.threat.project(batch.x + delta, batch.x), loss, first=early_exit)
        if early_exit and iteration % check_interval(x) == 0:
            eps, delta, grad = batch.keep(~batch.best.success, eps, delta, grad)
            if not len(batch):
                break
        # The filtered sign is the steepest direction within the band, up to its length.
        direction = filtered(batch.threat.ascent(filtered(batch.threat.masked(grad))))
        direction = direction / column(norm_of(direction, threat.norm), x).clamp_min(1e-30)
        delta = delta + direction * column(eps * (step / steps), x)
        delta = delta * column((eps / norm_of(delta, threat.norm).clamp_min(1e-30)).clamp(max=1), x)
    return batch.finish()
