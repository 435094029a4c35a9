"""Random variants of a waveform: what each change does to a tone, gradients against finite differences, and nothing at
strength 0."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from src.attacks.diversity import Diversity, add_noise, filtered, stretched, warp
from src.random_streams import RandomStreams

RATE = 16000
ALL = Diversity(sample_rate=RATE, shift_s=0.002, speed=0.15, noise=0.3, masks=2, mask_size=0.3, stretch=0.1)


def streams(count: int) -> RandomStreams:
    return RandomStreams(0, [f"clip{i}" for i in range(count)], "diversity")


def tone(hertz: float, seconds: float = 0.5) -> Tensor:
    time = torch.arange(round(RATE * seconds), dtype=torch.float64) / RATE
    return (0.5 * torch.sin(2 * math.pi * hertz * time))[None]


def loudest(x: Tensor) -> float:
    """Frequency of the largest bin, Hz."""
    spectrum = torch.fft.rfft(x * torch.hann_window(x.shape[1], dtype=x.dtype))
    return float(spectrum.abs().argmax()) * RATE / x.shape[1]


def test_a_whole_offset_delays_exactly_and_fills_with_zeros() -> None:
    x = torch.rand(2, 50, dtype=torch.float64)
    out = warp(x, torch.tensor([7.0, -3.0], dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(out[0, 7:], x[0, :-7])
    torch.testing.assert_close(out[1, :-3], x[1, 3:])
    assert not out[0, :7].any()
    assert not out[1, -3:].any()


def test_speed_raises_the_pitch_and_agrees_with_numpy() -> None:
    x, factor = tone(400), 1.12
    out = warp(x, torch.zeros(1, dtype=torch.float64), torch.tensor([factor], dtype=torch.float64))
    assert loudest(out) == pytest.approx(400 * factor, abs=3)
    middle = (x.shape[1] - 1) / 2
    position = (np.arange(x.shape[1]) - middle) * factor + middle
    expected = np.interp(position, np.arange(x.shape[1]), x[0].numpy())
    inside = (position >= 0) & (position <= x.shape[1] - 1)
    np.testing.assert_allclose(out[0].numpy()[inside], expected[inside], atol=1e-9)
    assert not out[0].numpy()[(position < -1) | (position > x.shape[1])].any()


def test_noise_has_its_share_of_the_clip() -> None:
    x, share = torch.randn(3, 40000) * torch.tensor([[0.1], [0.01], [0.5]]), torch.tensor([0.1, 0.3, 0.0])
    delta = add_noise(x, torch.randn(3, 40000), share) - x
    torch.testing.assert_close(delta.norm(dim=1) / x.norm(dim=1), share, rtol=0.03, atol=1e-6)


def test_the_amplitude_of_the_noise_is_between_a_tenth_and_all_of_its_largest() -> None:
    noisy = replace(ALL, shift_s=0, speed=0, masks=0, stretch=0)
    x = torch.randn(60, 4000, dtype=torch.float64)
    variants = noisy(x, torch.ones(60, dtype=torch.float64), streams(60))
    share = (variants - x).norm(dim=1) / x.norm(dim=1) / ALL.noise
    assert 0.095 < float(share.min()) < 0.15
    assert 0.8 < float(share.max()) < 1.05


@pytest.mark.parametrize("factor", [0.85, 1.2])
def test_stretching_moves_a_tone_in_frequency_and_not_in_time(factor: float) -> None:
    x = torch.cat([torch.zeros(1, 4000, dtype=torch.float64), tone(1000), torch.zeros(1, 4000, dtype=torch.float64)], 1)
    out = filtered(x, 512, torch.tensor([factor], dtype=torch.float64), None, torch.zeros(1, dtype=torch.float64))
    # Frames do not agree on the phase of the new tone, whose lines are therefore one per hop apart.
    assert loudest(out[:, 4000:-4000]) == pytest.approx(1000 * factor, abs=RATE / 256 / 2)
    assert float(out[:, :3400].abs().max()) < 1e-6 * float(out.abs().max())
    assert float(out[:, 4600:-4600].square().mean()) > 0.3 * float(x[:, 4600:-4600].square().mean())


def test_a_spectrum_stretched_by_one_is_itself() -> None:
    spectrum = torch.randn(2, 33, 9, dtype=torch.complex128)
    torch.testing.assert_close(stretched(spectrum, torch.ones(2, dtype=torch.float64)), spectrum)


def test_masks_silence_a_band_and_a_stretch_of_time() -> None:
    x = torch.randn(1, RATE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, wide = torch.ones(1, dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    # The lower half of the mel axis, and (width 0) no time; then no frequency and the first half of the clip.
    low = filtered(x, 512, one, torch.tensor([[[0.999, 0.0, 0.0, 0.0]]], dtype=torch.float64), wide)
    early = filtered(x, 512, one, torch.tensor([[[0.0, 0.0, 0.999, 0.0]]], dtype=torch.float64), wide)
    power = torch.fft.rfft(low).abs().square()[0]
    edge = round((math.expm1(0.5 * math.log(11)) / 10) * len(power))  # where half of the mel axis ends
    assert float(power[: edge - 400].mean()) < 1e-3 * float(power[edge + 400 :].mean())
    assert float(early[:, : RATE // 2 - 600].abs().max()) < 1e-9
    torch.testing.assert_close(early[:, RATE // 2 + 600 :], x[:, RATE // 2 + 600 :])


@pytest.mark.parametrize("time", [4096, 4097, 4200, 4224, 4300, 4351])
def test_masks_leave_no_pulse_at_the_end_whatever_the_length(time: int) -> None:
    x = torch.randn(1, time, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, wide = torch.ones(1, dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    out = filtered(x, 512, one, torch.tensor([[[0.999, 0.5, 0.0, 0.0]]], dtype=torch.float64), wide)
    assert out.shape == x.shape
    assert float(out[:, -256:].abs().max()) < 2 * float(x.abs().max())
    unmasked = filtered(x, 512, one, torch.zeros(1, 1, 4, dtype=torch.float64), wide)
    torch.testing.assert_close(unmasked, x)


@pytest.mark.parametrize("change", ["shift_s", "speed", "noise", "masks", "stretch", "all"])
def test_gradients_agree_with_finite_differences(change: str) -> None:
    off = replace(ALL, shift_s=0, speed=0, noise=0, masks=0, stretch=0)
    diversity = ALL if change == "all" else replace(off, **{change: getattr(ALL, change)})
    x = torch.randn(2, 900, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    strength, weight = torch.ones(2, dtype=torch.float64), torch.randn(2, 900, dtype=torch.float64)

    def value(x: Tensor) -> Tensor:
        return (diversity(x, strength, streams(2)) * weight).sum()

    (grad,) = torch.autograd.grad(value(x), x)
    for seed in range(3):
        v = torch.randn(2, 900, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            slope = (value(x + 1e-5 * v) - value(x - 1e-5 * v)) / 2e-5
        assert float((grad * v).sum()) == pytest.approx(float(slope), rel=1e-4, abs=1e-5)


def test_strength_zero_changes_nothing_and_more_changes_more() -> None:
    x = tone(60).expand(2, -1)
    sizes = []
    for strength in (0.0, 0.01, 1.0):
        variant = ALL(x, torch.full((2,), strength, dtype=torch.float64), streams(2))
        sizes.append(float((variant - x).norm()))
    assert sizes[0] < 1e-9
    assert sizes[0] < sizes[1] < sizes[2]


def test_variants_do_not_depend_on_the_batch_and_follow_the_stream() -> None:
    x, one = torch.randn(3, 2000, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    rng = streams(3)
    first, second = ALL(x, one, rng), ALL(x, one, rng)
    assert not torch.allclose(first, second)
    index = torch.tensor([2])
    alone = streams(3).select(index)
    torch.testing.assert_close(ALL(x[index], one[index], alone), first[index])
    torch.testing.assert_close(ALL(x[index], one[index], alone), second[index])
