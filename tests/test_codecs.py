"""Codecs: repeatable, aligned, of the exact length, alone or in threads; limits and missing libraries in one line."""

from __future__ import annotations

import copy
import io
import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor
from torchaudio.functional import resample

from src.defenses import codec
from src.registry import DEFENSES
from src.victims import checkpoint
from src.victims.adaptive import Bpda
from tests.conftest import built_defense

CASES = [
    ("mp3", 16000, {}),
    ("mp3", 8000, {}),
    ("mp3_vbr", 16000, {}),
    ("aac", 16000, {}),
    ("aac_vbr", 16000, {}),
    ("opus", 16000, {}),
    ("opus", 8000, {}),
    ("opus", 16000, {"bit_rate": 20000}),
    ("speex", 16000, {}),
    ("speex", 8000, {"bit_rate": 5000}),
    ("speex", 16000, {"bit_rate": 43000}),
    ("amr", 16000, {}),
    ("amr", 16000, {"bit_rate": 23850}),
    ("amr", 8000, {"bit_rate": 6700}),
]
LIBRARIES = {"opus": "libopus0", "speex": "libspeex1", "amr": "libvo-amrwbenc0"}


def at_rate(clips, rate: int, some: slice) -> Tensor:
    x = clips.waveforms(some)
    return x if rate == clips.sample_rate else resample(x, clips.sample_rate, rate)


def band(x: Tensor, rate: int, low: float, high: float) -> Tensor:
    hz = torch.fft.rfftfreq(x.shape[-1], 1 / rate)
    return torch.fft.irfft(torch.fft.rfft(x) * ((hz >= low) & (hz < high)), x.shape[-1])


def lag(x: Tensor, y: Tensor) -> int:
    """Samples by which y comes late, where the cross-correlation of all clips together is largest."""
    n = 2 * x.shape[-1]
    correlation = torch.fft.irfft((torch.fft.rfft(y, n) * torch.fft.rfft(x, n).conj()).sum(0), n)
    best = int(correlation.argmax())
    return best if best < n // 2 else best - n


@pytest.mark.parametrize(("name", "rate", "options"), CASES)
def test_repeats_alone_in_threads_and_at_any_length(
    name: str, rate: int, options: dict[str, int], clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = built_defense(name, rate, **options)
    x = at_rate(clips, rate, slice(0, 4))[:, : rate // 2]
    y = stage(x)
    monkeypatch.setattr(codec, "processors", lambda: 1)
    assert torch.equal(stage(x), y), "the same without threads"
    assert torch.equal(stage(x[2:3]), y[2:3]), "the same alone"
    assert torch.equal(copy.deepcopy(stage)(x.double()), y.double())
    assert (y != x).any()
    assert y.abs().max() <= 1
    for n in (0, 1, 33, 320, 1601):
        assert stage(x[:1, :n]).shape == (1, n)
    assert stage(x[:0]).shape == x[:0].shape


@pytest.mark.parametrize(("name", "rate", "options"), CASES)
def test_aligned_by_cross_correlation(name: str, rate: int, options: dict[str, int], clips) -> None:
    """Between 1.2 and 3 kHz: below, the codecs' high-pass filters advance the phase."""
    stage = built_defense(name, rate, **options)
    x = at_rate(clips, rate, slice(0, 16, 2))
    y = stage(x)
    x, y = band(x, rate, 1200, 3000), band(y, rate, 1200, 3000)
    # At its lowest rates Opus works at 8 kHz inside, and resampling leaves half a sample.
    fraction = (name, rate, options) == ("opus", 16000, {})
    assert lag(x, y) in ((-1, 0) if fraction else (0,))
    assert lag(x, torch.roll(y, 1, 1)) == lag(x, y) + 1, "the measure sees a single sample"


@pytest.mark.parametrize("name", sorted({case[0] for case in CASES}))
def test_full_scale_does_not_wrap(name: str) -> None:
    """A known fault elsewhere: +1.0 as a 16-bit sample became -1.0."""
    assert codec.to_samples(torch.tensor([[1.0, -1.0, 3.0, 0.5]])).tolist() == [[32767, -32768, 32767, 16384]]
    x = torch.sin(2 * torch.pi * 250 * torch.arange(8000) / 16000)[None]
    assert x.max() == 1
    y = built_defense(name)(x)
    inner = slice(2000, 7000)
    assert torch.corrcoef(torch.cat([x, y])[:, inner])[0, 1] > 0.85


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("mp3", 8000, 64000), ("aac", 8000, 64000), ("opus", 6000, 40000), ("speex", 5000, 43000), ("amr", 6600, 23850)],
)
def test_more_bits_are_nearer(name: str, low: int, high: int, clips) -> None:
    x = clips.waveforms(slice(0, 4))
    errors = [float((built_defense(name, bit_rate=rate)(x) - x).norm()) for rate in (low, high)]
    assert errors[1] < 0.9 * errors[0]


def test_a_better_quality_is_nearer(clips) -> None:
    x = clips.waveforms(slice(0, 4))
    for name, worse, better in (("mp3_vbr", 9, 0), ("aac_vbr", 1, 5)):
        errors = [(DEFENSES[name](sample_rate=16000, quality=q)(x) - x).norm(dim=1) for q in (worse, better)]
        assert 20 * (errors[0] / errors[1]).log10().mean() > 5, "dB"


