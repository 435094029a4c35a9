"""Front-end stages: values of librosa, exact gradients, sound Lipschitz constants, inverses, masks, cuts."""

from __future__ import annotations

import copy
import math

import librosa
import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from src.registry import FRONTENDS
from src.stages.cepstral_mean import CepstralMean
from src.stages.deltas import Deltas
from src.stages.level import Level
from src.stages.log_mel import Decibel, Log
from src.stages.magnitude import WINDOWS, FastMagnitude, Magnitude
from src.stages.mel import Mel
from src.stages.mfcc import Dct
from src.stages.normalize import AudioNormalize, ClipNormalize, DatasetNormalize, Scale
from src.stages.pad import Pad
from src.stages.pre_emphasis import PreEmphasis
from src.stages.stft import overlap_add, stft_norm
from src.stages.voiced import Voiced
from src.victims.chain import Chain
from src.victims.stage import Stage
from src.victims.victim import Victim

SR = 16000
EVERY = ["log_mel", "linear_mel", "mfcc", "filterbank", "audionet", "xvector", "ivector", "tagging_mel", "dense_mel"]
WITHOUT_STAGES = {"waveform"}  # tests/test_sound_event_front_ends.py
TRANSFORMS = [(512, 480, 160, "hann", True), (512, 400, 160, "rectangular", False), (256, 256, 100, "hamming", True)]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.fixture(scope="module")
def x(clips) -> Tensor:
    return clips.waveforms()[::4]


