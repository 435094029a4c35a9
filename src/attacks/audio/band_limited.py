"""PGD inside (or outside) a frequency band: every step is filtered by the DFT of the clip, and budgets are met by
scaling, which keeps the band, instead of clipping, which would splatter energy over all frequencies. Only bounds and
a mask can leak: where they bite they come last."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.core import Model, attack, every, finite_budgets
from src.random_streams import RandomStreams
from src.registry import Count, NonNegative, Positive
from src.threat import ThreatModel, column, norm_of


@attack("band_limited", kind="budget", norms=("linf", "l2"))
def band_limited(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    low_hz: NonNegative = 4000.0,
    high_hz: Positive = 8000.0,
    inside: bool = True,
    sample_rate: Count = 16000,
    steps: Count = 40,
    step: Positive = 2.5,
    loss: Literal["cross_entropy", "margin", "dlr"] = "cross_entropy",
    early_exit: bool = True,
) -> Tensor:
    """PGD that perturbs a waveform only inside, or only outside, a band of frequencies.

    Args:
        low_hz: lower edge of the band, Hz.
        high_hz: upper edge, Hz.
        inside: perturb inside the band; otherwise everywhere else.
        sample_rate: of the clips, Hz.
        steps: gradient steps.
        step: step size in units of eps / steps.
        loss: what the steps climb.
        early_exit: an example stops at its first success; otherwise its loss is raised to the end.
    """
    if x.dim() != 2:
        raise ValueError(f"band_limited needs a waveform, [batch, time]; this input has {x.dim()} axes")
    frequency = torch.fft.rfftfreq(x.shape[1], 1 / sample_rate, device=x.device)
    passed = ((frequency >= low_hz) & (frequency <= high_hz)) == inside
    if not bool(passed.any()):
        raise ValueError(f"no frequency of these clips is left to perturb ({low_hz:g} to {high_hz:g} Hz)")

    def band(delta: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(delta) * passed, n=delta.shape[1])

    batch, eps, delta = ActiveBatch(model, x, y, threat, rng, targeted), finite_budgets(threat, x), torch.zeros_like(x)
    for iteration in range(steps + 1):
        grad = batch.look(batch.threat.project(batch.x + delta, batch.x), loss, first=early_exit)
        if early_exit and iteration % every(x) == 0:
            eps, delta, grad = batch.keep(~batch.best.success, eps, delta, grad)
            if not len(batch):
                break
        # The filtered sign is the steepest direction that stays in the band, up to its size.
        direction = band(batch.threat.ascent(band(batch.threat.masked(grad))))
        direction = direction / column(norm_of(direction, threat.norm), x).clamp_min(1e-30)
        delta = delta + direction * column(eps * (step / steps), x)
        delta = delta * column((eps / norm_of(delta, threat.norm).clamp_min(1e-30)).clamp(max=1), x)
    return batch.finish()
