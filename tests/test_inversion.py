"""Inversions: what each preserves at every representation, the same result in any batch, convergence."""

from __future__ import annotations

import librosa
import pytest
import torch
from torch import Tensor

from src.inversion.griffin_lim import retrieve_phase
from src.inversion.nnls import solver
from src.perception import snr
from src.random_streams import HEAD, RandomStreams
from src.registry import DEFENSES, FRONTENDS, INVERSIONS
from src.stages.magnitude import Magnitude
from src.stages.mel import Mel
from src.victims.adaptive import once
from src.victims.chain import Chain

SR = 16000
ALL = ("clean_phase", "gain_mask", "griffin_lim", "nnls")
HEADS = {
    "log_mel": {"normalize": "dataset_band"},
    "log_mel db": {"log": "db", "normalize": "none"},
    "log_mel db_max": {"log": "db_max", "normalize": "clip_mean"},
    "linear_mel": {"n_fft": 512},
    "mfcc": {},
    "filterbank": {},
}


def streams(n: int, seed: int = 0) -> RandomStreams:
    return RandomStreams(seed, [str(i) for i in range(n)], "inversion")


def head_of(name: str) -> Chain:
    return Chain(FRONTENDS[name.split()[0]](sample_rate=SR, n_samples=SR, **HEADS[name]))


@pytest.fixture(scope="module")
def x(clips) -> Tensor:
    return clips.waveforms()[::4]


def test_registered():
    assert tuple(INVERSIONS.names()) == ALL


@pytest.mark.parametrize("name", HEADS)
def test_gain_mask_returns_the_clip_when_nothing_changed(name: str, x: Tensor):
    chain = head_of(name)
    for cut in range(len(chain.stages) + 1):
        head = Chain(list(chain.stages)[:cut])
        back = INVERSIONS["gain_mask"](head, head(x), x, rng=streams(len(x)))
        assert back.shape == x.shape
        assert float(snr(x, back).min()) > 90
    double = head_of(name).double()
    back = INVERSIONS["gain_mask"](double, double(x.double()), x.double(), rng=streams(len(x)))
    assert float(snr(x.double(), back).min()) > 200


@pytest.mark.parametrize("inversion", ALL)
@pytest.mark.parametrize("name", HEADS)
def test_audio_sounds_like_its_representation(name: str, inversion: str, x: Tensor):
    """From every cut: the right shape, finite, and nearer to the wanted features than silence or another clip is."""
    chain = head_of(name)
    x = x[:2]
    for cut in range(len(chain.stages) + 1):
        head = Chain(list(chain.stages)[:cut])
        z = head(x)
        audio = INVERSIONS[inversion](head, z, x, rng=streams(len(x)))
        assert audio.shape == x.shape
        assert torch.isfinite(audio).all()
        if cut == 0:
            assert torch.equal(audio, z)
        error, other = (head(audio) - z).flatten(1).norm(dim=1), (head(x.flip(0)) - z).flatten(1).norm(dim=1)
        assert bool((error < 0.75 * other).all())


