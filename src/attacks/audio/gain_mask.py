"""PGD on time-frequency gains: x_adv = iSTFT((1 + m) STFT(x)). The gradient is taken through the inverse STFT and the
model's front end, so the result is a waveform and not an inconsistent spectrogram, and silence stays silent.

The effect of a gain on the waveform grows with the magnitude of its bin, so the gradient is divided by the power of the
bin: this is the steepest direction per change of the waveform, and needs a small fraction of the change that equal
steps of all gains need."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.core import check_interval, finite_budgets
from src.attacks.model import Model
from src.attacks.registration import attack
from src.losses import LossName
from src.random_streams import RandomStreams
from src.registry import Count, Positive
from src.threat import ThreatModel, column, norm_of

FLOOR = 1e-4
"""Lower limit of the magnitudes that the gradient is divided by, as a share of the clip's largest magnitude."""


@attack("gain_mask", kind="budget", norms=("l2", "linf"), access="gradients", stages="waveform", limited=True)
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

    The waveform is linear in the gains, so its budget is enforced by scaling them.

    Args:
        n_fft: DFT length, samples.
        hop_length: samples between frames.
        max_gain_db: largest amplification and largest attenuation of a bin, dB.
        steps: gradient steps.
        step: step size in units of eps / steps.
        loss: objective that the steps maximize.
        early_exit: an example stops at its first success; otherwise its loss is maximized to the end.
    """
    window = torch.hann_window(n_fft, dtype=x.dtype, device=x.device)
    length = x.shape[1]
    spectrum = torch.stft(x, n_fft, hop_length, window=window, pad_mode="constant", return_complex=True)
    low, high = 10 ** (-max_gain_db / 20) - 1, 10 ** (max_gain_db / 20) - 1
    batch, eps = ActiveBatch(model, x, y, threat, rng, targeted), finite_budgets(threat, x)
    gains = torch.zeros_like(spectrum.real)
    magnitude = spectrum.abs()
    power = magnitude.maximum(FLOOR * column(magnitude.flatten(1).amax(1), magnitude)).clamp_min(1e-12).square()

    def perturbation(gains: Tensor, spectrum: Tensor) -> Tensor:
        return torch.istft(gains * spectrum, n_fft, hop_length, window=window, length=length)

    # Limited to the largest change that the gains allow; otherwise the first step saturates all of them.
    step_size = eps.minimum(high * norm_of(x, threat.norm)) * (step / steps)
    for iteration in range(steps + 1):
        grad = batch.gradient_at(
            batch.threat.project(batch.x + perturbation(gains, spectrum), batch.x), loss, first=early_exit
        )
        if early_exit and iteration % check_interval(x) == 0:
            eps, step_size, gains, grad, spectrum, power = batch.keep(
                ~batch.best.success, eps, step_size, gains, grad, spectrum, power
            )
            if not len(batch):
                break
        leaf = gains.detach().requires_grad_(True)
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(perturbation(leaf, spectrum), leaf, batch.threat.masked(grad))
        direction = grad / power
        change_norm = norm_of(batch.threat.masked(perturbation(direction, spectrum)), threat.norm).clamp_min(1e-30)
        gains = (gains + direction * column(step_size / change_norm, direction)).clamp(low, high)
        size = norm_of(batch.threat.masked(perturbation(gains, spectrum)), threat.norm)
        gains = gains * column((eps / size.clamp_min(1e-30)).clamp(max=1), gains)
    return batch.finish()
