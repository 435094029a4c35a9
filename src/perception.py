"""Perceptual distance between an adversarial and a clean waveform: level ratios, spectral distance, PESQ, STOI, and the
psychoacoustic masking threshold of Qin et al. 2019 ("Imperceptible, robust, and targeted adversarial examples").

Every measure takes x and x_adv, [batch, time] in [-1, 1], and returns [batch]."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from pesq import PesqError
from pesq import pesq as itu_pesq
from pystoi import stoi as short_time_intelligibility
from torch import Tensor
from torch.nn import functional as F

QUANTUM = 1 / 32768
"""Quantization step of a 16-bit wav."""


def snr(x: Tensor, x_adv: Tensor) -> Tensor:
    """Signal-to-noise ratio, 10 log10(sum x^2 / sum (x_adv - x)^2), dB; inf where the two are equal."""
    return _ratio_db(x.square().sum(1), (x_adv - x).square().sum(1))


def db_x(x: Tensor, x_adv: Tensor) -> Tensor:
    """Peak of the perturbation relative to the peak of x, dB (Carlini and Wagner 2018); -inf without perturbation."""
    return -_ratio_db(x.abs().amax(1).square(), (x_adv - x).abs().amax(1).square())


def si_sdr(x: Tensor, x_adv: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio (Le Roux et al. 2019), dB; inf where x_adv is a scaled x."""
    x, x_adv = x - x.mean(1, keepdim=True), x_adv - x_adv.mean(1, keepdim=True)
    scale = (x * x_adv).sum(1, keepdim=True) / x.square().sum(1, keepdim=True).clamp_min(1e-30)
    return _ratio_db((scale * x).square().sum(1), (x_adv - scale * x).square().sum(1))