@pytest.mark.parametrize("inversion", ALL)
def test_a_tone_stays_a_tone(inversion: str):
    t = torch.arange(SR) / SR
    x = 0.5 * torch.sin(2 * torch.pi * 1000 * t)[None]
    head = Chain([Magnitude(512, 512, 128), Mel(SR, 512, 64)])
    audio = INVERSIONS[inversion](head, head(x), x, rng=streams(1))
    spectrum = torch.fft.rfft(audio[0]).abs().square()
    assert abs(int(spectrum.argmax()) - 1000) <= 20
    assert float(spectrum[900:1100].sum() / spectrum.sum()) > 0.95
    assert float(audio.square().sum() / x.square().sum()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("inversion", ALL)
def test_same_bytes_again_and_whatever_the_batch(inversion: str, x: Tensor):
    head = head_of("log_mel")
    z = head(x)
    z = z + 0.1 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    invert = INVERSIONS[inversion]
    batch = invert(head, z, x, rng=streams(len(x)))
    assert torch.equal(batch, invert(head, z, x, rng=streams(len(x))))
    for i in range(len(x)):
        single = invert(head, z[i : i + 1], x[i : i + 1], rng=RandomStreams(0, [str(i)], "inversion"))
        assert torch.equal(single[0], batch[i])
    if inversion in ("griffin_lim", "nnls"):
        assert not torch.equal(batch, invert(head, z, x, rng=streams(len(x), seed=1)))


@pytest.mark.parametrize("inversion", ALL)
def test_silence_stays_silent(inversion: str):
    x = torch.zeros(1, SR)
    head = head_of("log_mel")
    audio = INVERSIONS[inversion](head, head(x), x, rng=streams(1))
    assert float(audio.abs().max()) < 1e-4


def test_gain_mask_turns_a_band_up_and_no_other(x: Tensor):
    head = Chain([Magnitude(512, 512, 128), Mel(SR, 512, 40, power=2)])
    z = head(x)
    z[:, 20] *= 4
    changed = head(INVERSIONS["gain_mask"](head, z, x, rng=streams(len(x))))
    ratio = (changed / head(x).clamp_min(1e-12)).median(-1).values
    assert bool((ratio[:, 20] > 1.5).all())
    assert torch.allclose(ratio[:, :18], torch.ones(1), atol=0.02)
    assert torch.allclose(ratio[:, 23:], torch.ones(1), atol=0.02)


def test_quality_on_clean_clips(x: Tensor):
    """The clean phase grows better with the number of bands, and beats a random one by far."""
    snr_db = {}
    for n_mels in (40, 64, 128):
        head = Chain([Magnitude(512, 512, 128), Mel(SR, 512, n_mels)])
        for inversion in ("clean_phase", "griffin_lim"):
            audio = INVERSIONS[inversion](head, head(x), x, rng=streams(len(x)))
            snr_db[inversion, n_mels] = float(snr(x, audio).mean())
    assert 10 < snr_db["clean_phase", 40] < snr_db["clean_phase", 64] < snr_db["clean_phase", 128]
    assert snr_db["griffin_lim", 128] < 5


def consistency(stage: Magnitude, audio: Tensor, target: Tensor) -> float:
    return float((stage(audio) - target).norm() / target.norm())


def test_griffin_lim_converges_and_momentum_helps(x: Tensor):
    stage = Magnitude(512, 480, 160)
    target = stage(x)
    plain, fast = (
        [
            consistency(stage, retrieve_phase(stage, target, x.shape[1], streams(len(x)), iterations, momentum), target)
            for iterations in (0, 4, 16, 64)
        ]
        for momentum in (0.0, 0.99)
    )
    assert plain == sorted(plain, reverse=True)
    assert fast == sorted(fast, reverse=True)
    assert fast[0] == plain[0]
    assert fast[-1] < plain[-1] < 0.5 * plain[0]


def test_nnls_reaches_an_attainable_target_and_the_optimum_of_another():
    filters = torch.from_numpy(librosa.filters.mel(sr=SR, n_fft=512, n_mels=40)).double()
    truth = torch.rand(2, 257, 30, dtype=torch.float64) ** 4
    target = filters @ truth
    s = solver(filters, 300)(target)
    assert float(s.min()) >= 0
    assert float((filters @ s - target).norm() / target.norm()) < 1e-4
    peer = torch.from_numpy(librosa.util.nnls(filters.numpy(), target.numpy()))
    assert float((filters @ solver(filters, 30)(target) - target).norm()) < float((filters @ peer - target).norm())

    # Unattainable: isolated bands. The conditions of Karush, Kuhn and Tucker hold at the optimum.
    scaled = filters / filters.norm(dim=1, keepdim=True)
    target = torch.zeros(1, 40, 8, dtype=torch.float64)
    target[:, 5::7] = 1
    s = solver(scaled, 3000)(target)
    gradient = scaled.T @ (scaled @ s - target)
    assert float(gradient.min()) > -1e-6
    assert float((gradient * s).abs().max()) < 1e-6
    assert float((scaled @ s - target).norm()) > 0.1


@pytest.mark.parametrize("inversion", ["gain_mask", "griffin_lim"])
def test_a_random_stage_before_the_representation_is_drawn_as_it_was(inversion: str, x: Tensor) -> None:
    """From the examples' own streams: the clip comes back, whatever the state of torch's global stream."""
    random = DEFENSES["noise_at_snr"](sample_rate=SR, snr_db=10.0)
    head, x = Chain([random, *head_of("mfcc").stages][:4]), x[:3]
    ids = [str(i) for i in range(3)]
    z = once(head, x, RandomStreams(0, ids, HEAD))
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append(INVERSIONS[inversion](head, z, x, rng=streams(3)))
    assert torch.equal(*made)
    if inversion == "gain_mask":  # the noisy clip itself: a defense has no inverse but the identity
        noisy = once(Chain([random]), x, RandomStreams(0, ids, HEAD))
        assert float(snr(noisy, made[0]).min()) > 60