@pytest.mark.parametrize(
    ("name", "rate", "options", "message"),
    [
        ("mp3", 12345, {}, r"mp3 has no sample rate 12345 \(choices: 8000, 11025,"),
        ("mp3", 16000, {"bit_rate": 25000}, r"mp3 has no bit rate 25000 \(choices: 8000, 16000, 24000, .*, 160000\)"),
        ("aac", 16000, {"bit_rate": 97000}, r"aac has no bit rate 97000 \(choices: 1000 to 96000\)"),
        ("aac_vbr", 12345, {}, "aac_vbr has no sample rate 12345"),
        ("opus", 22050, {}, r"opus has no sample rate 22050 \(choices: 8000, 12000, 16000, 24000, 48000\)"),
        ("opus", 16000, {"bit_rate": 100}, r"opus has no bit rate 100 \(choices: 500 to 510000\)"),
        ("speex", 22050, {}, r"speex has no sample rate 22050 \(choices: 8000, 16000, 32000\)"),
        ("speex", 16000, {"bit_rate": 100}, r"speex has no bit rate 100 or below \(choices: 39\d\d, .*, 42200\)"),
        ("amr", 48000, {}, r"amr has no sample rate 48000 \(choices: 8000, 16000\)"),
        ("amr", 16000, {"bit_rate": 8000}, r"amr at 16000 Hz has no bit rate 8000 \(choices: 6600, 8850, .*, 23850\)"),
        ("amr", 8000, {}, r"amr at 8000 Hz has no bit rate 6600 \(choices: 4750, .*, 12200\)"),
    ],
)
def test_what_a_codec_does_not_have(name: str, rate: int, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        built_defense(name, rate, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted(LIBRARIES))
def test_a_missing_library_names_its_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(file: str) -> None:
        raise OSError(f"{file}: cannot open shared object file")

    monkeypatch.setattr(codec.ctypes, "CDLL", missing)
    codec.library.cache_clear()
    with pytest.raises(codec.MissingLibraryError, match=f"Debian package {LIBRARIES[name]} ") as error:
        DEFENSES[name](sample_rate=16000)
    assert "\n" not in str(error.value)
    codec.library.cache_clear()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see the memory of the process")
@pytest.mark.parametrize(("name", "rate", "options"), [c for c in CASES if c[0] in LIBRARIES and len(c[2]) < 2])
def test_states_are_freed(name: str, rate: int, options: dict[str, int]) -> None:
    stage = built_defense(name, rate, **options)
    samples = np.zeros(320, np.int16)
    for _ in range(50):
        stage.round_trip(samples)
    before = resident_bytes()
    for _ in range(300):
        stage.round_trip(samples)
    assert resident_bytes() - before < 2e6, "a state has more than 10 kB"


def test_mp3_is_what_a_file_of_it_plays(clips) -> None:
    """The same encoder, muxed into a file and read back by the container's own rules for the delay."""
    x = clips.waveforms(slice(1))
    file = io.BytesIO()
    with av.open(file, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=16000, layout="mono")
        stream.bit_rate = 24000
        frame = av.AudioFrame.from_ndarray(codec.to_samples(x), format="s16p", layout="mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    file.seek(0)
    with av.open(file) as container:
        played = np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])
    n = min(len(played), x.shape[-1])
    np.testing.assert_array_equal(built_defense("mp3")(x)[0, :n].numpy(), played[:n])


def test_amr_is_what_another_decoder_plays(clips) -> None:
    """FFmpeg's own decoder of what OpenCORE's encoder gives."""
    x = at_rate(clips, 8000, slice(1))
    stage = built_defense("amr", 8000, bit_rate=12200)
    encoder, decoder = (av.Codec(*c).create() for c in (("libopencore_amrnb", "w"), ("amrnb", "r")))
    for context in (encoder, decoder):
        context.sample_rate, context.layout = 8000, "mono"
    encoder.format, encoder.bit_rate = "s16", 12200
    frame = av.AudioFrame.from_ndarray(np.pad(codec.to_samples(x), ((0, 0), (0, 160))), format="s16", layout="mono")
    frame.sample_rate = 8000
    packets = [*encoder.encode(frame), *encoder.encode(None)]
    played = np.concatenate([f.to_ndarray().reshape(-1) for packet in packets for f in decoder.decode(packet)])
    ours = stage(x)[0].numpy()
    played = played[40:][: len(ours)]
    assert np.linalg.norm(played - ours[: len(played)]) < 0.15 * np.linalg.norm(ours)


def test_attacks_get_the_fitted_gain(clips) -> None:
    stage = built_defense("mp3")
    x = clips.waveforms(slice(2)).requires_grad_()
    wrapped = Bpda(stage)
    out = wrapped(x)
    assert torch.equal(out, stage(x))
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    (grad,) = torch.autograd.grad((out * direction).sum(), x)
    kept, lost = (float(band(grad, 16000, *edges).norm()) for edges in ((300, 3000), (7000, 8000)))
    assert kept > 10 * lost, "MP3 at 24 kb/s drops what lies above 6 kHz, and so does the gradient"


def test_behind_a_codec_a_model_is_copied_and_saved(tmp_path: Path, clips) -> None:
    victim = checkpoint.build(model="bc_resnet", classes=list("abcd"), sample_rate=16000, n_samples=16000).eval()
    defended = checkpoint.defend(victim, [{"name": "aac_vbr"}, {"name": "mp3", "options": {"bit_rate": 32000}}])
    x = clips.waveforms(slice(2))
    torch.testing.assert_close(defended.frozen()(x), defended(x), rtol=1e-4, atol=1e-4)
    checkpoint.save(tmp_path / "m.pt", defended, {})
    assert torch.equal(checkpoint.load(tmp_path / "m.pt")[0](x), defended(x))
