"""Augmentations do what they say, nothing else, and the same under the same seed."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.training import augment

N = 4000


def draw(seed: int = 0) -> torch.Generator:
    generator = torch.Generator()
    generator.manual_seed(seed)
    return generator


def sound(batch: int = 6) -> torch.Tensor:
    return torch.randn(batch, N, generator=draw(9)) * 0.1


ON_WAVEFORM = {
    "shift": partial(augment.warp, shift=300, speed=0.0),
    "speed": partial(augment.warp, shift=0, speed=0.2),
    "level": partial(augment.level, limit=6),
    "equalize": partial(augment.equalize, deviation=3),
    "reverberate": partial(augment.reverberate, probability=1.0, sample_rate=16000),
    "noise": partial(augment.add_noise, noise=None, probability=1.0, snr=(5, 10)),
}
OFF = [
    partial(augment.warp, shift=0, speed=0.0),
    partial(augment.level, limit=0),
    partial(augment.equalize, deviation=0),
    partial(augment.reverberate, probability=0.0, sample_rate=16000),
    partial(augment.add_noise, noise=None, probability=0.0, snr=(5, 10)),
]


@pytest.mark.parametrize("name", ON_WAVEFORM)
def test_seeded_finite_and_different_by_clip(name: str) -> None:
    x = sound(1).expand(3, -1).clone()
    out = ON_WAVEFORM[name](x, draw(1))
    assert out.shape == x.shape
    assert out.isfinite().all()
    assert torch.equal(out, ON_WAVEFORM[name](x, draw(1)))
    assert not torch.equal(out, ON_WAVEFORM[name](x, draw(2)))
    assert not torch.equal(out[0], out[1])


@pytest.mark.parametrize("off", OFF)
def test_zero_changes_nothing(off: partial[torch.Tensor]) -> None:
    x = sound()
    assert torch.equal(off(x, draw()), x)


@pytest.mark.parametrize("name", ON_WAVEFORM)
def test_silence_stays_silent(name: str) -> None:
    """Noise is scaled by the clip's power: digital silence gets none."""
    assert not ON_WAVEFORM[name](torch.zeros(3, N), draw()).any()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 500), st.integers(0, 10**6))
def test_shift_is_a_whole_number_of_samples_within_the_limit(limit: int, seed: int) -> None:
    x = torch.arange(1.0, N + 1).expand(4, -1)
    out = augment.warp(x, draw(seed), shift=limit, speed=0.0)
    for row in out:
        inside = row.nonzero().flatten()
        moved = row[inside] - 1 - inside
        assert (moved == moved[0]).all()
        assert abs(int(moved[0])) <= limit
        assert len(inside) == N - abs(int(moved[0]))


def test_speed_scales_the_pitch() -> None:
    rate, tone = 16000, 500.0
    t = torch.arange(rate) / rate
    x = torch.sin(2 * torch.pi * tone * t).expand(8, -1)
    out = augment.warp(x, draw(3), shift=0, speed=0.2)
    peaks = torch.fft.rfft(out * torch.hann_window(rate)).abs().argmax(1).float()
    assert (peaks / tone <= torch.e**0.2 + 0.01).all()
    assert (peaks / tone >= torch.e**-0.2 - 0.01).all()
    assert peaks.std() > 10


def test_noise_meets_the_ratio() -> None:
    x = sound(64)
    added = augment.add_noise(x, draw(1), noise=torch.randn(3, 1000), probability=1.0, snr=(7, 12)) - x
    ratio = 10 * (x.square().mean(1) / added.square().mean(1)).log10()
    assert ratio.min() >= 7 - 1e-3
    assert ratio.max() <= 12 + 1e-3
    noisy = augment.add_noise(x, draw(1), noise=None, probability=0.5, snr=(7, 12))
    share = (noisy != x).any(1).float().mean()
    assert 0.3 < share < 0.7


def test_level_is_a_gain_within_the_limit() -> None:
    x = sound(64)
    gain = augment.level(x, draw(), limit=6) / x
    torch.testing.assert_close(gain, gain[:, :1].expand_as(gain), rtol=1e-3, atol=1e-3)
    assert (20 * gain[:, 0].log10()).abs().max() <= 6 + 1e-3


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 3), st.integers(0, 3), st.floats(0, 0.5), st.floats(0, 0.5), st.integers(0, 10**6))
def test_masks_hide_whole_bands_up_to_their_size(
    rows: int, columns: int, row_size: float, column_size: float, seed: int
) -> None:
    x = torch.rand(5, 40, 60, generator=draw(5)) + torch.arange(40.0)[:, None]
    out = augment.mask_spectrogram(
        x, draw(seed), frequency_masks=rows, frequency_size=row_size, time_masks=columns, time_size=column_size
    )
    hidden = out != x
    mean = x.mean((1, 2), keepdim=True).expand_as(x)
    assert torch.equal(out[hidden], mean[hidden])
    whole_rows, whole_columns = hidden.all(2), hidden.all(1)
    assert torch.equal(hidden, whole_rows[:, :, None] | whole_columns[:, None])
    if not whole_columns.all(1).any():
        assert (whole_rows.sum(1) <= rows * (row_size * 40 + 1)).all()
    if not whole_rows.all(1).any():
        assert (whole_columns.sum(1) <= columns * (column_size * 60 + 1)).all()


def test_stretched_features_stay_between_their_neighbours() -> None:
    x = torch.arange(40.0)[None, :, None].expand(32, -1, 7)
    out = augment.stretch_frequency(x, draw(), limit=0.1)
    slope = out[:, 20, 0] / 20
    assert (slope.log().abs() <= 0.1 + 1e-5).all()
    assert slope.std() > 0.01
    assert out.max() <= 39


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 5), st.integers(0, 10**6))
def test_mixup_keeps_probabilities_and_own_label_first(alpha: float, seed: int) -> None:
    x, y = torch.randn(8, 3, generator=draw(2)), torch.eye(8)
    mixed, labels = augment.mixup(x, y, draw(seed), alpha=alpha)
    torch.testing.assert_close(labels.sum(1), torch.ones(8))
    assert (labels.diagonal() >= 0.5 - 1e-6).all()
    torch.testing.assert_close(mixed, labels @ x)  # with one-hot labels they show the shares
