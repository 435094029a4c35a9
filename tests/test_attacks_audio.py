"""Attacks specific to audio: budgets in dB, bands, masking, playback, gains."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from src.attacks.audio.over_the_air import fft_length, play, playback
from src.attacks.audio.psychoacoustic import Masking
from src.attacks.controls.time_shuffled import shuffled
from src.budget import Budget
from src.datasets.store import FULL_SCALE, Clips, to_int16
from src.evaluation import AttackSettings, Crafter, with_options
from src.perception import snr
from src.random_streams import RandomStreams
from src.registry import ATTACKS, INVERSIONS
from src.threat import ThreatModel, norm_of
from src.victims.victim import Victim

RATE = 4000
TIME = 4096
AUDIO = ("psychoacoustic", "snr_pgd", "band_limited", "over_the_air", "time_shift", "gain_mask", "time_shuffled")
KEYS: dict[str, dict[str, object]] = {
    "psychoacoustic": {"n_fft": 512, "steps": 20, "masking_steps": 20},
    "snr_pgd": {"steps": 20, "snr_db": 15.0},
    "band_limited": {"low_hz": 500.0, "high_hz": 1500.0, "steps": 20},
    "over_the_air": {"steps": 10, "draws": 2, "low_hz": 100.0, "high_hz": 1800.0},
    "time_shift": {"steps": 10, "draws": 2},
    "gain_mask": {"n_fft": 256, "hop_length": 64, "steps": 60},
}


class Net(nn.Module):
    """Which of three bands is loudest: smooth, shift-tolerant, and beaten by putting sound into another band."""

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.stft(x, 128, 64, window=torch.hann_window(128), return_complex=True).abs().square().mean(-1)
        return 2 * (spectrum.reshape(len(x), -1)[:, 1:64].unflatten(1, (3, 21)).sum(-1) + 1e-4).log()


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    """Six clips of decaying tones over noise, in the middle of the three bands, and their labels."""
    torch.manual_seed(1)
    t = torch.arange(TIME) / RATE
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    pitch = 333 + 667 * y[:, None] + torch.rand(6, 1) * 50
    x = 0.3 * torch.sin(2 * math.pi * pitch * t) * torch.exp(-3 * t) + 0.02 * torch.randn(6, TIME)
    assert (Net()(x).argmax(1) == y).all()
    return x, y


def run(
    name: str,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    targeted: bool = False,
    ids: list[int] | None = None,
    **keys: object,
) -> Tensor:
    streams = RandomStreams(0, [str(i) for i in ids or range(len(x))], name)
    attack = with_options(name, {**KEYS.get(name, {}), **keys}, sample_rate=RATE)
    return attack(Net(), x, y, threat, rng=streams, targeted=targeted)


@pytest.mark.parametrize("name", AUDIO)
def test_legal_and_repeatable(name: str, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    mask = torch.arange(TIME) < torch.tensor([TIME, TIME - 500] * 3)[:, None]
    threat = ThreatModel("linf", torch.linspace(0.01, 0.04, 6), (-1.0, 1.0), mask)
    before = x.clone()
    x_adv = run(name, x, y, threat)
    assert torch.equal(x, before)
    assert threat.contains(x_adv, x).all()
    assert torch.equal(x_adv, run(name, x, y, threat))
    assert not x_adv.requires_grad


@pytest.mark.parametrize("name", AUDIO)
def test_the_batch_changes_nothing(name: str, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    threat = ThreatModel("linf", 0.02, (-1.0, 1.0))
    together = run(name, x, y, threat)
    alone = run(name, x[4:5], y[4:5], threat, ids=[4])
    assert norm_of(together[4:5] - alone, "l2") < 0.02 * norm_of(together[4:5] - x[4:5], "l2")


@pytest.mark.parametrize("name", [n for n in AUDIO if n != "time_shuffled"])
def test_enough_budget_fools_and_none_does_not(name: str, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    # Gains alone must take the tone away, and so need its whole size.
    gains = ThreatModel("l2", norm_of(x, "l2"), (-1.0, 1.0))
    threat = gains if name == "gain_mask" else ThreatModel("linf", 0.2, (-1.0, 1.0))
    keys: dict[str, object] = {"snr_db": 0.0} if name == "snr_pgd" else {}
    assert (Net()(run(name, x, y, threat, **keys)).argmax(1) != y).all()
    assert torch.equal(run(name, x, y, ThreatModel("linf", 0.0)), x)
    target = (y + 1) % 3
    threat = gains if name == "gain_mask" else ThreatModel("linf", 0.4, (-1.0, 1.0))
    keys = {"snr_db": -6.0} if name == "snr_pgd" else {}
    succeeded = Net()(run(name, x, target, threat, targeted=True, **keys)).argmax(1) == target
    # A band holds only one of the classes.
    assert succeeded[target == 1].all() if name == "band_limited" else succeeded.all()


def test_snr_budget_is_exact(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    x = x * torch.tensor([1.0, 0.1, 0.5, 1.0, 0.02, 1.0])[:, None]
    for norm in ("l2", "linf"):
        x_adv = run("snr_pgd", x, y, ThreatModel(norm, bounds=(-1.0, 1.0)), snr_db=40.0, early_exit=False)
        level = snr(x, x_adv)
        assert (level >= 40 - 0.01).all()
        if norm == "l2":
            torch.testing.assert_close(level, torch.full_like(level, 40.0), atol=0.01, rtol=0)
    # The threat's own budget still holds.
    threat = ThreatModel("l2", 1e-4)
    assert threat.contains(run("snr_pgd", x, y, threat), x).all()


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_nothing_outside_the_band(norm: str, inside: bool, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    x = x.double()
    threat = ThreatModel(norm, 0.01 if norm == "linf" else 0.5, (-1.0, 1.0))
    keys: dict[str, object] = {"low_hz": 700.0, "high_hz": 1300.0, "inside": inside, "early_exit": False}
    x_adv = ATTACKS["band_limited"](
        lambda x: Net()(x.float()), x, y, threat, rng=RandomStreams(0, "abcdef", ""), targeted=False,
        sample_rate=RATE, **keys,
    )  # fmt: skip
    power = torch.fft.rfft(x_adv - x).abs().square()
    frequency = torch.fft.rfftfreq(TIME, 1 / RATE)
    allowed = ((frequency >= 700) & (frequency <= 1300)) == inside
    leak = 10 * (power[:, ~allowed].sum(1) / power[:, allowed].sum(1)).log10()
    assert (leak < -60).all(), leak
    torch.testing.assert_close(norm_of(x_adv - x, norm), x.new_full((6,), float(threat.eps)))
    with pytest.raises(ValueError, match="no DFT frequency"):
        run("band_limited", x, y, threat, low_hz=700.5, high_hz=701.0)


def test_masking_stage_lowers_the_perturbation(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    threat = ThreatModel("linf", 0.2, (-1.0, 1.0))
    first = run("psychoacoustic", x, y, threat, masking_steps=0)
    both = run("psychoacoustic", x, y, threat, masking_steps=60)
    masking = Masking.of(x, RATE, 512)
    assert (Net()(both).argmax(1) != y).all()
    assert (masking.loss(both - x) < masking.loss(first - x)).all()
    assert (masking.share(both - x) < masking.share(first - x)).all()
    assert masking.share(torch.zeros_like(x)).max() == 0


def test_playback_is_delay_band_and_level() -> None:
    torch.manual_seed(0)
    x = torch.zeros(3, 2000)
    x[:, 800:900] = 0.1 * torch.randn(100)
    streams = RandomStreams(0, "abc", "")
    plain: dict[str, float] = {"shift_s": 0.1, "reverberation_s": 0.0, "low_hz": 0.0, "high_hz": 0.0, "level_db": 0.0}
    n = fft_length(x, RATE, 0.1, 0.0)
    out = play(x, playback(x, streams, sample_rate=RATE, **plain), n)  # type: ignore[arg-type]
    shifts = [int((row.abs() > 1e-5).nonzero()[0]) - int((x[0] != 0).nonzero()[0]) for row in out]
    assert len(set(shifts)) > 1
    assert max(map(abs, shifts)) <= 400
    for row, clip, shift in zip(out, x, shifts, strict=True):
        torch.testing.assert_close(row, clip.roll(shift), atol=1e-6, rtol=0)
    # Sound shifted out of the clip does not reappear at the other end.
    edge = torch.zeros(3, 2000)
    edge[:, :50] = 0.5
    moved = play(edge, playback(edge, streams, sample_rate=RATE, **plain), n)  # type: ignore[arg-type]
    assert moved[:, 600:].abs().max() < 1e-5
    # A room: the direct path first, a decaying tail after it.
    impulse = torch.zeros(3, 2000)
    impulse[:, 100] = 0.5
    room = {**plain, "shift_s": 0.0, "reverberation_s": 0.3}
    n = fft_length(impulse, RATE, 0.0, 0.3)
    played = play(impulse, playback(impulse, streams, sample_rate=RATE, **room), n)  # type: ignore[arg-type]
    assert played[:, :100].abs().max() < 1e-5
    torch.testing.assert_close(played[:, 100], impulse[:, 100], atol=1e-4, rtol=0)
    assert (played[:, 101:301].norm(dim=1) > played[:, 901:1101].norm(dim=1)).all()
    # Level: within 6 dB.
    level = playback(x, streams, sample_rate=RATE, **{**plain, "level_db": 6.0})  # type: ignore[arg-type]
    assert (20 * level.abs().log10()).abs().max() <= 6.001


def test_over_the_air_survives_playback_better_than_pgd(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    threat = ThreatModel("l2", 0.7 * norm_of(x, "l2"), (-1.0, 1.0))
    n = fft_length(x, RATE, 0.1, 0.3)

    def survival(x_adv: Tensor) -> float:
        streams, fooled = RandomStreams(9, [str(i) for i in range(len(x))], "judge"), []
        for _ in range(20):
            response = playback(
                x,
                streams,
                sample_rate=RATE,
                shift_s=0.1,
                reverberation_s=0.3,
                low_hz=100.0,
                high_hz=1800.0,
                level_db=6.0,
            )
            fooled.append((Net()(play(x_adv, response, n)).argmax(1) != y).float().mean())
        return float(torch.stack(fooled).mean())

    barely = ATTACKS["pgd"](Net(), x, y, threat, rng=RandomStreams(0, "abcdef", ""), targeted=False)
    assert survival(run("over_the_air", x, y, threat, steps=20)) > survival(barely)


def test_gains_leave_silence_silent_and_stay_below_the_largest(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    x = x.clone()
    x[:, 2500:3500] = 0
    x_adv = run("gain_mask", x, y, ThreatModel("l2", 100.0, (-1.0, 1.0)), max_gain_db=6.0, early_exit=False)
    # A frame reaches at most n_fft - 1 samples into the silence.
    assert x_adv[:, 2500 + 256 : 3500 - 256].abs().max() < 1e-6
    assert (x_adv.norm(dim=1) <= x.norm(dim=1) * 10 ** (6 / 20) * 1.001).all()
    assert (x_adv != x).any(1).all()


def test_shuffling_keeps_every_entry_and_the_mask() -> None:
    torch.manual_seed(0)
    delta = torch.randn(3, 2, 50)
    mask = (torch.arange(50) < torch.tensor([50, 30, 10])[:, None])[:, None]
    delta = delta * mask
    out = shuffled(delta, ThreatModel("l2", mask=mask), RandomStreams(0, "abc", ""))
    assert torch.equal(out * mask, out)
    torch.testing.assert_close(out.sort(-1).values, delta.sort(-1).values)
    assert not torch.equal(out, delta)
    # Time steps move as one: both channels stay together.
    pairs = {tuple(p) for p in delta[1, :, :30].T.tolist()}
    assert {tuple(p) for p in out[1, :, :30].T.tolist()} == pairs
    x, y = torch.zeros(2, TIME), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match="another"):
        run("time_shuffled", x, y, ThreatModel("l2", 1.0), attack="time_shuffled")


def test_the_band_is_that_of_the_data() -> None:
    """A band of 8 kHz data, through the program: its sample rate is the victim's."""
    rate, net = 8000, nn.Sequential(nn.Linear(4096, 3))
    victim = Victim([], net, classes="abc", sample_rate=rate, n_samples=4096)
    samples = to_int16(np.random.default_rng(0).normal(0, 0.1, (3, 4096)))
    with torch.no_grad():
        y = victim(torch.from_numpy(samples.astype(np.float32) / FULL_SCALE)).argmax(1)
    clips = Clips(samples, y, torch.full((3,), 4096), ("a", "b", "c"), ("a", "b", "c"), rate, False, "test")
    crafter = Crafter(victim, AttackSettings(speech=False), INVERSIONS["gain_mask"], torch.device("cpu"))
    options = {"low_hz": 2000.0, "high_hz": 3000.0, "steps": 3, "early_exit": False}
    crafted = crafter.craft(clips, "band_limited", options, Budget(0.01))
    delta = np.stack([clip.samples for clip in crafted]) - samples.astype(np.float64)
    power = np.abs(np.fft.rfft(delta)) ** 2
    frequency = np.fft.rfftfreq(4096, 1 / rate)
    assert power.sum() > 0
    assert power[:, (frequency >= 2000) & (frequency <= 3000)].sum() > 0.999 * power.sum()


def test_bands_that_cannot_be() -> None:
    x, y, threat = torch.zeros(2, 100), torch.zeros(2, dtype=torch.long), ThreatModel("linf", 0.1)
    with pytest.raises(ValueError, match="high_hz = 3000 is beyond half the sample rate of the clips, 2000 Hz"):
        run("band_limited", x, y, threat, low_hz=2000.0, high_hz=3000.0)
    with pytest.raises(ValueError, match="low_hz = 900 must be below high_hz = 900"):
        run("band_limited", x, y, threat, low_hz=900.0, high_hz=900.0)


def test_another_attack_shuffled_gets_the_sample_rate(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    x_adv = run("time_shuffled", x, y, ThreatModel("linf", 0.02), attack="time_shift")
    assert (norm_of(x_adv - x, "linf") > 0.01).all()


@pytest.mark.parametrize("name", ["psychoacoustic", "band_limited", "over_the_air", "time_shift", "gain_mask"])
def test_only_waveforms(name: str) -> None:
    with pytest.raises(ValueError, match="waveform"):
        run(name, torch.zeros(2, 3, 100), torch.zeros(2, dtype=torch.long), ThreatModel("linf", 0.1))