def small(*shape: int, positive: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(*shape, dtype=torch.float64, generator=generator)
    return (z.abs() + 0.1 if positive else z).requires_grad_()


def fitted(n_bands: int) -> DatasetNormalize:
    stage = DatasetNormalize(n_bands)
    stage.fit(small(5, 4, 7).detach().float() * 3 + 1)
    return stage


def audio() -> AudioNormalize:
    stage = AudioNormalize()
    stage.fit(small(5, 40).detach().float() * 3 + 1)
    return stage


def informed(stage: Stage) -> Stage:
    """The stage on three clips of 12, 7 and 5 frames, the last of which was shifted by 4."""
    frames = torch.arange(12)
    return stage.with_valid(torch.stack([frames < 12, frames < 7, (frames > 3) & (frames < 9)])[:, None])


# --- gradients ---------------------------------------------------------------------------------------------------

STAGES: list[tuple[Stage, Tensor]] = [
    (Pad(50), small(2, 40)),
    (PreEmphasis(0.97), small(2, 40)),
    (Magnitude(16, 12, 4), small(2, 40)),
    (Magnitude(16, 16, 4, "rectangular", center=False), small(2, 40)),
    (Magnitude(16, 12, 4).frozen(), small(2, 40)),
    (Mel(SR, 16, 4), small(2, 9, 5, positive=True)),
    (Mel(SR, 16, 4, htk=True, power=1), small(2, 9, 5, positive=True)),
    (Log(1e-3), small(2, 4, 7, positive=True)),
    (Decibel(1e-3), small(2, 4, 7, positive=True)),
    (Decibel(1e-3, relative=True), small(2, 4, 7, positive=True)),
    (Decibel(1e-3, relative=True, top_db=10), small(2, 4, 7, positive=True)),
    (Dct(3, 4), small(2, 4, 7)),
    (Scale(3569, (0, math.inf)), small(2, 4, 7)),
    (fitted(1), small(2, 4, 7)),
    (fitted(4), small(2, 4, 7)),
    (audio(), small(2, 40)),
    (ClipNormalize("clip"), small(2, 4, 7)),
    (ClipNormalize("clip", scale=False), small(2, 4, 7)),
    (ClipNormalize("band"), small(2, 4, 7)),
    (ClipNormalize("frame"), small(2, 4, 7)),
    (Deltas(2), small(2, 4, 9)),
    (Deltas(3, order=1), small(2, 4, 5)),
    (Deltas(2), small(1, 2, 1)),
    (CepstralMean(4), small(2, 3, 11)),
    (CepstralMean(4), small(2, 3, 7)),
    (CepstralMean(0), small(2, 3, 11)),
    (CepstralMean(300), small(2, 3, 11)),
    (Voiced(0.5), small(2, 3, 11)),
    *[(informed(stage), small(3, 2, 12)) for stage in (Deltas(2), CepstralMean(4), CepstralMean(0), Voiced(0.5))],
]


def label(value: object) -> str | None:
    return type(value).__name__ if isinstance(value, nn.Module) else ""


@pytest.mark.parametrize(("stage", "z"), STAGES, ids=label)
def test_gradient_is_that_of_finite_differences(stage: Stage, z: Tensor):
    assert torch.autograd.gradcheck(copy.deepcopy(stage).double(), (z,), eps=1e-6, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_whole_front_end_climbs_along_its_gradient(name: str, x: Tensor):
    """First order: f(x + h g) - f(x) = h |g|^2, at a smooth point (some noise under the clip)."""
    chain = Chain(FRONTENDS[name](sample_rate=SR, n_samples=x.shape[1])).double()
    z = (x[:1].double() + 0.01 * torch.randn(1, x.shape[1], dtype=torch.float64)).requires_grad_()
    weight = torch.randn(chain(z).shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((chain(z) * weight).sum(), z)
    direction = gradient / gradient.norm()
    with torch.no_grad():
        h = 1e-7
        slope = ((chain(z + h * direction) - chain(z - h * direction)) * weight).sum() / (2 * h)
    assert float(slope) == pytest.approx(float(gradient.norm()), rel=1e-4)


# --- librosa -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("htk", [False, True])
@pytest.mark.parametrize(("n_fft", "win", "hop", "n_mels"), [(512, 480, 160, 40), (2048, 2048, 100, 128)])
def test_mel_is_librosas(x: Tensor, htk: bool, n_fft: int, win: int, hop: int, n_mels: int):
    ours = Chain([Magnitude(n_fft, win, hop), Mel(SR, n_fft, n_mels, htk=htk)])(x)
    peer = librosa.feature.melspectrogram(
        y=x.numpy(), sr=SR, n_fft=n_fft, win_length=win, hop_length=hop, n_mels=n_mels, htk=htk,
        norm=None if htk else "slaney",
    )  # fmt: skip
    assert ours.shape == peer.shape
    assert relative(ours, torch.from_numpy(peer)) < 1e-4


def test_magnitude_is_librosas(x: Tensor):
    peer = np.abs(librosa.stft(x.numpy(), n_fft=512, win_length=480, hop_length=160))
    assert relative(Magnitude(512, 480, 160)(x), torch.from_numpy(peer)) < 1e-4


@pytest.mark.parametrize("relative_to_peak", [False, True])
def test_decibel_is_power_to_db(x: Tensor, relative_to_peak: bool):
    mel = Chain([Magnitude(512, 480, 160), Mel(SR, 512, 64)])(x)
    ours = Decibel(1e-10, relative=relative_to_peak)(mel)
    for row, clip in zip(ours, mel.numpy(), strict=True):
        peer = librosa.power_to_db(clip, ref=np.max if relative_to_peak else 1.0)
        assert relative(row, torch.from_numpy(peer)) < 1e-4


def test_dct_is_scipys_and_mfcc_librosas(x: Tensor):
    z = torch.randn(2, 40, 9)
    assert relative(Dct(40, 40)(z), torch.from_numpy(scipy.fft.dct(z.numpy(), axis=1, norm="ortho"))) < 1e-5
    chain = Chain([Magnitude(512, 480, 160), Mel(SR, 512, 40, 20, 4000), Decibel(1e-10), Dct(13, 40)])
    peer = librosa.feature.mfcc(
        y=x[0].numpy(), sr=SR, n_mfcc=13, n_fft=512, win_length=480, hop_length=160, n_mels=40, fmin=20, fmax=4000
    )
    assert relative(chain(x[:1])[0], torch.from_numpy(peer)) < 1e-4


def test_pre_emphasis_is_librosas(x: Tensor):
    peer = librosa.effects.preemphasis(x.numpy(), coef=0.97, zi=np.zeros((len(x), 1)))
    assert relative(PreEmphasis(0.97)(x), torch.from_numpy(peer)) < 1e-5


# --- Lipschitz ---------------------------------------------------------------------------------------------------


def gain(stage: Magnitude, n: int, rounds: int = 200) -> float:
    """Largest singular value of the linear map x -> STFT(x), by power iteration."""
    z = torch.randn(1, n, dtype=torch.float64)
    for _ in range(rounds):
        z = (z / z.norm()).requires_grad_()
        energy = stage.analyze(z).abs().square().sum()
        (z,) = torch.autograd.grad(energy, z)
    return math.sqrt(float(energy.detach()))


@pytest.mark.parametrize("setup", [*TRANSFORMS, (100, 99, 33, "hann", True), (51, 51, 17, "rectangular", False)])
def test_magnitude_constant_is_an_upper_bound_and_tight(setup: tuple):
    stage = Magnitude(*setup).double()
    true = gain(stage, 4000)
    assert true <= stage.lipschitz * (1 + 1e-9)
    assert stage.lipschitz <= 1.15 * true


def test_magnitude_constant_holds_for_dc_and_nyquist():
    for window in WINDOWS:
        stage = Magnitude(64, 48, 16, window).double()
        t = torch.arange(1024, dtype=torch.float64)
        for z in (torch.ones_like(t), (-1) ** t, torch.ones_like(t) + (-1) ** t):
            assert float(stage(z[None]).norm()) <= stage.lipschitz * float(z.norm())
    assert stft_norm(torch.ones(8, dtype=torch.float64), 8, 8) == pytest.approx(math.sqrt(8))


LIPSCHITZ = [(s, z) for s, z in STAGES if s.lipschitz is not None] + [
    (Magnitude(*setup), small(2, 2000)) for setup in TRANSFORMS
]


@pytest.mark.parametrize(("stage", "z"), LIPSCHITZ, ids=label)
def test_no_pair_of_points_exceeds_the_constant(stage: Stage, z: Tensor):
    """Random pairs, and pairs found by ascent on |f(a) - f(b)| / |a - b|."""
    stage = copy.deepcopy(stage).double()
    a = z.detach()
    delta = torch.randn_like(a)
    positive = stage.name in ("mel", "log_mel")
    for size in (1e-4, 1e-2, 1.0):
        delta = delta * size / delta.norm()
        for _ in range(10):
            delta = delta.detach().requires_grad_()
            b = (a + delta).clamp_min(0) if positive else a + delta
            ratio = (stage(b) - stage(a)).norm() / (b - a).norm().clamp_min(1e-12)
            assert float(ratio.detach()) <= stage.lipschitz * (1 + 1e-6)
            (gradient,) = torch.autograd.grad(ratio, delta)
            delta = delta + 0.5 * size * gradient / gradient.norm().clamp_min(1e-12)
            delta = delta.detach() * size / delta.detach().norm()


# --- inverses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "z"), STAGES, ids=label)
def test_inverse_gives_the_input_back(stage: Stage, z: Tensor):
    stage, z = copy.deepcopy(stage).double(), z.detach()
    y = stage(z)
    back = stage.inverse(y, z)
    assert back.shape == z.shape
    assert relative(stage(back), y) < 1e-5
    if stage.name != "mel":  # many magnitudes share their mel values
        assert relative(back, z) < 1e-5


def test_inverses_reach_a_new_output(x: Tensor):
    pre = PreEmphasis(0.999).double()
    y = torch.randn(2, 5000, dtype=torch.float64)
    assert relative(pre(pre.inverse(y, y)), y) < 1e-10
    mel, z = Mel(SR, 512, 40), Magnitude(512, 480, 160)(x)
    covered = mel.filters.sum(0) > 0
    assert relative(mel.inverse(2 * mel(z), z)[:, covered], math.sqrt(2) * z[:, covered]) < 1e-5
    dct, features = Dct(13, 40), torch.randn(2, 40, 9)
    wanted = dct(features) + 1
    assert relative(dct(dct.inverse(wanted, features)), wanted) < 1e-5
    log, power = Decibel(1e-10), torch.rand(2, 40, 9) + 1e-3
    assert relative(log(log.inverse(log(power) + 3, power)), log(power) + 3) < 1e-5


def test_decibel_inverse_keeps_what_the_floor_hides(x: Tensor):
    mel = Chain([Magnitude(512, 480, 160), Mel(SR, 512, 40)])(x)
    for stage in (Decibel(1e-4), Decibel(1e-10, relative=True, top_db=30)):
        y = stage(mel)
        back = stage.inverse(y, mel)
        hidden = y <= y.amin((1, 2), keepdim=True)
        assert hidden.any()
        assert torch.equal(back[hidden], mel[hidden])
        assert relative(back, mel) < 1e-5


def test_stft_round_trip_and_covered_tail(x: Tensor):
    for setup in TRANSFORMS:
        stage = Magnitude(*setup)
        assert float((stage.synthesize(stage.analyze(x), x.shape[1]) - x).abs().max()) < 1e-6
        assert stage(x).shape == (len(x), setup[0] // 2 + 1, stage.n_frames(x.shape[1]))
    gaps = Magnitude(8, 8, 8, "rectangular")
    z = torch.randn(1, 39)
    back = gaps.synthesize(gaps.analyze(z), 39)
    assert back.shape == z.shape
    assert torch.allclose(back[:, :36], z[:, :36], atol=1e-6)


def test_overlap_add_is_the_transpose_of_framing():
    stage = Magnitude(16, 12, 5).double()
    z, frames = torch.randn(2, 60, dtype=torch.float64), torch.randn(2, 13, 12, dtype=torch.float64)
    left, _ = stage.padding(60)
    back = overlap_add(frames, 5)[:, left : left + 60]
    assert float((stage.frames(z) * frames).sum()) == pytest.approx(float((z * back).sum()))


# --- masks, bounds, frozen, cuts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("setup", TRANSFORMS)
def test_mask_marks_exactly_the_frames_that_touch_valid_samples(setup: tuple):
    stage = Magnitude(*setup)
    n, left = 3000, setup[1] // 2 if setup[4] else 0
    valid = torch.zeros(2, n, dtype=torch.bool)
    valid[0, 700:1111] = True
    expected = [
        any(0 <= i < n and bool(valid[0, i]) for i in range(t * setup[2] - left, t * setup[2] - left + setup[1]))
        for t in range(stage.n_frames(n))
    ]
    mask = stage.mask(valid)
    assert mask.shape == (2, 1, stage.n_frames(n))
    assert mask[0, 0].tolist() == expected
    assert not mask[1].any()
    z = torch.randn(2, n) * valid
    assert float((stage(z) * ~mask).abs().max()) == 0
    assert not Pad(n + 10).mask(valid)[:, n:].any()


@pytest.mark.parametrize("name", EVERY)
def test_every_representation_keeps_its_bounds(name: str, x: Tensor):
    z = torch.cat([x, torch.zeros_like(x[:1]), torch.ones_like(x[:1]), torch.randn_like(x[:1]).clamp(-1, 1)])
    for stage in FRONTENDS[name](sample_rate=SR, n_samples=x.shape[1]):
        z = stage(z)
        low, high = stage.bounds
        assert torch.isfinite(z).all()
        assert float(z.min()) >= low - 1e-5
        assert float(z.max()) <= high + 1e-5
    relative_db = Decibel(1e-10, relative=True)
    assert relative_db.bounds == (-80.0, 0.0)


def test_fast_magnitude_is_the_plain_one(x: Tensor):
    for setup in TRANSFORMS:
        plain = Magnitude(*setup)
        fast = copy.deepcopy(plain).frozen()
        assert isinstance(fast, FastMagnitude)
        assert fast.frozen() is fast
        double = plain.double().frozen()
        assert double.window is plain.window
        assert (double.name, double.lipschitz, double.center) == (plain.name, plain.lipschitz, plain.center)
        plain.float()
        weight = torch.randn(plain(x).shape)
        results = []
        for stage in (plain, fast):
            z = x.clone().requires_grad_()
            y = stage(z)
            results.append((y.detach(), torch.autograd.grad((y * weight).sum(), z)[0]))
        assert torch.equal(results[0][0], results[1][0])
        assert relative(results[1][1], results[0][1]) < 1e-5


@pytest.mark.parametrize("center", [True, False])
def test_a_tail_that_no_frame_covers_has_no_gradient(center: bool):
    """16,000 samples, a window of 480 and a hop of 350: the last frame ends before the clip does."""
    z = torch.randn(2, 16_000, dtype=torch.float64, requires_grad=True)
    stage = Magnitude(512, 480, 350, center=center).double().frozen()
    (grad,) = torch.autograd.grad(stage(z).sum(), z)
    assert grad.shape == z.shape
    covered = stage.frames(torch.arange(16_000.0)).max().int() + 1
    assert torch.equal(grad[:, covered:], torch.zeros_like(grad[:, covered:]))
    assert covered == (16_000 - 10 if center else 16_000), "right edge of the last frame: 45 * 350 + 240"


@pytest.mark.filterwarnings("ignore:Empty filters detected")
@given(
    st.lists(st.integers(2, 40), min_size=3, max_size=3).map(sorted),
    st.integers(1, 150),
    st.sampled_from(sorted(WINDOWS)),
    st.booleans(),
    st.booleans(),
)
@example([14, 18, 20], 69, "hann", True, False)  # no frame covers the tail
@example([14, 18, 20], 69, "hann", True, True)
@settings(max_examples=40, deadline=None)
def test_frozen_computes_the_same_whatever_the_geometry(
    lengths: list[int], n_samples: int, window: str, center: bool, power_mel: bool
):
    hop_length, win_length, n_fft = lengths
    torch.manual_seed(0)
    mel = [Mel(SR, n_fft, 3)] if power_mel else []
    stages = [Magnitude(n_fft, win_length, hop_length, window, center), *mel, Log(1e-3)]
    victim = Victim(stages, TinyNet(3), classes="abc", sample_rate=SR, n_samples=n_samples).double().eval()
    x = torch.randn(2, n_samples, dtype=torch.float64)
    results = []
    for model in (victim, victim.frozen()):
        z = x.clone().requires_grad_()
        logits = model(z)
        results.append((logits.detach(), torch.autograd.grad(logits.square().sum(), z)[0]))
    (logits, grad), (fast_logits, fast_grad) = results
    assert torch.allclose(fast_logits, logits, rtol=1e-9, atol=1e-12)
    assert torch.allclose(fast_grad, grad, rtol=1e-6, atol=1e-9 * float(grad.abs().max()) + 1e-12)


class TinyNet(nn.Module):
    """Convolution, batch norm with statistics of its own, mean, linear."""

    def __init__(self, classes: int):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, classes)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, z: Tensor) -> Tensor:
        return self.out(self.norm(self.conv(z[:, None])).relu().mean((2, 3)))


@pytest.mark.parametrize("name", EVERY)
def test_every_cut_gives_the_same_logits_and_so_does_the_frozen_copy(name: str, x: Tensor):
    torch.manual_seed(0)
    stages = FRONTENDS[name](sample_rate=SR, n_samples=x.shape[1])
    victim = Victim(stages, TinyNet(4), classes="abcd", sample_rate=SR, n_samples=x.shape[1]).eval()
    frozen = victim.frozen()
    logits = victim(x)
    scale = float(logits.detach().abs().max())
    assert float((frozen(x) - logits).detach().abs().max()) < 1e-5 * scale
    for representation in victim.representations:
        for model in (victim, frozen):
            head, tail = model.split(representation)
            assert float((tail(head(x)) - logits).detach().abs().max()) < 1e-5 * scale
    gradients = []
    for model in (victim, frozen):
        z = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(model(z)[:, 0].sum(), z)[0])
    assert relative(gradients[1], gradients[0]) < 1e-4
    assert not any(p.requires_grad for p in frozen.parameters())
    with pytest.raises(ValueError, match="choices: waveform"):
        victim.split("spectrum")


def test_bad_settings_are_refused():
    for build in (
        lambda: Magnitude(512, 480, 0),
        lambda: Magnitude(256, 480, 160),
        lambda: Magnitude(512, 480, 160, "kaiser"),
        lambda: Mel(SR, 512, 40, 100, 50),
        lambda: Mel(SR, 512, 40, 0, 9000),
        lambda: Dct(41, 40),
        lambda: ClipNormalize("column"),
        lambda: FRONTENDS["log_mel"](sample_rate=SR, n_samples=SR, normalize="all"),
        lambda: FRONTENDS["log_mel"](sample_rate=SR, n_samples=SR, log="bels"),
    ):
        with pytest.raises(ValueError, match=r"need|unknown|must"):
            build()


def test_level_brings_every_clip_to_the_same_rms(clips) -> None:
    stage = Level(0.1)
    x = clips.waveforms(slice(4)) * torch.tensor([1.0, 0.3, 2.0, 0.01])[:, None]
    y = stage(x)
    assert ((y.square().mean(1).sqrt() - 0.1).abs() < 0.01).sum() >= 3
    torch.testing.assert_close(stage.inverse(y, x), x)
    assert not stage(torch.zeros(1, 100)).any()
    x64 = torch.randn(2, 50, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(stage, (x64,))


# --- front ends of speaker recognizers --------------------------------------------------------------------------------


def test_every_front_end_is_tested() -> None:
    assert set(FRONTENDS.names()) <= {*EVERY, *WITHOUT_STAGES}


@pytest.mark.parametrize("window", [1, 2, 4])
def test_deltas_are_librosas_with_held_ends(window: int) -> None:
    z = torch.randn(2, 5, 30, dtype=torch.float64)
    ours = Deltas(window)(z).numpy()
    first = librosa.feature.delta(z.numpy(), width=2 * window + 1, order=1, mode="nearest")
    second = librosa.feature.delta(first, width=2 * window + 1, order=1, mode="nearest")
    np.testing.assert_allclose(ours, np.concatenate([z.numpy(), first, second], 1), atol=1e-10)
    assert Deltas(window, order=1)(z).shape == (2, 10, 30)
    # The delta of a straight line is its slope, that of a parabola grows by its curvature.
    t = torch.arange(30, dtype=torch.float64)[None, None]
    inside = slice(2 * window, -2 * window)
    assert torch.allclose(Deltas(window)(3 * t)[0, 1:, inside], torch.tensor([[3.0], [0.0]], dtype=torch.float64))
    assert torch.allclose(Deltas(window)(t**2)[0, 2, inside], torch.tensor(2.0, dtype=torch.float64))


@pytest.mark.parametrize("frames", [5, 20, 299, 301, 450, 700])
def test_the_sliding_mean_is_that_of_the_window_around_each_frame(frames: int) -> None:
    z = torch.randn(2, 3, frames)
    expected = torch.empty_like(z)
    for t in range(frames):
        start = max(0, min(t - 150, frames - 300))
        expected[..., t] = z[..., t] - z[..., start : start + 300].mean(-1)
    torch.testing.assert_close(CepstralMean(300)(z), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(CepstralMean(0)(z), z - z.mean(-1, keepdim=True), atol=1e-5, rtol=1e-5)
    # A constant that a channel adds to all cepstra has no influence.
    torch.testing.assert_close(CepstralMean(300)(z + 5), CepstralMean(300)(z), atol=1e-5, rtol=1e-5)


def test_voiced_frames_are_the_loudest_in_time_order() -> None:
    z = torch.randn(4, 3, 20)
    for share, kept in ((0.5, 10), (0.7, 14), (0.01, 1), (0.55, 11), (1.0, 20)):
        y = Voiced(share)(z)
        assert y.shape == (4, 3, kept)
        for clip, chosen in zip(z, y, strict=True):
            index = sorted(sorted(range(20), key=lambda t: -clip[0, t])[:kept])
            assert torch.equal(chosen, clip[:, index])
    silence = torch.zeros(1, 3, 20)
    silence[:, 1] = torch.arange(20)
    assert Voiced(0.25)(silence)[0, 1].tolist() == [0, 1, 2, 3, 4]


def test_a_speaker_front_end_names_its_representations() -> None:
    names = {
        name: [stage.name for stage in FRONTENDS[name](sample_rate=SR, n_samples=SR, **options)]
        for name, options in (("audionet", {}), ("xvector", {"voiced": 0.5}), ("ivector", {}))
    }
    assert names["audionet"] == ["pre_emphasis", "magnitude", "mel", "log_mel"]
    assert names["xvector"] == ["magnitude", "mel", "log_mel", "raw", "cmvn", "final"]
    assert names["ivector"] == ["magnitude", "mel", "log_mel", "raw", "delta", "cmvn", "final"]
    whole = FRONTENDS["xvector"](sample_rate=SR, n_samples=SR)
    assert [stage.name for stage in whole][-1] == "cmvn"
    z = torch.randn(2, SR)
    assert Chain(whole)(z).shape == (2, 30, 101)
    assert Chain(FRONTENDS["ivector"](sample_rate=SR, n_samples=SR))(z).shape == (2, 72, 71)


def test_audionet_features_are_librosas(x: Tensor) -> None:
    ours = Chain(FRONTENDS["audionet"](sample_rate=SR, n_samples=x.shape[1]))(x)
    emphasized = librosa.effects.preemphasis(x.numpy(), coef=0.97, zi=np.zeros((len(x), 1)))
    power = librosa.feature.melspectrogram(
        y=emphasized, sr=SR, n_fft=1024, win_length=800, hop_length=160, n_mels=32, fmin=0, fmax=8000
    )
    assert relative(ours, torch.from_numpy(librosa.power_to_db(power, ref=1.0, amin=1e-10, top_db=None))) < 1e-3
