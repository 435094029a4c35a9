"""What each defense does to sound, and what an attacker may assume of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from src.random_streams import RandomStreams
from src.registry import DEFENSES
from src.victims import checkpoint
from src.victims.stage import Stage

RATE = 16000


def tone(hz: float, level: float = 0.3) -> Tensor:
    return level * torch.sin(2 * torch.pi * hz * torch.arange(RATE) / RATE)[None]


def gain_db(stage: Stage, hz: float) -> float:
    inner = slice(RATE // 4, 3 * RATE // 4)
    x = tone(hz)
    return float(20 * torch.log10(stage(x)[:, inner].norm() / x[:, inner].norm()))


@pytest.mark.parametrize("name", DEFENSES.names())
def test_contract(name: str, clips) -> None:
    stage = DEFENSES[name](sample_rate=RATE)
    x = clips.waveforms(slice(3))
    y = stage(x)
    assert stage.name == name
    assert y.shape == x.shape
    assert y.isfinite().all()
    assert stage.randomized == bool((stage(x) != y).any())
    if not stage.randomized:
        torch.testing.assert_close(stage(x[1:2]), y[1:2], rtol=1e-5, atol=1e-6)
    victim = checkpoint.build(model="bc_resnet", classes=list("abcd"), sample_rate=RATE, n_samples=RATE).eval()
    assert victim.defended([stage])(x).shape == (3, 4)
    if stage.differentiable:
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(stage(leaf).square().sum(), leaf)
        assert (grad != 0).float().mean() > 0.2


def test_quantize_rounds_to_its_grid() -> None:
    stage = DEFENSES["quantize"](sample_rate=RATE, step=256)
    y = stage(tone(440))
    assert torch.equal(y, (y * 128).round() / 128)
    assert (y - tone(440)).abs().max() <= 128 / 32768 + 1e-7
    leaf = tone(440).requires_grad_()
    (grad,) = torch.autograd.grad(stage(leaf).sum(), leaf)
    assert not grad.any(), "a quantiser's own gradient is zero; that is why it says differentiable = False"


def test_lowpass_keeps_and_kills() -> None:
    stage = DEFENSES["lowpass"](sample_rate=RATE)
    assert abs(gain_db(stage, 1000)) < 0.1
    assert gain_db(stage, 4000) > -3.1
    assert gain_db(stage, 4500) < -39.9
    assert gain_db(stage, 7000) < -60
    with pytest.raises(ValueError, match="pass_hz < stop_hz"):
        DEFENSES["lowpass"](sample_rate=8000)


def test_median_removes_an_impulse_and_keeps_a_step() -> None:
    stage = DEFENSES["median"](sample_rate=RATE)
    x = torch.zeros(1, 100)
    x[:, 20] = 1
    x[:, 50:] = 0.5
    assert torch.equal(stage(x)[:, :90], torch.where(torch.arange(90) >= 50, 0.5, 0.0)[None])
    with pytest.raises(ValueError, match="odd"):
        DEFENSES["median"](sample_rate=RATE, width=4)


def test_noise_has_the_asked_snr_and_its_own_stream() -> None:
    stage = DEFENSES["noise_at_snr"](sample_rate=RATE, snr_db=20)
    x = torch.cat([tone(440), tone(440, 0.01)])
    noise = stage(x) - x
    torch.testing.assert_close(
        10 * torch.log10(x.square().sum(1) / noise.square().sum(1)), torch.full((2,), 20.0), atol=0.3, rtol=0
    )
    draws = [stage.draw(x, RandomStreams(0, ["a", "b"], "noise")) for _ in range(2)]
    assert torch.equal(draws[0], draws[1])


def test_mp3_repeats_has_no_delay_and_loses_the_top() -> None:
    stage = DEFENSES["mp3"](sample_rate=RATE)
    x = tone(440)
    y = stage(x)
    assert torch.equal(y, stage(x))
    inner = slice(2000, 14000)
    snr = 20 * torch.log10(x[:, inner].norm() / (y - x)[:, inner].norm())
    assert snr > 20, "a shift by one sample would already give 15 dB at 440 Hz"
    with pytest.raises(ValueError, match="no sample rate 12345"):
        DEFENSES["mp3"](sample_rate=12345)


def test_pagn_is_proportional_and_has_its_own_stream() -> None:
    stage = DEFENSES["pagn"](sample_rate=RATE, ratio=0.5)
    x = tone(440)
    x[:, : RATE // 2] = 0
    streams = [RandomStreams(0, ["a"], "noise") for _ in range(3)]
    noise = stage.draw(x, streams[0]) - x
    torch.testing.assert_close(stage.draw(x, streams[1]) - x, noise)
    # As loud as the clip: ten times the clip, ten times the noise; none in silence, none far from the clip's band.
    torch.testing.assert_close(stage.draw(10 * x, streams[2]) - 10 * x, 10 * noise, rtol=1e-3, atol=1e-5)
    assert not noise[:, : RATE // 2 - 512].any()
    power = torch.fft.rfft(noise[0]).abs().square()
    assert power[300:600].sum() > 0.99 * power.sum()
    assert torch.equal(DEFENSES["pagn"](sample_rate=RATE, ratio=0.0)(x), x)
    loud = torch.randn(1, 8 * RATE, generator=torch.Generator().manual_seed(0))
    ratio = float((stage.draw(loud, RandomStreams(0, ["b"], "noise")) - loud).norm() / loud.norm())
    assert 0.1 < ratio < 0.5, "overlapping frames average their noise"
    assert stage.lipschitz is None
