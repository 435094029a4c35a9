"""Over-the-air attacks: PGD with expectation over transformation (Athalye et al. 2018; for playback Qin et al. 2019 and
Yakura and Sakuma 2019) over time offsets, room impulse responses, the band of a loudspeaker and the level.

Room impulse responses are synthetic: a direct path followed by noise that decays by 60 dB within a random reverberation
time. Each simulated playback is one linear filter per clip, applied by FFT."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from src.attacks.core import Best, finite_budgets, gradient
from src.attacks.model import Model, succeeds
from src.attacks.registration import attack
from src.losses import LOSSES, LossName, fooled
from src.random_streams import RandomStreams
from src.registry import Count, NonNegative, Positive
from src.threat import ThreatModel, column

NORMS = ("linf", "l2")


def playback(
    x: Tensor,
    rng: RandomStreams,
    *,
    sample_rate: int,
    shift_s: float,
    reverberation_s: float,
    low_hz: float,
    high_hz: float,
    level_db: float,
) -> Tensor:
    """Frequency response of one random playback per example, for FFTs of `fft_length(x, ...)` samples.

    Args:
        x: clips, [batch, time].
        rng: one stream per example.
        sample_rate: Hz.
        shift_s: largest offset in either direction, seconds.
        reverberation_s: longest time in which the room's noise decays by 60 dB; 0 for no room.
        low_hz: lower edge of the loudspeaker's band, Hz; 0 for none.
        high_hz: upper edge, Hz; 0 for none.
        level_db: largest change of level in either direction, dB.

    Returns:
        response [batch, bins], complex.
    """
    n = fft_length(x, sample_rate, shift_s, reverberation_s)
    random_numbers = rng.uniform(x.new_empty(len(x), 3))
    frequency = torch.fft.rfftfreq(n, 1 / sample_rate, device=x.device, dtype=x.dtype)
    tail = round(reverberation_s * sample_rate)
    response = torch.complex(torch.ones_like(frequency), torch.zeros_like(frequency)).expand(len(x), -1)
    if tail:
        seconds = torch.arange(1, tail + 1, device=x.device) / sample_rate
        # From a tenth of the longest time to all of it; the tail carries as much energy as the direct path at most.
        decay_seconds = reverberation_s * (0.1 + 0.9 * random_numbers[:, :1])
        noise = rng.normal(x.new_empty(len(x), tail)) * torch.exp(-math.log(1000) * seconds / decay_seconds)
        noise = noise / noise.norm(dim=1, keepdim=True).clamp_min(1e-30) * rng.uniform(x.new_empty(len(x), 1))
        response = response + torch.fft.rfft(torch.cat([torch.zeros_like(noise[:, :1]), noise], 1), n=n)
    if low_hz:
        response = response * (frequency / low_hz).clamp(max=1) ** 2
    if high_hz:
        response = response * (high_hz / frequency.clamp_min(1e-9)).clamp(max=1) ** 2
    offset = ((2 * random_numbers[:, 1:2] - 1) * shift_s * sample_rate).round().long()
    # Full turns of the phase are removed in integer arithmetic: float32 would round thousands of them.
    turns = (offset * torch.arange(len(frequency), device=x.device)) % n
    response = response * torch.exp(-2j * math.pi / n * turns)
    return response * 10 ** ((2 * random_numbers[:, 2:] - 1) * level_db / 20)


def fft_length(x: Tensor, sample_rate: int, shift_s: float, reverberation_s: float) -> int:
    """FFT length that avoids circular wrap-around into the clip."""
    return x.shape[1] + math.ceil((shift_s + reverberation_s) * sample_rate) + 1


def play(x: Tensor, response: Tensor, n: int) -> Tensor:
    """Filter x [batch, time] by `response` [batch, bins]; the result has the length of x, clipped to [-1, 1]."""
    return torch.fft.irfft(torch.fft.rfft(x, n=n) * response, n=n)[:, : x.shape[1]].clamp(-1, 1)


@attack("over_the_air", kind="budget", norms=NORMS, access="gradients", stages="waveform", needs_sample_rate=True)
def over_the_air(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    sample_rate: int,
    steps: Count = 40,
    step: Positive = 2.5,
    draws: Count = 4,
    shift_s: NonNegative = 0.1,
    reverberation_s: NonNegative = 0.3,
    low_hz: NonNegative = 150.0,
    high_hz: NonNegative = 6000.0,
    level_db: NonNegative = 6.0,
    loss: LossName = "cross_entropy",
) -> Tensor:
    """PGD on the mean loss over random playbacks: offset, room, loudspeaker and level.

    Every step uses the clip itself and `draws` playbacks. There is no early exit: one success says little about the
    next room. Of the iterates that fool the model directly, the one that fools the largest share of the playbacks of
    its step is returned.

    Args:
        steps: gradient steps.
        step: step size in units of eps / steps.
        draws: playbacks per step, redrawn at every step.
        shift_s: largest offset in either direction, seconds.
        reverberation_s: longest reverberation time of a room, seconds; 0 for no room.
        low_hz: lower edge of the loudspeaker's band, Hz; 0 for none.
        high_hz: upper edge, Hz; 0 for none.
        level_db: largest change of level in either direction, dB.
        loss: objective that the steps maximize.
    """
    n = fft_length(x, sample_rate, shift_s, reverberation_s)
    size = column(finite_budgets(threat, x) * (step / steps), x)
    best, x_adv = Best.of(x), x
    for _ in range(steps + 1):
        total, value, logits = gradient(model, x_adv, lambda logits: LOSSES[loss](logits, y, targeted))
        fools_directly, share = succeeds(model, x_adv, logits, y, targeted), torch.zeros_like(value)
        for _ in range(draws):
            response = playback(
                x, rng, sample_rate=sample_rate, shift_s=shift_s, reverberation_s=reverberation_s,
                low_hz=low_hz, high_hz=high_hz, level_db=level_db,
            )  # fmt: skip
            grad, playback_loss, logits = gradient(
                lambda x_adv, response=response: model(play(x_adv, response, n)),  # type: ignore[misc]
                x_adv,
                lambda logits: LOSSES[loss](logits, y, targeted),
            )
            total += grad
            value = value + playback_loss
            share += fooled(logits, y, targeted) / draws
        # The share ranks first; the loss, scaled to less than one draw, breaks ties.
        rank = share + torch.sigmoid(value / (draws + 1)) / (draws + 1)
        best.update(x_adv, rank, fools_directly, first=False)
        x_adv = threat.project(x_adv + size * threat.ascent(total), x)
    return best.x


@attack("time_shift", kind="budget", norms=NORMS, access="gradients", stages="waveform", needs_sample_rate=True)
def time_shift(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    sample_rate: int,
    steps: Count = 40,
    step: Positive = 2.5,
    draws: Count = 4,
    shift_s: NonNegative = 0.1,
    loss: LossName = "cross_entropy",
) -> Tensor:
    """PGD on the mean loss over random time offsets.

    Args:
        steps: gradient steps.
        step: step size in units of eps / steps.
        draws: offsets per step, redrawn at every step.
        shift_s: largest offset in either direction, seconds.
        loss: objective that the steps maximize.
    """
    return over_the_air(
        model, x, y, threat, rng=rng, targeted=targeted, sample_rate=sample_rate, steps=steps, step=step,
        draws=draws, shift_s=shift_s, reverberation_s=0.0, low_hz=0.0, high_hz=0.0, level_db=0.0, loss=loss,
    )  # fmt: skip
