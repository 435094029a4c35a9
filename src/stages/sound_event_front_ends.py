"""The front ends of sound-event networks by name: two mel spectrograms that differ in their hop, and raw audio."""

from __future__ import annotations

from src.registry import FRONTENDS, Count, NonNegative, Positive
from src.stages.front_ends import Normalize, check, mel_stages, normalization
from src.stages.level import Level
from src.stages.log_mel import Decibel
from src.stages.normalize import AudioNormalize
from src.victims.stage import Stage


@FRONTENDS.register("tagging_mel", check_options=check)
def tagging_mel(
    *,
    sample_rate: int,
    n_samples: int,
    n_fft: Count = 1024,
    hop_length: Count = 512,
    n_mels: Count = 64,
    f_max: NonNegative = 16000.0,
    floor: Positive = 1e-10,
    top_db: NonNegative = 0.0,
    normalize: Normalize = "dataset",
) -> list[Stage]:
    """Decibels below the clip's maximum of a mel spectrogram of 32 kHz audio, the input of VGG13, CRNN and GCNN for
    sound events (Iqbal et al. 2018).

    Args:
        n_fft: DFT and window length, samples.
        hop_length: samples between frames.
        n_mels: number of mel bands.
        f_max: highest edge of the bands, Hz; 0, or one above it, for half the sample rate.
        floor: smallest power.
        top_db: range below the maximum, dB; 0 as published does not limit it.
        normalize: dataset as published (z-score: one mean and standard deviation of the training set), none without it,
            or dataset_band, clip_mean, band_mean, clip, band or frame.
    """
    stages = mel_stages(sample_rate, 0.0, n_fft, n_fft, hop_length, n_mels, 0.0, min(f_max, sample_rate / 2), False)
    return [*stages, Decibel(floor, relative=True, top_db=top_db), *normalization(normalize, n_mels)]


@FRONTENDS.register("dense_mel", check_options=check)
def dense_mel(
    *,
    sample_rate: int,
    n_samples: int,
    n_fft: Count = 1024,
    hop_length: Count = 128,
    n_mels: Count = 64,
    f_max: NonNegative = 16000.0,
    floor: Positive = 1e-10,
    top_db: NonNegative = 80.0,
    audio: bool = True,
    normalize: Normalize = "none",
) -> list[Stage]:
    """Decibels below the clip's maximum of a mel spectrogram of 32 kHz audio with short hops, the input of dense_mel
    (Jeong and Lim 2018).

    The published batch norm of the audio is a stage with the statistics of the training set, without a learned scale
    (levels relative to the maximum do not change with it), so that nothing before the classifier is trained.

    Args:
        n_fft: DFT and window length, samples.
        hop_length: samples between frames.
        n_mels: number of mel bands.
        f_max: highest edge of the bands, Hz; 0, or one above it, for half the sample rate.
        floor: smallest power.
        top_db: range below the maximum, dB; 0 does not limit it.
        audio: normalize the audio by the mean and the standard deviation of the training set first.
        normalize: none (each band has a batch norm in the model), dataset, dataset_band, clip_mean, band_mean, clip,
            band or frame.
    """
    stages: list[Stage] = [AudioNormalize()] if audio else []
    stages += mel_stages(sample_rate, 0.0, n_fft, n_fft, hop_length, n_mels, 0.0, min(f_max, sample_rate / 2), False)
    return [*stages, Decibel(floor, relative=True, top_db=top_db), *normalization(normalize, n_mels)]


@FRONTENDS.register("waveform")
def waveform(*, sample_rate: int, n_samples: int, rms: NonNegative = 0.0) -> list[Stage]:
    """Raw audio: the samples themselves are the features.

    Args:
        rms: clips are scaled to this root mean square first; 0 leaves their level unchanged.
    """
    return [Level(rms)] if rms else []
