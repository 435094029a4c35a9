"""Perceptual measures against values known by hand, and the masking threshold of a single tone."""

from __future__ import annotations

import math

import numpy as np
import pystoi
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from src.perception import (
    bark,
    db_x,
    lsd,
    masking_threshold,
    measure,
    pesq,
    power_level,
    seg_snr,
    si_sdr,
    snr,
    stoi,
    threshold_in_quiet,
)

SR = 16000
TIME = torch.arange(SR, dtype=torch.float64) / SR


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def speech(clips) -> Tensor:
    return clips.waveforms()[::4]


@given(st.floats(-40, 80), st.floats(0.01, 1))
def test_snr_of_a_known_mixture(level: float, size: float):
    x, n = size * noise(3, 400), noise(3, 400, seed=1)
    n = n * (x.norm(dim=1) / n.norm(dim=1))[:, None] * 10 ** (-level / 20)
    assert torch.allclose(snr(x, x + n), torch.full((3,), level, dtype=x.dtype), atol=1e-6)


def test_equal_silent_and_louder():
    x = noise(2, 1000)
    assert snr(x, x).tolist() == [math.inf] * 2
    assert db_x(x, x).tolist() == [-math.inf] * 2
    assert snr(0 * x, x).tolist() == [-math.inf] * 2
    assert snr(0 * x, 0 * x).tolist() == [math.inf] * 2
    assert db_x(x, 1.1 * x).tolist() == pytest.approx([-20] * 2)
    assert db_x(x, 0 * x).tolist() == pytest.approx([0] * 2)


def test_si_sdr_ignores_gain_and_offset_and_equals_snr_of_orthogonal_noise():
    x = torch.sin(2 * math.pi * 100 * TIME)[None]
    n = 0.1 * torch.sin(2 * math.pi * 200 * TIME)[None]
    for scale in (0.5, 1, 3):
        assert float(si_sdr(x, scale * (x + n) + 0.1)) == pytest.approx(20, abs=1e-6)
    assert float(si_sdr(x, 2 * x)) > 200


