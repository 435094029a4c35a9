"""The front ends of speaker recognizers by name. Their cepstra go through the representations raw, delta, cmvn and
final, behind each of which a defense can stand."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt, Le

from src.registry import FRONTENDS, Count, Natural, NonNegative, Positive
from src.stages.cepstral_mean import CepstralMean
from src.stages.deltas import Deltas
from src.stages.front_ends import Normalize, check, mel_stages, normalization
from src.stages.log_mel import Decibel, Log
from src.stages.mfcc import Dct
from src.stages.voiced import Voiced
from src.victims.stage import Stage

Share = Annotated[float, Gt(0), Le(1)]


@FRONTENDS.register("audionet", check_options=check)
def audionet(
    *,
    sample_rate: int,
    n_samples: int,
    pre_emphasis: NonNegative = 0.97,
    n_fft: Count = 1024,
    win_length: Count = 800,
    hop_length: Count = 160,
    n_mels: Count = 32,
    f_min: NonNegative = 0.0,
    f_max: NonNegative = 0.0,
    floor: Positive = 1e-10,
    normalize: Normalize = "none",
) -> list[Stage]:
    """Decibels of a mel spectrogram with long windows, the input of AudioNet.

    Args:
        pre_emphasis: coefficient of the high-pass before the transform; 0 leaves it out.
        n_fft: DFT length, samples.
        win_length: window length, samples.
        hop_length: samples between frames.
        n_mels: number of mel bands.
        f_min: lowest edge of the bands, Hz.
        f_max: highest edge, Hz; 0 for half the sample rate.
        floor: smallest power.
        normalize: none as published, or dataset, dataset_band, clip_mean, band_mean, clip, band or frame.
    """
    stages = mel_stages(sample_rate, pre_emphasis, n_fft, win_length, hop_length, n_mels, f_min, f_max, False)
    return [*stages, Decibel(floor, top_db=0.0), *normalization(normalize, n_mels)]


def _cepstra(mel: list[Stage], offset: float, n_mfcc: int, n_mels: int) -> list[Stage]:
    """The MFCCs of a speaker recognizer, whose representation is called raw."""
    return [*mel, Log(offset), Dct(n_mfcc, n_mels, "raw")]


def _selected(share: float) -> list[Stage]:
    return [Voiced(share)] if share < 1 else []


@FRONTENDS.register("xvector", check_options=check)
def xvector(
    *,
    sample_rate: int,
    n_samples: int,
    n_mfcc: Count = 30,
    n_fft: Count = 512,
    win_length: Count = 400,
    hop_length: Count = 160,
    n_mels: Count = 30,
    f_min: NonNegative = 20.0,
    f_max: NonNegative = 0.0,
    offset: Positive = 1e-6,
    cmvn: Natural = 300,
    voiced: Share = 1.0,
) -> list[Stage]:
    """Mean-normalized cepstra, the input of x-vector networks. Representations: raw (the MFCCs), cmvn and, where
    `voiced` is below 1, final.

    Args:
        n_mfcc: number of coefficients.
        n_fft: DFT length, samples.
        win_length: window length, samples.
        hop_length: samples between frames.
        n_mels: number of mel bands.
        f_min: lowest edge of the bands, Hz.
        f_max: highest edge, Hz; 0 for half the sample rate.
        offset: added before the logarithm.
        cmvn: frames of the sliding window whose mean is subtracted; 0 for the whole clip.
        voiced: share of the frames that is kept, the loudest; 1 keeps all.
    """
    mel = mel_stages(sample_rate, 0.0, n_fft, win_length, hop_length, n_mels, f_min, f_max, False)
    return [*_cepstra(mel, offset, n_mfcc, n_mels), CepstralMean(cmvn), *_selected(voiced)]


@FRONTENDS.register("ivector", check_options=check)
def ivector(
    *,
    sample_rate: int,
    n_samples: int,
    n_mfcc: Count = 24,
    n_fft: Count = 512,
    win_length: Count = 400,
    hop_length: Count = 160,
    n_mels: Count = 30,
    f_min: NonNegative = 20.0,
    f_max: NonNegative = 0.0,
    offset: Positive = 1e-6,
    deltas: Count = 3,
    cmvn: Natural = 300,
    voiced: Share = 0.7,
) -> list[Stage]:
    """Mean-normalized cepstra with their deltas and the deltas of those, of the loudest frames: the input of i-vector
    systems. Representations: raw (the MFCCs), delta, cmvn and, where `voiced` is below 1, final.

    Args:
        n_mfcc: number of coefficients, a third of that of the features.
        n_fft: DFT length, samples.
        win_length: window length, samples.
        hop_length: samples between frames.
        n_mels: number of mel bands.
        f_min: lowest edge of the bands, Hz.
        f_max: highest edge, Hz; 0 for half the sample rate.
        offset: added before the logarithm.
        deltas: frames on either side of the regression.
        cmvn: frames of the sliding window whose mean is subtracted; 0 for the whole clip.
        voiced: share of the frames that is kept, the loudest; 1 keeps all.
    """
    mel = mel_stages(sample_rate, 0.0, n_fft, win_length, hop_length, n_mels, f_min, f_max, False)
    return [*_cepstra(mel, offset, n_mfcc, n_mels), Deltas(deltas), CepstralMean(cmvn), *_selected(voiced)]
