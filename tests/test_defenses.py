"""What each defense does to sound, and what an attacker may assume of it."""

from __future__ import annotations

import re
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from scipy import ndimage, signal
from torch import Tensor

from src.evaluation.predict import ballots, majority
from src.random_streams import RandomStreams
from src.registry import DEFENSES
from src.victims import checkpoint
from src.victims.adaptive import Bpda, adaptive, once
from src.victims.chain import Chain
from src.victims.stage import Stage
from tests.conftest import built_defense

RATE = 16000


def tone(hz: float, level: float = 0.3) -> Tensor:
    return level * torch.sin(2 * torch.pi * hz * torch.arange(RATE) / RATE)[None]


def gain_db(stage: Stage, hz: float) -> float:
    inner = slice(RATE // 4, 3 * RATE // 4)
    x = tone(hz)
    return float(20 * torch.log10(stage(x)[:, inner].norm() / x[:, inner].norm()))


@pytest.mark.parametrize("name", DEFENSES.names())
def test_contract(name: str, clips) -> None:
    stage = built_defense(name)
    waveforms = x = clips.waveforms(slice(3))
    victim = checkpoint.build(model="bc_resnet", classes=list("abcd"), sample_rate=RATE, n_samples=RATE).eval()
    at = victim.representations[-1] if stage.frames_only else "waveform"
    x = victim.split(at)[0](waveforms)
    y = stage(x)
    assert stage.name == name
    assert y.shape[:-1] == x.shape[:-1]
    assert (y.shape[-1] < x.shape[-1]) == stage.shortens
    assert stage.shortens or y.shape == x.shape
    assert y.isfinite().all()
    assert stage.randomized == bool((stage(x) != y).any())
    if not stage.randomized:
        torch.testing.assert_close(stage(x[1:2]), y[1:2], rtol=1e-5, atol=1e-6)
    assert victim.defended([stage], at)(waveforms).shape == (3, 4)
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


@pytest.mark.parametrize("step", [2**6, 2**7, 2**15])
def test_quantize_is_rounding_of_16_bit_samples(step: int) -> None:
    samples = torch.randint(-32768, 32768, (2, 500), generator=torch.Generator().manual_seed(0))
    y = DEFENSES["quantize"](sample_rate=RATE, step=step)(samples / 32768)
    expected = np.clip(np.round(samples.numpy() / step) * step, -32768, 32768)
    assert np.array_equal(y.numpy() * 32768, expected)


@pytest.mark.parametrize("width", [3, 17, 19])
def test_average_and_median_are_those_of_scipy(width: int) -> None:
    x = torch.randn(2, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, median = (DEFENSES[name](sample_rate=RATE, width=width) for name in ("average", "median"))
    expected = np.stack([np.convolve(row, np.ones(width) / width, "same") for row in x.numpy()])
    np.testing.assert_allclose(mean(x).numpy(), expected, atol=1e-12)
    np.testing.assert_array_equal(median(x), ndimage.median_filter(x.numpy(), (1, width), mode="constant"))
    features = x.view(2, 3, 100)
    torch.testing.assert_close(mean(features), torch.stack([mean(band) for band in features]))
    with pytest.raises(ValueError, match="odd"):
        DEFENSES["average"](sample_rate=RATE, width=4)


def test_the_whole_gradient_of_several_defenses_in_a_row() -> None:
    """A known fault elsewhere detaches all defenses but the first: here the gradient is that of the composition."""
    chain = Chain([DEFENSES[n](sample_rate=RATE) for n in ("average", "lowpass", "downsample", "bandpass")])
    x = torch.randn(1, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: chain(x)[0, 100:110], x)
    steps = torch.eye(400, dtype=torch.float64)
    numeric = (chain(x + steps) - chain(x - steps))[:, 100:110].T / 2
    torch.testing.assert_close(jacobian[:, 0], numeric)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("average", {}),
        ("median", {}),
        ("downsample", {}),
        ("downsample", {"ratio": 0.05}),
        ("lowpass", {}),
        ("bandpass", {}),
        ("bandpass", {"high_stop_hz": 8000.0}),
    ],
)
def test_gradients_by_finite_differences(name: str, options: dict[str, float]) -> None:
    stage = DEFENSES[name](sample_rate=RATE, **options)
    x = torch.randn(2, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(stage, x, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "options", "passes", "stops"),
    [
        ("lowpass", {}, [1, 2000, 4000], [4500, 7900]),
        ("lowpass", {"stop_hz": 8000.0}, [1, 4000], [7999.9]),
        ("bandpass", {}, [300, 1000, 4000], [1, 150, 6000]),
        ("bandpass", {"high_stop_hz": 5500.0}, [300, 4000], [150, 5500]),
        ("bandpass", {"high_stop_hz": 8000.0}, [300, 4000], [150, 7999.9]),
    ],
)
def test_butterworth_is_that_of_scipy_and_meets_its_edges(
    name: str, options: dict[str, float], passes: list[float], stops: list[float], clips
) -> None:
    stage = DEFENSES[name](sample_rate=RATE, **options)
    x = clips.waveforms(slice(3)).double()
    expected = signal.sosfilt(stage.sections, x.numpy())
    np.testing.assert_allclose(stage(x).numpy(), expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(stage(x.float()).numpy(), expected, rtol=0, atol=1e-6)

    def loss_db(hz: list[float]) -> np.ndarray:
        return -20 * np.log10(np.abs(signal.sosfreqz(stage.sections, hz, fs=RATE)[1]) + 1e-30)

    assert (loss_db(passes) < 3.001).all()
    assert (loss_db(stops) > 39.999).all()
    order = 2 * len(stage.sections) if name == "lowpass" else len(stage.sections)
    assert order <= 30, "the lowest order that meets the edges"


def test_the_direct_form_of_the_bandpass_is_broken_and_ours_is_not() -> None:
    """A known fault elsewhere: the same filter as one polynomial in float32."""
    stage = DEFENSES["bandpass"](sample_rate=RATE)
    b, a = signal.sos2tf(stage.sections)
    x = tone(1000).numpy()
    direct = signal.lfilter(b.astype(np.float32), a.astype(np.float32), x)
    exact = signal.sosfilt(stage.sections, x.astype(np.float64))
    error = np.abs(direct - exact)
    assert not error.max() < 0.1
    assert np.abs(stage(torch.from_numpy(x)).numpy() - exact).max() < 1e-6


def test_bandpass_refuses_edges_out_of_order() -> None:
    with pytest.raises(ValueError, match="low_stop_hz < low_pass_hz < high_pass_hz < high_stop_hz, got 150, 300, 4000"):
        DEFENSES["bandpass"](sample_rate=RATE, high_stop_hz=4000.0)
    with pytest.raises(ValueError, match="high_stop_hz <= 4000 Hz, got 6000"):
        DEFENSES["bandpass"](sample_rate=8000)


@pytest.mark.parametrize("ratio", [0.05, 0.45, 0.95])
def test_downsample_is_a_sinc_sum_and_loses_the_top(ratio: float) -> None:
    stage = DEFENSES["downsample"](sample_rate=RATE, ratio=ratio)
    half = ratio * RATE / 2
    assert abs(gain_db(stage, 0.7 * half)) < 0.5
    if ratio < 0.9:
        assert gain_db(stage, 1.3 * half) < -30
    for n in (RATE, RATE - 1, 1000, 7, 1):
        assert stage(torch.zeros(2, n)).shape == (2, n)
    # Windowed-sinc interpolation from its formula, with the six zero crossings and the roll-off of torchaudio.
    x = torch.randn(1, 800, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def resampled(x: np.ndarray, source: float, target: float, n: int) -> np.ndarray:
        cut = 0.99 * min(source, target)
        t = cut * (np.arange(n)[:, None] / target - np.arange(len(x))[None] / source)
        window = np.where(np.abs(t) < 6, np.cos(np.pi * t / 12) ** 2, 0)
        return (np.sinc(t) * window * cut / source) @ x

    lower = resampled(x[0].numpy(), RATE, ratio * RATE, int(np.ceil(800 * ratio)))
    np.testing.assert_allclose(stage(x)[0].numpy(), resampled(lower, ratio * RATE, RATE, 800), atol=1e-9)


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


def test_gaussian_noise_has_its_sigma_anywhere_and_its_own_stream() -> None:
    stage = DEFENSES["gaussian_noise"](sample_rate=RATE, sigma=0.05)
    for shape in ((4, RATE), (4, 40, 101)):
        x = torch.zeros(shape)
        noise = stage.draw(x, RandomStreams(0, list("abcd"), "noise"))
        assert abs(float(noise.std()) / 0.05 - 1) < 0.02
        assert torch.equal(noise[2:3], stage.draw(x[2:3], RandomStreams(0, ["c"], "noise")))
    loud = torch.full((1, RATE), 0.9)
    torch.testing.assert_close(
        stage.draw(loud, RandomStreams(0, ["a"], "noise")) - loud,
        stage.draw(0 * loud, RandomStreams(0, ["a"], "noise")),
        rtol=0, atol=1e-6,
    )  # fmt: skip


def test_many_draws_vote_behind_gaussian_noise() -> None:
    """At a margin of one sigma a single draw errs in 16 % of the cases, the vote of 20 draws almost never."""
    layer = torch.nn.Linear(1, 2).requires_grad_(False)
    layer.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    layer.bias.zero_()
    chain = Chain([DEFENSES["gaussian_noise"](sample_rate=RATE, sigma=0.1)], layer).eval()
    x, ids = torch.full((400, 1), 0.1), [str(i) for i in range(400)]
    labels = ballots(chain, x, RandomStreams(0, ids, "judge"))
    assert labels.shape == (20, 400)
    assert abs(float((labels == 1).float().mean()) - 0.159) < 0.02
    assert (majority(labels) == 0).float().mean() > 0.99


def test_trim_drops_silence_and_keeps_the_rest_in_order() -> None:
    stage = DEFENSES["trim"](sample_rate=RATE, threshold_db=30.0, frame_ms=10.0)
    x = torch.zeros(2, 1650, dtype=torch.float64)
    x[0, 320:480], x[0, 960:1120], x[0, 1600:] = 0.5, -0.5, 0.25
    x[0, 640:800] = 0.5 * 10 ** (-31 / 20)
    x[1] = 0.1
    y = stage(x)
    expected = np.zeros(1650)
    expected[:160], expected[160:320], expected[320:370] = 0.5, -0.5, 0.25
    np.testing.assert_array_equal(y[0], expected)
    assert torch.equal(y[1], x[1]), "nothing is quiet beside the rest"
    assert torch.equal(stage(torch.zeros(1, 333)), torch.zeros(1, 333))
    spoken = torch.randn(2, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spoken[:, 100:300] *= 1e-3
    small = DEFENSES["trim"](sample_rate=RATE, frame_ms=1.0)
    assert torch.autograd.gradcheck(small, spoken.requires_grad_(), eps=1e-7, atol=1e-6)


def test_trim_is_that_of_a_loop(clips) -> None:
    stage = DEFENSES["trim"](sample_rate=RATE)
    x = clips.waveforms(slice(4))
    for clip, out in zip(x.numpy(), stage(x).numpy(), strict=True):
        frames = [clip[i : i + 400] for i in range(0, RATE, 400)]
        loudest = max(float((frame**2).sum()) for frame in frames)
        kept = np.concatenate([frame for frame in frames if float((frame**2).sum()) >= 1e-4 * loudest])
        np.testing.assert_array_equal(out, np.pad(kept, (0, RATE - len(kept))))


def test_mel_inversion_keeps_the_mel_spectrogram_and_loses_the_phase(clips) -> None:
    stage = DEFENSES["mel_inversion"](sample_rate=RATE)
    x = clips.waveforms(slice(2))
    y = stage.draw(x, RandomStreams(0, ["a", "b"], "phase"))
    assert torch.equal(stage.draw(x, RandomStreams(0, ["a", "b"], "phase")), y)
    assert torch.equal(stage.draw(x[1:], RandomStreams(0, ["b"], "phase")), y[1:])
    mel = [librosa.feature.melspectrogram(y=z.numpy(), sr=RATE, n_fft=1024, hop_length=256, n_mels=80) for z in (x, y)]
    error = np.linalg.norm(np.sqrt(mel[0]) - np.sqrt(mel[1])) / np.linalg.norm(np.sqrt(mel[0]))
    assert error < 0.25
    assert (x - y).norm() > 0.5 * x.norm(), "the waveform is another"
    # What BPDA differentiates is near what Griffin-Lim gives, and its gradient is that of a formula.
    near = stage.substitute(x, y)
    assert (near - y).norm() < 0.35 * y.norm()
    leaf = x.clone().requires_grad_()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    (grad,) = torch.autograd.grad((Bpda(stage).draw(leaf, RandomStreams(0, ["a", "b"], "p")) * direction).sum(), leaf)
    assert grad.isfinite().all()
    assert (grad != 0).float().mean() > 0.9
    small = DEFENSES["mel_inversion"](sample_rate=RATE, n_fft=16, hop_length=8, n_mels=3, iterations=4).double()
    short = torch.randn(2, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    leaf = short[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: small.substitute(x, short[1:]), leaf, eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in DEFENSES.names() if DEFENSES[n].waveform_only])
def test_waveform_defenses_stand_at_waveforms_only(name: str) -> None:
    victim = checkpoint.build(model="bc_resnet", classes=list("abcd"), sample_rate=RATE, n_samples=RATE)
    with pytest.raises(ValueError, match=f"'{name}' needs a waveform"):
        victim.defended([built_defense(name)], victim.representations[-1])


def test_a_long_chain_draws_from_the_examples_streams(clips) -> None:
    """Any chain at any position: alone and in a batch the same logits, and a gradient through all of it."""
    victim = checkpoint.build(model="resnet", model_options={"widths": (4, 8)}, classes=list("abcd"),
                              sample_rate=RATE, n_samples=RATE).eval()  # fmt: skip
    last = victim.representations[-1]
    defended = checkpoint.defend(
        victim,
        [
            {"name": "trim"},
            {"name": "gaussian_noise"},
            {"name": "mp3"},
            {"name": "bandpass"},
            {"name": "gaussian_noise", "options": {"sigma": 0.1}, "at": last},
            {"name": "feco", "options": {"ratio": 0.5}, "at": last},
            {"name": "average", "options": {"width": 3}, "at": last},
        ],
    ).frozen()
    assert [d.name for d in defended.defenses] == [
        "trim", "gaussian_noise", "mp3", "bandpass", "gaussian_noise_2", "feco", "average",
    ]  # fmt: skip
    x, ids = clips.waveforms(slice(3)), list("abc")
    logits = once(defended, x, RandomStreams(0, ids, "draw"))
    assert torch.equal(once(defended, x, RandomStreams(0, ids, "draw")), logits)
    torch.testing.assert_close(
        once(defended, x[1:2], RandomStreams(0, ["b"], "draw")), logits[1:2], rtol=1e-3, atol=1e-3
    )
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(adaptive(defended, rng=RandomStreams(0, ids, "eot"), draws=2)(leaf)[:, 0].sum(), leaf)
    assert (grad != 0).float().mean() > 0.3


def test_the_page_has_every_defense_with_its_defaults() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs/defenses.md").read_text(encoding="utf-8")
    rows = {
        match[1]: match[0] for match in re.finditer(r"^\| `(\w+)`.*$", page, re.M) if "method = warped" not in match[0]
    }
    assert sorted(rows) == DEFENSES.names()
    for name in DEFENSES.names():
        first = next(key.default for key in DEFENSES.keys(name) if key.name not in ("method", "n_fft", "hop_length"))
        assert f"{first:g}" in rows[name].split("|")[3], (name, first)


@pytest.mark.parametrize("name", DEFENSES.names())
def test_an_empty_batch_stays_empty(name: str) -> None:
    stage = built_defense(name)
    x = torch.empty(0, 8, 50) if stage.frames_only else torch.empty(0, RATE)
    assert stage(x).shape[:-1] == x.shape[:-1]
    assert stage.draw(x, RandomStreams(0, (), "judge")).shape[:-1] == x.shape[:-1]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lowpass", {"pass_hz": 4000.0, "stop_hz": 4001.0}),
        ("lowpass", {"pass_hz": 4000.0, "stop_hz": 4030.0}),
        ("bandpass", {"low_stop_hz": 299.0}),
        ("bandpass", {"low_stop_hz": 0.001, "low_pass_hz": 0.002}),
    ],
)
def test_edges_that_no_filter_can_meet_are_refused(name: str, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"no {name} filter of order .* set pass and stop edges farther apart"):
        DEFENSES[name](sample_rate=RATE, **options)