def test_seg_snr_means_frames_and_clamps_each():
    x = noise(1, SR)
    assert float(seg_snr(x, 1.1 * x, SR)) == pytest.approx(20)
    assert float(seg_snr(x, x, SR)) == 35
    assert float(seg_snr(x, x + 1e-4 * x, SR)) == 35
    assert float(seg_snr(x, 101 * x, SR)) == -10
    half = torch.cat([1.1 * x[:, : SR // 2], x[:, SR // 2 :]], 1)  # half of the frames at 20 dB, half at 35
    assert float(seg_snr(x, half, SR)) == pytest.approx(27.5, abs=0.2)
    assert float(seg_snr(x, half, SR)) < float(snr(x, half)) + 5


def test_seg_snr_skips_silence():
    x = noise(1, SR)
    padded = torch.cat([x, 1e-4 * noise(1, SR)], 1)
    loud_where_silent = torch.cat([1.1 * x, noise(1, SR, seed=2)], 1)
    assert float(seg_snr(padded, loud_where_silent, SR)) == pytest.approx(20, abs=1)
    assert math.isnan(seg_snr(0 * x, x, SR))


def test_lsd_is_the_gain_in_db():
    x = 0.05 * noise(2, SR)
    assert lsd(x, x, SR).tolist() == [0, 0]
    assert lsd(x, 10 * x, SR).tolist() == pytest.approx([20, 20], abs=1e-3)
    assert lsd(10 * x, x, SR).tolist() == pytest.approx([20, 20], abs=1e-3)
    assert lsd(0 * x, 0 * x, SR).tolist() == [0, 0]
    assert float(lsd(0 * x, 1e-7 * x, SR).max()) == 0  # under one step of 16 bits
    one_band = torch.sin(2 * math.pi * 3000 * TIME)[None]
    assert float(lsd(x[:1], x[:1] + 0.1 * one_band, SR)) < float(lsd(x[:1], x[:1] + noise(1, SR), SR))


def test_pesq_and_stoi_are_best_for_equal_speech_and_fall_with_noise(speech: Tensor):
    slightly_noisy, very_noisy = (speech + level * noise(*speech.shape).float() for level in (0.001, 0.1))
    for quality, top in ((pesq, 4.644), (stoi, 1)):
        best = quality(speech, speech, SR)
        defined = best.isfinite()  # PESQ finds no utterance in some keywords
        assert defined.any()
        assert torch.allclose(best[defined], torch.tensor(float(top)), atol=1e-3)
        assert bool((quality(speech, very_noisy, SR) < quality(speech, slightly_noisy, SR))[defined].all())
        assert bool((quality(speech, slightly_noisy, SR) <= best)[defined].all())


def test_pesq_narrow_band_at_8_khz_and_nothing_elsewhere(speech: Tensor):
    x = speech[:1]
    assert float(pesq(x, x, 8000)) == pytest.approx(4.549, abs=1e-3)
    assert math.isnan(pesq(x, x, 22050))


def test_undefined_is_nan(speech: Tensor):
    silence = torch.zeros(1, SR)
    for measure_ in (pesq, stoi):
        assert math.isnan(measure_(silence, silence, SR))
        assert math.isnan(measure_(silence, speech[:1], SR))
        assert math.isnan(measure_(speech[:1, 8000:9000], speech[:1, 8000:9000], SR))
        assert math.isnan(measure_(speech[:1, :10], speech[:1, :10], SR))
    assert math.isnan(pesq(speech[:1], silence, SR))
    short = torch.cat([0.1 * noise(1, SR // 4), torch.zeros(1, SR)], 1)  # 0.25 s of sound: pystoi returns 1e-5
    with pytest.warns(RuntimeWarning):
        assert pystoi.stoi(short[0].numpy(), short[0].numpy(), SR) == 1e-5
    assert math.isnan(stoi(short, short, SR))


def test_measure_has_the_columns_and_leaves_speech_measures_out_for_sounds(speech: Tensor):
    x_adv = speech + 0.01 * noise(*speech.shape).float()
    full, sound = measure(speech, x_adv, SR, True), measure(speech, x_adv, SR, False)
    assert list(full) == list(sound) == ["snr", "db_x", "seg_snr", "lsd", "pesq", "stoi"]
    assert all(values.shape == (len(speech),) for values in full.values())
    assert all(torch.equal(full[key], sound[key]) for key in ("snr", "db_x", "seg_snr", "lsd"))
    assert sound["pesq"].isnan().all()
    assert sound["stoi"].isnan().all()
    of_one_clip = measure(speech[1:2], x_adv[1:2], SR, True)
    for key, values in full.items():
        assert torch.allclose(of_one_clip[key][0], values[1], rtol=1e-4, equal_nan=True)


# --- masking -----------------------------------------------------------------------------------------------------


def test_bark_and_threshold_in_quiet_by_hand():
    f = torch.tensor([0.0, 1000.0, 4000.0], dtype=torch.float64)
    assert bark(f)[:2].tolist() == pytest.approx([0, 13 * math.atan(0.76) + 3.5 * math.atan((1 / 7.5) ** 2)])
    assert float(bark(f)[2]) == pytest.approx(13 * math.atan(3.04) + 3.5 * math.atan((4 / 7.5) ** 2))
    by_hand = 3.64 - 6.5 * math.exp(-0.6 * 2.3**2) + 0.001 - 12
    quiet = threshold_in_quiet(f)
    assert float(quiet[1]) == pytest.approx(by_hand)
    assert float(quiet[2]) < float(quiet[1]) < float(quiet[0]) < 30
    assert float(bark(torch.tensor(101.5))) == pytest.approx(1, abs=0.02)


def test_power_level_of_a_full_tone():
    """A sine of amplitude a on a bin: a / 2 times the mean of the window, which is 1/2 for Hann, times sqrt(8/3)."""
    level = power_level(0.5 * torch.sin(2 * math.pi * 1000 * TIME)[None])
    assert level.shape == (1, 1 + (SR - 2048) // 512, 1025)
    assert float(level[0, 0, 128]) == pytest.approx(20 * math.log10(0.25 / 2 * math.sqrt(8 / 3)), abs=1e-6)


def test_threshold_around_a_tone_by_hand():
    tone = 1000.0
    x = 0.5 * torch.sin(2 * math.pi * tone * TIME)[None]
    threshold, shift = masking_threshold(x, SR)
    assert threshold.shape == power_level(x).shape
    assert float(power_level(x).max() + shift) == pytest.approx(96)
    # Hann on a bin: the neighbors are 6.02 dB down, so the masker has 1 + 2/4 times the power of its bin.
    masker = 96 + 10 * math.log10(1.5)
    tone_bark = float(bark(torch.tensor(tone, dtype=torch.float64)))
    for frequency in (500.0, 796.875, 1000.0, 1203.125, 2000.0, 5000.0):
        f = torch.tensor(frequency, dtype=torch.float64)
        distance = float(bark(f)) - tone_bark
        slope = -27 + 0.37 * (masker - 40) if distance > 0 else 27
        raised = masker - 6.025 - 0.275 * tone_bark + slope * distance
        expected = 10 * math.log10(10 ** (raised / 10) + 10 ** (float(threshold_in_quiet(f)) / 10))
        assert float(threshold[0, 3, round(frequency / SR * 2048)]) == pytest.approx(expected, abs=1e-3)


def test_the_stronger_of_two_near_tones_masks_alone():
    """Two tones within 0.5 Bark raise the threshold as the stronger does; tones far apart add up."""
    strong = 0.5 * torch.sin(2 * math.pi * 1000 * TIME)[None]
    near = strong + 0.1 * torch.sin(2 * math.pi * 1046.875 * TIME)[None]
    far = strong + 0.1 * torch.sin(2 * math.pi * 3000 * TIME)[None]
    alone = masking_threshold(strong, SR)[0]
    assert torch.allclose(masking_threshold(near, SR)[0], alone, atol=0.1)
    both = masking_threshold(far, SR)[0]
    assert float((both - alone).min()) > -0.1
    assert float((both - alone)[0, 0, 384]) > 20


def test_threshold_is_batched_and_never_below_quiet(speech: Tensor):
    threshold, shift = masking_threshold(speech, SR)
    assert torch.isfinite(threshold).all()
    quiet = threshold_in_quiet(torch.arange(1025) * SR / 2048)
    assert bool((threshold >= quiet - 1e-3).all())
    for i in range(len(speech)):
        of_one_clip, shift_of_one_clip = masking_threshold(speech[i : i + 1], SR)
        assert torch.allclose(of_one_clip[0], threshold[i], atol=1e-2)
        assert float(shift_of_one_clip) == pytest.approx(float(shift[i]), abs=1e-3)
    assert np.isfinite(masking_threshold(torch.zeros(1, SR), SR)[0].numpy()).all()
    louder = masking_threshold(0.5 * speech, SR)[0]  # the scale is relative to each clip
    assert torch.allclose(louder, threshold, atol=0.05)
