"""Front ends of the sound-event networks: the values of librosa, other sample rates, and raw audio as the features."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import torch
from torch import Tensor

from src.datasets import store
from src.registry import FRONTENDS
from src.training.batches import fit_stages
from src.victims import checkpoint
from src.victims.chain import Chain
from src.victims.stage import WAVEFORM

RATE = 32000


def sounds(count: int, seconds: float = 1.0, rate: int = RATE) -> Tensor:
    """Noise whose level changes, one tone per clip, and digital silence at the end."""
    n = round(seconds * rate)
    t = torch.arange(n) / rate
    tones = 0.3 * torch.sin(2 * torch.pi * torch.linspace(300, 6000, count)[:, None] * t)
    x = (0.05 * torch.randn(count, n, generator=torch.Generator().manual_seed(0)) + tones) * (1 - t / seconds)
    x[:, -n // 4 :] = 0
    return x


def librosa_db(x: np.ndarray, rate: int, hop: int, f_max: float, top_db: float | None) -> Tensor:
    mel = librosa.feature.melspectrogram(
        y=x, sr=rate, n_fft=1024, hop_length=hop, n_mels=64, fmin=0.0, fmax=f_max, power=2.0, htk=False, norm="slaney"
    )
    clips = [librosa.power_to_db(clip, ref=np.max, amin=1e-10, top_db=top_db) for clip in mel]
    return torch.from_numpy(np.stack(clips))


@pytest.mark.parametrize("rate", [32000, 44100, 16000])
def test_input_of_the_iqbal_models_is_librosas(rate: int) -> None:
    x = sounds(3, rate=rate)
    ours = Chain(FRONTENDS["tagging_mel"](sample_rate=rate, n_samples=rate, normalize="none"))(x)
    peer = librosa_db(x.numpy(), rate, 512, min(16000.0, rate / 2), None)
    assert ours.shape == peer.shape == (3, 64, rate // 512 + 1)
    assert ours.amax((1, 2)).tolist() == [0, 0, 0]
    assert float(ours.min()) < -80, "the range is not limited"
    torch.testing.assert_close(ours, peer, atol=2e-2, rtol=1e-4)


def test_input_of_dense_mel_is_librosas() -> None:
    x = 0.5 * sounds(3) + 0.01
    stages = FRONTENDS["dense_mel"](sample_rate=RATE, n_samples=RATE)
    stages[0].fit(x)
    mean, std = float(x.mean()), float(x.std())
    peer = librosa_db(((x - mean) / std).numpy(), RATE, 128, 16000.0, 80.0)
    ours = Chain(stages)(x)
    assert ours.shape == peer.shape == (3, 64, RATE // 128 + 1)
    torch.testing.assert_close(ours, peer, atol=2e-2, rtol=1e-4)
    without = FRONTENDS["dense_mel"](sample_rate=RATE, n_samples=RATE, audio=False)
    assert [stage.name for stage in without] == ["magnitude", "mel", "log_mel"]
    assert [stage.name for stage in stages] == ["audio", "magnitude", "mel", "log_mel"]


def test_z_score_is_one_mean_and_deviation_and_can_be_left_out() -> None:
    x = sounds(4)
    stages = FRONTENDS["tagging_mel"](sample_rate=RATE, n_samples=RATE)
    features = Chain(stages[:-1])(x)
    stages[-1].fit(features)
    expected = (features - features.mean()) / features.std()
    torch.testing.assert_close(Chain(stages)(x), expected, atol=1e-4, rtol=1e-4)
    plain = FRONTENDS["tagging_mel"](sample_rate=RATE, n_samples=RATE, normalize="none")
    torch.testing.assert_close(Chain(plain)(x), features)


@pytest.mark.parametrize("front_end", ["tagging_mel", "dense_mel"])
def test_statistics_leave_padding_out(front_end: str) -> None:
    """Those of clips of different lengths are those of the same clips joined, where a mask is used; otherwise the
    padding is a part of the clips."""
    lengths = torch.tensor([8192, 20480, 32768])
    x = sounds(3, 1.024)
    x = torch.where(torch.arange(x.shape[1]) < lengths[:, None], x, 0.0)
    clips = store.Clips(store.to_int16(x.numpy()), torch.arange(3), lengths, ("a", "b", "c"), ("a", "b", "c"), RATE)
    stages = FRONTENDS[front_end](sample_rate=RATE, n_samples=x.shape[1], normalize="dataset")
    fit_stages(stages, clips, torch.device("cpu"), 0, uses_mask=True)
    samples = torch.cat([clips.waveforms(slice(i, i + 1))[0, : lengths[i]] for i in range(3)])
    if front_end == "dense_mel":
        assert float(stages[0].mean) == pytest.approx(float(samples.mean()), abs=1e-6)
        assert float(stages[0].std) == pytest.approx(float(samples.std()), rel=1e-4)
    alone = [Chain(stages[:-1])(clips.waveforms(slice(i, i + 1))[:, : lengths[i]]).flatten() for i in range(3)]
    assert float(stages[-1].mean) == pytest.approx(float(torch.cat(alone).mean()), rel=1e-3)
    assert float(stages[-1].std) == pytest.approx(float(torch.cat(alone).std()), rel=1e-3)
    heard = float(stages[-1].mean)
    fit_stages(stages, clips, torch.device("cpu"), 0)
    assert float(stages[-1].mean) < heard - 5


def test_raw_audio_are_the_features() -> None:
    assert FRONTENDS["waveform"](sample_rate=RATE, n_samples=RATE) == []
    victim = checkpoint.build(
        model="dense_wav", model_options={"width": 0.01}, classes="abc", sample_rate=RATE, n_samples=RATE
    ).eval()
    assert victim.representations == (WAVEFORM,)
    x = sounds(2)
    head, tail = victim.split(WAVEFORM)
    assert torch.equal(head(x), x)
    assert torch.equal(tail(head(x)), victim(x))
    assert victim.bounds(WAVEFORM) == (-1, 1)
    assert victim.lipschitz(WAVEFORM) == 1
    with pytest.raises(ValueError, match="no representation 'log_mel'"):
        victim.split("log_mel")
    (level,) = FRONTENDS["waveform"](sample_rate=RATE, n_samples=RATE, rms=0.1)
    assert level(x).square().mean(1).sqrt().tolist() == pytest.approx([0.1, 0.1], rel=1e-3)
