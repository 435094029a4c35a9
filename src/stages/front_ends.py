"""The front ends by name: each builds the list of stages from waveform to a classifier's features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from src.registry import FRONTENDS, Count, NonNegative, Positive
from src.stages.level import Level
from src.stages.log_mel import Decibel, Log
from src.stages.magnitude import Magnitude
from src.stages.mel import Mel
from src.stages.mfcc import Dct
from src.stages.normalize import ClipNormalize, DatasetNormalize, Scale
from src.stages.pad import Pad
from src.stages.pre_emphasis import PreEmphasis
from src.victims.stage import Stage

Normalize = Literal["none", "dataset", "dataset_band", "clip_mean", "band_mean", "clip", "band", "frame"]


def check(options: Mapping[str, Any]) -> None:
    n_fft, hop_length = options["n_fft"], options["hop_length"]
    win_length = options.get("win_length", n_fft)
    if not hop_length <= win_length <= n_fft:
        raise ValueError(f"need hop_length <= win_length <= n_fft, got {hop_length}, {win_length}, {n_fft}")
    f_min, f_max = options.get("f_min", 0), options.get("f_max", 0)
    if f_max and f_min >= f_max:
        raise ValueError(f"need f_min < f_max, got {f_min:g} and {f_max:g}")
    if options.get("n_mfcc", 0) > options["n_mels"]:
        raise ValueError(f"n_mfcc ({options['n_mfcc']}) must not exceed n_mels ({options['n_mels']})")


def normalization(kind: str, n_bands: int) -> list[Stage]:
    if kind == "none":
        return []
    if kind == "dataset":
        return [DatasetNormalize()]
    if kind == "dataset_band":
        return [DatasetNormalize(n_bands)]
    if kind in ("clip_mean", "band_mean"):
        return [ClipNormalize(kind.removesuffix("_mean"), scale=False)]
    if kind in ("clip", "band", "frame"):
        return [ClipNormalize(kind)]
    raise ValueError(
        f"unknown normalize '{kind}' (choices: none, dataset, dataset_band, clip_mean, band_mean, clip, band, frame)"
    )


def mel_stages(
    sample_rate: int,
    pre_emphasis: float,
    n_fft: int,
    win_length: int,
    hop_length: int,
    n_mels: int,
    f_min: float,
    f_max: float,
    htk: bool,
    window: str = "hann",
    center: bool = True,
    power: float = 2.0,
) -> list[Stage]:
    stages: list[Stage] = [PreEmphasis(pre_emphasis)] if pre_emphasis else []
    stages.append(Magnitude(n_fft, win_length, hop_length, window, center))
    stages.append(Mel(sample_rate, n_fft, n_mels, f_min, f_max, htk, power))
    return stages


@FRONTENDS.register("log_mel", check_options=check)
def log_mel(
    *,
    sample_rate: int,
    n_samples: int,
    pre_emphasis: NonNegative = 0.0,
    n_fft: Count = 512,
    win_length: Count = 480,
    hop_length: Count = 160,
    n_mels: Count = 40,
    f_min: NonNegative = 0.0,
    f_max: NonNegative = 0.0,
    htk: bool = False,
    log: Literal["natural", "db", "db_max"] = "natural",
    offset: Positive = 1e-6,
    normalize: Normalize = "none",
) -> list[Stage]:
    """Logarithm of a power mel spectrogram, the usual input of keyword spotters.

    Args:
        pre_emphasis: coefficient of the high-pass before the transform; 0 leaves it out.
        n_fft: DFT length, samples.
        win_length: window length, samples.
        hop_length: samples between frames.
        n_mels: number of mel bands.
        f_min: lowest edge of the bands, Hz.
        f_max: highest edge, Hz; 0 for half the sample rate.
        htk: HTK mel scale instead of Slaney's.
        log: natural (log(x + offset)), db (10 log10) or db_max (dB below the clip's maximum).
        offset: added before the logarithm, or the smallest power of the dB scales.
        normalize: none, dataset, dataset_band, clip_mean, band_mean, clip, band or frame.
    """
    stages = mel_stages(sample_rate, pre_emphasis, n_fft, win_length, hop_length, n_mels, f_min, f_max, htk)
    if log not in ("natural", "db", "db_max"):
        raise ValueError(f"unknown log '{log}' (choices: natural, db, db_max)")
    stages.append(Log(offset) if log == "natural" else Decibel(offset, relative=log == "db_max"))
    return stages + normalization(normalize, n_mels)


@FRONTENDS.register("linear_mel", check_options=check)
def linear_mel(
    *,
    sample_rate: int,
    n_samples: int,
    pad_seconds: NonNegative = 2.0,
    n_fft: Count = 2048,
    hop_length: Count = 100,
    n_mels: Count = 128,
    divisor: Positive = 3569.0,
    rms: NonNegative = 0.0,
    normalize: Normalize = "none",
) -> list[Stage]:
    """Power mel spectrogram of the zero-padded clip, without logarithm: the input of the keyword CNN of Pintor's study.

    Args:
        pad_seconds: clips are padded with zeros to this length; 0 does not pad.
        n_fft: DFT and window length, samples.
        hop_length: samples between frames.
        n_mels: number of mel bands.
        divisor: the features are divided by it.
        rms: clips are scaled to this root mean square first; 0 leaves their level unchanged.
        normalize: none as published, or dataset, dataset_band, clip_mean, band_mean, clip, band or frame.
    """
    stages: list[Stage] = [Level(rms)] if rms else []
    if round(pad_seconds * sample_rate) > n_samples:
        stages.append(Pad(round(pad_seconds * sample_rate)))
    stages += mel_stages(sample_rate, 0.0, n_fft, n_fft, hop_length, n_mels, 0.0, 0.0, False)
    return [*stages, Scale(divisor, (0.0, float("inf"))), *normalization(normalize, n_mels)]


@FRONTENDS.register("mfcc", check_options=check)
def mfcc(
    *,
    sample_rate: int,
    n_samples: int,
    n_mfcc: Count = 40,
    n_fft: Count = 512,
    win_length: Count = 480,
    hop_length: Count = 160,
    n_mels: Count = 40,
    f_min: NonNegative = 20.0,
    f_max: NonNegative = 4000.0,
    offset: Positive = 1e-6,
    normalize: Normalize = "dataset_band",
) -> list[Stage]:
    """Mel-frequency cepstral coefficients, the input of TC-ResNet.

    Args:
        n_mfcc: number of coefficients.
        n_fft: DFT length, samples.
        win_length: window length, samples.
        hop_length: samples between frames.
        n_mels: number of mel bands.
        f_min: lowest edge of the bands, Hz.
        f_max: highest edge, Hz; 0 for half the sample rate.
        offset: added before the logarithm.
        normalize: none, dataset, dataset_band, clip_mean, band_mean, clip, band or frame.
    """
    stages = mel_stages(sample_rate, 0.0, n_fft, win_length, hop_length, n_mels, f_min, f_max, False)
    return [*stages, Log(offset), Dct(n_mfcc, n_mels), *normalization(normalize, n_mfcc)]


@FRONTENDS.register("filterbank", check_options=check)
def filterbank(
    *,
    sample_rate: int,
    n_samples: int,
    pre_emphasis: NonNegative = 0.97,
    n_fft: Count = 512,
    win_length: Count = 400,
    hop_length: Count = 160,
    n_mels: Count = 64,
) -> list[Stage]:
    """Deep Speaker's features: power filter bank without logarithm, each frame normalized.

    Args:
        pre_emphasis: coefficient of the high-pass before the transform; 0 leaves it out.
        n_fft: DFT length, samples.
        win_length: rectangular window length, samples.
        hop_length: samples between frames.
        n_mels: number of mel bands.
    """
    stages = mel_stages(
        sample_rate, pre_emphasis, n_fft, win_length, hop_length, n_mels, 0.0, 0.0, True, "rectangular", center=False
    )
    return [*stages, ClipNormalize("frame")]
