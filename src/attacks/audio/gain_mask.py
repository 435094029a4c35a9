"""An attack by gains on the clean spectrogram: x_adv = iSTFT((1 + m) STFT(x)). The loop goes through the inverse and
the model's own analysis of the result, so what it finds is a real signal, not a spectrogram that no signal has, and
silence stays silent.

A gain weighs as much as its bin is loud, so the gradient is divided by the bin's power: that is the steepest direction
per change of the waveform, and needs a small fraction of the change that equal steps of all gains need."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.core import Model, attack, every, finite_budgets
from src.losses import LossName
from src.random_streams import RandomStreams
from src.registry import Count, Positive
from src.threat import ThreatModel, column, norm_of

FLOOR = 1e-4
"""Bins weaker than this share of a clip's strongest count as that strong."""


@attack("gain_mask", kind="budget", norms=("l2", "linf"), access="gradients", stages="waveform")
def gain_mask(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    n_fft: Count = 512,
    hop_length: Count = 128,
    max_gain_db: Positive = 12.0,
    steps: Count = 40,
    step: Positive = 2.5,
    loss: LossName = "cross_entropy",
    early_exit: bool = True,
) -> Tensor:
    """PGD on the gains of the time-frequency bins of a waveform.

    The result depends on the gains linearly, so a budget of the waveform is met by scaling them.

    Args:
        n_fft: DFT length, samples.
        hop_length: samples between frames.
        max_gain_db: a bin is amplified by at most this, attenuated by at most this.
        steps: gradient steps.
        step: step size in units of eps / steps.
        loss: what the steps climb.
        early_exit: an example stops at its first success; otherwise its loss is raised to the end.
    """
    window = torch.hann_window(n_fft, dtype=x.dtype, device=x.device)
    length = x.shape[1]
    spectrum = torch.stft(x, n_fft, hop_length, window=window, pad_mode="constant", return_complex=True)
    low, high = 10 ** (-max_gain_db / 20) - 1, 10 ** (max_gain_db / 20) - 1
    batch, eps = ActiveBatch(model, x, y, threat, rng, targeted), finite_budgets(threat, x)
    gains = torch.zeros_like(spectrum.real)
    magnitude = spectrum.abs()
    power = magnitude.maximum(FLOOR * column(magnitude.flatten(1).amax(1), magnitude)).clamp_min(1e-12).square()

    def change(gains: Tensor, spectrum: Tensor) -> Tensor:
        return torch.istft(gains * spectrum, n_fft, hop_length, window=window, length=length)

    # No more than the gains can reach at all, or the first step would leave nothing between the extremes.
    pace = eps.minimum(high * norm_of(x, threat.norm)) * (step / steps)
    for iteration in range(steps + 1):
        grad = batch.look(batch.threat.project(batch.x + change(gains, spectrum), batch.x), loss, first=early_exit)
        if early_exit and iteration % every(x) == 0:
            eps, pace, gains, grad, spectrum, power = batch.keep(
                ~batch.best.success, eps, pace, gains, grad, spectrum, power
            )
            if not len(batch):
                break
        leaf = gains.detach().requires_grad_(True)
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(change(leaf, spectrum), leaf, batch.threat.masked(grad))
        move = grad / power
        reach = norm_of(batch.threat.masked(change(move, spectrum)), threat.norm).clamp_min(1e-30)
        gains = (gains + move * column(pace / reach, move)).clamp(low, high)
        size = norm_of(batch.threat.masked(change(gains, spectrum)), threat.norm)
        gains = gains * column((eps / size.clamp_min(1e-30)).clamp(max=1), gains)
    return batch.finish()
