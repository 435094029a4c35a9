"""Clips at the sample rate and the length of another model, and models that judge clips of another one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from src import api as earshot
from src.datasets.decode import to_clip
from src.datasets.resample import resample
from src.datasets.source import Sound
from src.datasets.store import Clips
from src.evaluation import Judge
from src.stages.front_ends import log_mel
from src.victims.victim import Victim


def test_a_clip_at_its_own_rate_and_length_is_the_same(clips: Clips) -> None:
    assert resample(clips, clips.sample_rate) is clips
    assert resample(clips, clips.sample_rate, clips.n_samples) is clips


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_it_is_what_prepare_dataset_makes_of_the_wav(clips: Clips, rate: int) -> None:
    heard = resample(clips, rate)
    assert (heard.sample_rate, heard.n_samples) == (rate, rate)
    assert (heard.ids, heard.classes) == (clips.ids, clips.classes)
    assert heard.labels.equal(clips.labels)
    for i in range(3):
        x = clips.waveforms([i])[0].numpy()[:, None]
        samples, length = to_clip(Sound(x, clips.sample_rate), rate, rate)
        np.testing.assert_array_equal(heard.samples[i], samples)
        assert int(heard.lengths[i]) == length


def test_true_lengths_and_tones_survive() -> None:
    t = np.arange(16000) / 16000
    tone = np.where(t < 0.5, 8000 * np.sin(2 * np.pi * 1000 * t), 0).astype(np.int16)
    clips = Clips(tone[None], torch.tensor([0]), torch.tensor([8000]), ("tone",), ("a",), 16000)
    heard = resample(clips, 8000, 12000)
    assert heard.samples.shape == (1, 12000)
    assert heard.lengths.tolist() == [4000]
    spectrum = np.abs(np.fft.rfft(heard.samples[0, :4000].astype(float)))
    assert spectrum.argmax() == 500, "1000 Hz in half a second"
    assert not heard.samples[0, 8000:].any()


def test_a_crop_is_that_of_the_original() -> None:
    """The perturbation is louder than the clip, somewhere else: both are cropped where the clip is loudest."""
    clean, attacked = np.zeros((1, 1000), np.int16), np.zeros((1, 1000), np.int16)
    clean[0, 600:800], attacked[0, 600:800], attacked[0, 0:200] = 1000, 1000, 9000
    facts = (torch.tensor([0]), torch.tensor([900]), ("a",), ("x",), 1000)
    original, crafted = Clips(clean, *facts), Clips(attacked, *facts)
    heard = resample(crafted, 1000, 400, original)
    start = int(np.flatnonzero(resample(original, 1000, 400).samples[0])[0])
    np.testing.assert_array_equal(heard.samples, resample(original, 1000, 400).samples)
    assert heard.lengths.tolist() == [min(400, 900 - (600 - start))]


@pytest.fixture
def judges() -> dict[int, Victim]:
    """Random nets at two sample rates; the second has its classes in another order."""
    found = {}
    for rate, classes in ((16000, ("yes", "no", "up", "down")), (8000, ("down", "yes", "no", "up"))):
        with torch.random.fork_rng():
            torch.manual_seed(rate)
            net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool1d(4), torch.nn.Flatten(), torch.nn.Linear(160, 4))
            stages = log_mel(sample_rate=rate, n_samples=rate, normalize="clip_mean")
            victim = Victim(stages, net, classes=classes, sample_rate=rate, n_samples=rate)
            found[rate] = victim.eval()
    return found


def labels_of(victim: Victim, clips: Clips) -> Tensor:
    with torch.no_grad():
        return victim(clips.waveforms()).argmax(1)


def test_a_judge_hears_clips_at_its_own_sample_rate(clips: Clips, judges: dict[int, Victim]) -> None:
    substitute, judge = judges[16000], judges[8000]
    truth = labels_of(substitute, clips)
    clips = replace(clips, labels=truth)
    adversarial = earshot.attack(substitute, clips, "pgd", eps="10 dB", norm="l2", speech=False, targeted=True)
    rows = earshot.judge(judge, adversarial)
    names = [judge.classes[k] for k in labels_of(judge, resample(adversarial.clips, 8000))]
    assert [clips.classes[row["prediction_wav"]] for row in rows] == names
    clean = [judge.classes[k] for k in labels_of(judge, resample(clips, 8000))]
    assert [clips.classes[row["prediction"]] for row in rows] == clean
    assert len(set(names)) > 1
    with torch.no_grad():
        sure = judge(resample(clips, 8000).waveforms()).softmax(1).amax(1)
    torch.testing.assert_close(torch.tensor([row["clean_probability"] for row in rows]), sure, atol=1e-5, rtol=0)
    assert [row["correct"] for row in rows] == [clips.classes[k] == c for k, c in zip(truth, clean, strict=True)]


def test_a_judge_that_uses_a_mask_takes_clips_of_any_length(
    judges: dict[int, Victim], clips: Clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(judges[8000], torch.device("cpu"))
    assert judge.heard(clips).n_samples == 8000
    short = replace(clips, samples=clips.samples[:, :12000], lengths=torch.full((len(clips),), 12000))
    assert judge.heard(short).n_samples == 8000, "padded to the length that the model takes"
    assert judge.heard(short).lengths.tolist() == [6000] * len(clips)
    monkeypatch.setattr(Victim, "uses_mask", property(lambda self: True))
    assert judge.heard(short).n_samples == 6000