def seg_snr(x: Tensor, x_adv: Tensor, sample_rate: int) -> Tensor:
    """Segmental SNR, dB: the mean over frames of 30 ms (Hann, 75 % overlap) of each frame's SNR within [-10, 35].

    Frames of x more than 40 dB below its loudest frame are silence and are skipped; NaN where all of x is silent."""
    length = round(0.03 * sample_rate)
    signal, noise = (_frames(y, length, length // 4).square().sum(-1) for y in (x, x_adv - x))
    audible = (signal > 1e-4 * signal.amax(1, keepdim=True)) & (signal > 0)
    level = _ratio_db(signal, noise).clamp(-10, 35)
    return torch.where(audible, level, 0).sum(1) / audible.sum(1)


def lsd(x: Tensor, x_adv: Tensor, sample_rate: int) -> Tensor:
    """Log-spectral distance, dB: the mean over frames of the root mean square over bins of the difference of the two
    log power spectra (Hann of about 32 ms, 75 % overlap). Bins below the rounding noise of 16 bits are raised to it.
    0 for equal signals, 20 for a gain of 10."""
    length = 2 ** round(math.log2(0.032 * sample_rate))
    floor = QUANTUM**2 / 12 * float(torch.hann_window(length).square().sum())
    clean, adversarial = (
        10 * torch.fft.rfft(_frames(y, length, length // 4)).abs().square().clamp_min(floor).log10() for y in (x, x_adv)
    )
    return (clean - adversarial).square().mean(-1).sqrt().mean(-1)


def pesq(x: Tensor, x_adv: Tensor, sample_rate: int) -> Tensor:
    """Perceptual evaluation of speech quality, MOS-LQO: wide band (P.862.2) at 16 kHz, narrow band at 8 kHz.

    NaN at other rates, for clips shorter than 0.25 s, and where PESQ detects no utterance."""
    mode = {16000: "wb", 8000: "nb"}.get(sample_rate)
    if mode is None or x.shape[1] < sample_rate / 4:
        return torch.full((len(x),), math.nan)
    return torch.tensor([_pesq(a, b, sample_rate, mode) for a, b in zip(_arrays(x), _arrays(x_adv), strict=True)])


def stoi(x: Tensor, x_adv: Tensor, sample_rate: int) -> Tensor:
    """Short-time objective intelligibility (Taal et al. 2011), about 0 to 1. NaN below about 0.4 s of speech."""
    return torch.tensor([_stoi(a, b, sample_rate) for a, b in zip(_arrays(x), _arrays(x_adv), strict=True)])


def measure(x: Tensor, x_adv: Tensor, sample_rate: int, speech: bool) -> dict[str, Tensor]:
    """snr, db_x, seg_snr, lsd, pesq and stoi, each [batch]; pesq and stoi are NaN unless `speech`."""
    nan = torch.full((len(x),), math.nan)
    return {
        "snr": snr(x, x_adv),
        "db_x": db_x(x, x_adv),
        "seg_snr": seg_snr(x, x_adv, sample_rate),
        "lsd": lsd(x, x_adv, sample_rate),
        "pesq": pesq(x, x_adv, sample_rate) if speech else nan,
        "stoi": stoi(x, x_adv, sample_rate) if speech else nan,
    }


FULL_SCALE_DB = 96.0
"""Level of the loudest bin of a clip on the psychoacoustic scale, dB."""


def bark(frequency: Tensor) -> Tensor:
    """Hz to Bark."""
    return 13 * torch.atan(0.00076 * frequency) + 3.5 * torch.atan((frequency / 7500) ** 2)


def threshold_in_quiet(frequency: Tensor, lowest: float = 101.5) -> Tensor:
    """Hz to the level just heard in silence, dB (Terhardt 1979). Below `lowest` Hz (1 Bark), where the formula grows
    without limit, it is constant."""
    k = frequency.clamp_min(lowest) / 1000
    return 3.64 * k**-0.8 - 6.5 * torch.exp(-0.6 * (k - 3.3) ** 2) + 0.001 * k**4 - 12


def power_level(x: Tensor, n_fft: int = 2048) -> Tensor:
    """10 log10 |sqrt(8/3) STFT / n_fft|^2 (Hann, 75 % overlap), [batch, time] -> [batch, frames, bins], dB."""
    spectrum = torch.fft.rfft(_frames(x, n_fft, n_fft // 4)) * (math.sqrt(8 / 3) / n_fft)
    return 10 * spectrum.abs().square().clamp_min(1e-20).log10()


def masking_threshold(x: Tensor, sample_rate: int, n_fft: int = 2048) -> tuple[Tensor, Tensor]:
    """Level below which a perturbation is masked by x [batch, time] and inaudible.

    Returns:
        threshold [batch, frames, bins], dB, and shift [batch], dB: a perturbation's `power_level` plus the shift is on
        the scale of the threshold (the loudest bin of x is at 96 dB there).
    """
    level = power_level(x, n_fft)
    shift = FULL_SCALE_DB - level.amax((1, 2))
    level = level + shift[:, None, None]
    frequency = torch.arange(n_fft // 2 + 1, dtype=x.dtype, device=x.device) * (sample_rate / n_fft)
    position, quiet = bark(frequency), threshold_in_quiet(frequency)

    # Maskers: local maxima above the threshold in quiet, with the power of both neighbors added.
    inner = level[..., 1:-1]
    peak = (inner > level[..., :-2]) & (inner > level[..., 2:])
    power = 10 * (10 ** (level / 10)).unfold(-1, 3, 1).sum(-1).log10()
    power = torch.where(peak & (inner > quiet[1:-1]), power, -math.inf).flatten(0, 1)
    row, bin_ = _strongest(power, position[1:-1]).nonzero(as_tuple=True)

    # Each masker raises the threshold around it by two slopes on the Bark scale; the powers add up.
    masker, masker_position = power[row, bin_, None], position[1:-1][bin_, None]
    distance = position - masker_position
    upper = -27 + 0.37 * (masker - 40).clamp_min(0)
    spread = torch.where(distance > 0, upper * distance, 27 * distance)
    raised = 10 ** ((masker - 6.025 - 0.275 * masker_position + spread) / 10)
    total = (10 ** (quiet / 10)).repeat(len(power), 1).index_add_(0, row, raised)
    return 10 * total.log10().view_as(level), shift


def _strongest(power: Tensor, position: Tensor) -> Tensor:
    """The maskers of power [rows, bins] (-inf: no masker) that are the strongest within 0.5 Bark, [rows, bins] bool."""
    kept = power > -math.inf
    for offset in range(1, len(position)):
        neighbors = position[offset:] - position[:-offset] < 0.5
        if not bool(neighbors.any()):
            break
        low, high = power[:, :-offset], power[:, offset:]
        kept[:, :-offset] &= ~(neighbors & (high > low))
        kept[:, offset:] &= ~(neighbors & (low >= high))
    return kept


def _ratio_db(signal: Tensor, noise: Tensor) -> Tensor:
    """10 log10(signal / noise): inf without noise, -inf without signal."""
    return torch.where(noise > 0, 10 * (signal / noise).log10(), math.inf)


def _frames(x: Tensor, length: int, hop: int) -> Tensor:
    """Hann-windowed frames [batch, frames, length]; a clip shorter than one frame is padded to it."""
    x = F.pad(x, (0, max(0, length - x.shape[1])))
    return x.unfold(1, length, hop) * torch.hann_window(length, dtype=x.dtype, device=x.device)


def _arrays(x: Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()


def _pesq(x: np.ndarray, x_adv: np.ndarray, sample_rate: int, mode: str) -> float:
    if not (x.any() and x_adv.any()):  # the library divides by the peak
        return math.nan
    try:
        return float(itu_pesq(sample_rate, x, x_adv, mode))
    except (PesqError, ValueError, ZeroDivisionError):
        return math.nan


def _stoi(x: np.ndarray, x_adv: np.ndarray, sample_rate: int) -> float:
    if not x.any():
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            value = float(short_time_intelligibility(x, x_adv, sample_rate))
        except (RuntimeWarning, ValueError, IndexError):
            return math.nan
    return value if value != 1e-5 else math.nan
