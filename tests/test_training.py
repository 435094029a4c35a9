"""Training: learns, is reproducible, resumes bit-identically, penalizes the gradient, and never loses a file."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from src.datasets.noise import load_noise
from src.datasets.store import Clips
from src.registry import MODELS
from src.training import TrainingSettings, fit
from src.training.methods.gradient_penalty import gradient_penalty
from src.training.methods.learner import Learner
from src.training.methods.standard import standard
from src.training.optimizer import faster_in_channels_last
from src.training.run import TrainingRun
from src.training.settings import model_name
from src.victims import checkpoint
from src.victims.victim import Victim

FAST = TrainingSettings(epochs=3, batch_size=16, learning_rate=0.01, optimizer="adamw")
EVERYTHING = dataclasses.replace(
    FAST, epochs=4, schedule="cosine", warmup_epochs=0.5, time_shift=100, speed=0.1, level=6, equalizer=3, reverb=0.3,
    noise=0.5, vocal_tract=0.1, frequency_masks=1, time_masks=1, mixup=0.3, ema=0.9, label_smoothing=0.1,
    decay_all=False, gradient_clip=5.0, weight_decay=0.05, beta2=0.98,
)  # fmt: skip


def fresh(clips: Clips, model: str = "tc_resnet8", seed: int = 0, **front_end: object) -> Victim:
    torch.manual_seed(seed)
    return checkpoint.build(
        model=model,
        front_end_options={"hop_length": 320, **front_end},
        model_options={"widths": (4, 8)} if model == "resnet" else {},
        classes=clips.classes,
        sample_rate=clips.sample_rate,
        n_samples=clips.n_samples,
    )


def train(
    folder: Path, clips: Clips, training: TrainingSettings = FAST, victim: Victim | None = None, **kwargs: Any
) -> Any:
    return fit(
        victim or fresh(clips), clips, clips.select(range(0, len(clips), 3)), name="m", model_dir=folder,
        training=training, progress=False, **kwargs,
    )  # fmt: skip


def weights(path: Path) -> dict[str, Tensor]:
    return checkpoint.read(path)["state"]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_learns(tmp_path: Path, many_clips: Clips) -> None:
    facts = train(tmp_path, many_clips, dataclasses.replace(FAST, epochs=12))
    assert facts["history"][-1]["loss"] < 0.5 * facts["history"][0]["loss"]
    assert facts["validation_accuracy"] > 0.8
    victim, stored = checkpoint.load(tmp_path / "m.pt")
    assert stored == facts
    chosen = many_clips.select(range(0, len(many_clips), 3))
    right = (victim(chosen.waveforms()).argmax(1) == chosen.labels).float().mean()
    assert float(right) == pytest.approx(facts["validation_accuracy"])


def test_defaults_of_the_keyword_study() -> None:
    settings = TrainingSettings()
    assert (settings.log_interval, settings.scheduler_steps, settings.epochs, settings.use_cuda) == (
        100,
        (20, 40),
        30,
        True,
    )
    assert (settings.learning_rate, settings.weight_decay, settings.gradient_penalty) == (0.001, 0.0, (0.0,))
    assert (settings.lr_decay, settings.batch_size, settings.n_workers) == (0.0001, 64, 2)


@pytest.mark.parametrize("training", [FAST, EVERYTHING], ids=["plain", "everything"])
def test_same_seed_same_weights(tmp_path: Path, clips: Clips, training: TrainingSettings) -> None:
    for folder in ("a", "b"):
        train(tmp_path / folder, clips, training)
    assert same(weights(tmp_path / "a/m.pt"), weights(tmp_path / "b/m.pt"))
    train(tmp_path / "c", clips, dataclasses.replace(training, seed=1))
    assert not same(weights(tmp_path / "a/m.pt"), weights(tmp_path / "c/m.pt"))


class KilledError(BaseException):
    """As SIGINT: not an Exception."""


@pytest.mark.parametrize(("batch", "keep"), [(0, "best"), (6, "best"), (15, "best"), (11, "last")])
def test_resume_after_a_kill_is_bit_identical(
    tmp_path: Path, many_clips: Clips, monkeypatch: pytest.MonkeyPatch, batch: int, keep: str
) -> None:
    clips = many_clips.select(range(0, 96, 2))  # 48 clips: 4 batches of 12
    training = dataclasses.replace(EVERYTHING, keep=keep, batch_size=12)
    uninterrupted = train(tmp_path / "uninterrupted", clips, training)
    step, seen = TrainingRun._update_average, []

    def killed(self: TrainingRun) -> None:
        step(self)
        if len(seen) == batch:
            raise KilledError
        seen.append(1)

    monkeypatch.setattr(TrainingRun, "_update_average", killed)
    with pytest.raises(KilledError):
        train(tmp_path / "cut", clips, training)
    assert not (tmp_path / "cut/m.pt").exists()
    monkeypatch.setattr(TrainingRun, "_update_average", step)
    resumed = train(tmp_path / "cut", clips, training)
    assert resumed["history"] == uninterrupted["history"]
    assert same(weights(tmp_path / "uninterrupted/m.pt"), weights(tmp_path / "cut/m.pt"))


def test_resume_of_the_penalty_in_sgd(tmp_path: Path, clips: Clips, monkeypatch: pytest.MonkeyPatch) -> None:
    training = dataclasses.replace(FAST, optimizer="sgd", epochs=3)
    train(tmp_path / "uninterrupted", clips, training, gradient_penalty=1e-4)
    write, calls = checkpoint.write, []

    def killed(path: Path, content: Any) -> None:
        write(path, content)
        calls.append(path)
        if len(calls) == 2:
            raise KilledError

    monkeypatch.setattr(checkpoint, "write", killed)
    with pytest.raises(KilledError):
        train(tmp_path / "cut", clips, training, gradient_penalty=1e-4)
    monkeypatch.setattr(checkpoint, "write", write)
    train(tmp_path / "cut", clips, training, gradient_penalty=1e-4)
    assert same(weights(tmp_path / "uninterrupted/m.pt"), weights(tmp_path / "cut/m.pt"))


def test_finished_training_is_recognized(
    tmp_path: Path, clips: Clips, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(tmp_path, clips)
    stamp = (tmp_path / "m.pt").stat().st_mtime_ns
    monkeypatch.setattr(TrainingRun, "epoch", lambda *_: pytest.fail("trained again"))
    harmless = dataclasses.replace(FAST, log_interval=1, n_workers=0, use_cuda=False)
    assert train(tmp_path, clips, harmless) == first
    assert (tmp_path / "m.pt").stat().st_mtime_ns == stamp
    assert capsys.readouterr().err == ""


def test_other_settings_or_data_train_again(
    tmp_path: Path, clips: Clips, many_clips: Clips, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, clips)
    before = weights(tmp_path / "m.pt")
    train(tmp_path, clips, dataclasses.replace(FAST, learning_rate=0.02))
    assert "learning_rate 0.01 -> 0.02" in capsys.readouterr().err
    assert not same(before, weights(tmp_path / "m.pt"))
    train(tmp_path, many_clips, dataclasses.replace(FAST, learning_rate=0.02))
    assert "data.train" in capsys.readouterr().err


def test_old_model_stays_until_the_new_one_is_complete(
    tmp_path: Path, clips: Clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, clips)
    before = (tmp_path / "m.pt").read_bytes()
    monkeypatch.setattr(TrainingRun, "epoch", lambda *_: (_ for _ in ()).throw(KilledError))
    with pytest.raises(KilledError):
        train(tmp_path, clips, dataclasses.replace(FAST, seed=5))
    assert (tmp_path / "m.pt").read_bytes() == before


def test_full_disk_loses_nothing(tmp_path: Path, clips: Clips, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, clips)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path, clips, dataclasses.replace(FAST, seed=5))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_damaged_files_are_replaced(tmp_path: Path, clips: Clips) -> None:
    train(tmp_path / "a", clips)
    for name in ("m.pt", "m.last.state"):
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / name).write_bytes(b"half a file")
    train(tmp_path / "b", clips)
    assert same(weights(tmp_path / "a/m.pt"), weights(tmp_path / "b/m.pt"))


def test_state_is_no_model(tmp_path: Path, clips: Clips) -> None:
    train(tmp_path, clips)
    assert [path.name for path in tmp_path.glob("*.pt")] == ["m.pt"]
    assert (tmp_path / "m.last.state").is_file()


def gradient_size(path: Path, clips: Clips, stage: str) -> float:
    victim, _ = checkpoint.load(path)
    head, tail = victim.split(stage)
    x = head(clips.waveforms()).detach().requires_grad_()
    loss = torch.nn.functional.cross_entropy(tail(x), clips.labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    return float(gradient.flatten(1).abs().sum(1).mean())


@pytest.mark.parametrize("stage", ["auto", "log_mel", "waveform"])
def test_penalty_shrinks_the_input_gradient(tmp_path: Path, clips: Clips, stage: str) -> None:
    training = dataclasses.replace(FAST, epochs=8, stage=stage, keep="last")
    place = "log_mel" if stage == "auto" else stage
    sizes = []
    for penalty in (0.0, 0.5 if stage != "waveform" else 1e-3):
        victim = fresh(clips, "resnet")
        train(tmp_path / str(penalty), clips, training, victim, gradient_penalty=penalty)
        sizes.append(gradient_size(tmp_path / str(penalty) / "m.pt", clips, place))
    assert sizes[1] < 0.5 * sizes[0]


def test_penalty_through_the_front_end_survives_digital_silence(tmp_path: Path, clips: Clips) -> None:
    samples = clips.samples.copy()
    samples[:, 8000:] = 0
    silent = dataclasses.replace(clips, samples=samples)
    training = dataclasses.replace(FAST, epochs=1, stage="waveform")
    train(tmp_path, silent, training, fresh(silent, "resnet"), gradient_penalty=1e-4)
    assert all(value.isfinite().all() for value in weights(tmp_path / "m.pt").values())


def test_penalty_of_a_linear_model_is_known() -> None:
    """Two classes, logits (w.x, 0): d CE/dx = -(1 - p) w for label 0, so its L1 norm is (1 - p) ||w||_1."""
    w = torch.tensor([0.5, -2.0, 1.0])

    def model(x: Tensor) -> Tensor:
        return torch.stack([x @ w, torch.zeros(len(x))], 1)

    x, y = torch.randn(5, 3), torch.tensor([[1.0, 0.0]]).expand(5, 2)
    p = torch.sigmoid(x @ w)
    learner = Learner(model, model, torch.nn.Identity(), (-1.0, 1.0), torch.Generator(), 0.0)
    expected = standard(learner, x, y) + 0.3 * ((1 - p) * w.abs().sum()).mean()
    torch.testing.assert_close(gradient_penalty(learner, x, y, weight=0.3), expected)
    assert gradient_penalty(learner, x, y, weight=0.0) == standard(learner, x, y)


def test_dataset_statistics_come_from_the_training_clips(tmp_path: Path, clips: Clips) -> None:
    victim = fresh(clips, "tc_resnet8")
    assert victim.representations[-1] == "normalize"
    train(tmp_path, clips, dataclasses.replace(FAST, epochs=1), victim)
    back, _ = checkpoint.load(tmp_path / "m.pt")
    features = back.split("normalize")[0](clips.waveforms())
    torch.testing.assert_close(features.mean((0, 2)), torch.zeros(40), atol=1e-3, rtol=0)
    torch.testing.assert_close(features.std((0, 2)), torch.ones(40), atol=1e-3, rtol=0)


def test_cached_features_change_nothing(tmp_path: Path, clips: Clips, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = train(tmp_path / "a", clips)
    monkeypatch.setattr("src.training.batches.CACHE_BYTES", 0)
    each_time = train(tmp_path / "b", clips)
    assert each_time["history"][0]["loss"] == pytest.approx(cached["history"][0]["loss"], rel=1e-3)


def test_not_a_number_stops_with_a_reason(tmp_path: Path, clips: Clips) -> None:
    training = dataclasses.replace(FAST, learning_rate=1e18, optimizer="sgd")
    with pytest.raises(ValueError, match="lower learning_rate"):
        train(tmp_path, clips, training)
    assert not (tmp_path / "m.pt").exists()


def test_penalty_stage_must_exist(tmp_path: Path, clips: Clips) -> None:
    with pytest.raises(ValueError, match="no representation 'mell'"):
        train(tmp_path, clips, dataclasses.replace(FAST, stage="mell"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"gradient_penalty": ()}, "at least one"),
        ({"gradient_penalty": (0.1, 0.1)}, "twice"),
        ({"noise_snr": (10.0, 5.0)}, "above"),
        ({"ema": 1.0}, "below 1"),
    ],
)
def test_bad_settings(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**keys)


def test_step_schedule() -> None:
    training = TrainingSettings(learning_rate=0.1, lr_decay=0.1, scheduler_steps=(2, 4))
    rates = [training.rate(epoch) for epoch in range(6)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_the_published_schedule_of_sound_events_can_be_written() -> None:
    """Adam at 5e-4, times 0.9 every 2 of 40 epochs, mixup with alpha 1 (Iqbal et al. 2018)."""
    steps = tuple(range(2, 40, 2))
    training = TrainingSettings(
        learning_rate=5e-4, lr_decay=0.9, scheduler_steps=steps, epochs=40, batch_size=128, mixup=1.0
    )
    assert [training.rate(epoch) for epoch in range(40)] == pytest.approx([5e-4 * 0.9 ** (n // 2) for n in range(40)])
    assert (training.optimizer, training.schedule) == ("adam", "step")


def test_cosine_schedule_with_warm_up() -> None:
    training = TrainingSettings(learning_rate=0.1, schedule="cosine", warmup_epochs=2.0, epochs=10)
    assert training.rate(0) == 0
    assert training.rate(1) == pytest.approx(0.05)
    assert training.rate(2) == pytest.approx(0.1)
    assert training.rate(6) == pytest.approx(0.05)
    assert training.rate(10) == pytest.approx(0)


def test_names() -> None:
    assert [model_name("cnn", value) for value in (0, 1e-6, 0.1)] == ["cnn", "cnn_penalty_1e-06", "cnn_penalty_0.1"]


def test_noise_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "long.wav", 0.1 * rng.standard_normal((40000, 2)), 16000)
    soundfile.write(tmp_path / "short.wav", 0.1 * rng.standard_normal(3000), 8000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(20000), 16000)
    (tmp_path / "README.md").write_text("not sound")
    noise = load_noise(tmp_path, 16000, 16000)
    assert noise.shape == (3, 16000)
    assert (noise.square().mean(1) > 1e-4).all()
    with pytest.raises(FileNotFoundError, match="noise_dir"):
        load_noise(tmp_path / "none", 16000, 16000)
    (tmp_path / "bad.wav").write_text("text")
    with pytest.raises(ValueError, match=r"bad\.wav"):
        load_noise(tmp_path, 16000, 16000)


def test_memory_format_avoids_the_broken_convolution(clips: Clips) -> None:
    """A strided 1x1 convolution of 4 channels in channels_last corrupts memory in torch 2.11."""
    assert not faster_in_channels_last(fresh(clips, "resnet").classifier)
    assert not faster_in_channels_last(fresh(clips, "bc_resnet").classifier)
    assert faster_in_channels_last(MODELS["resnet"](n_classes=4, shape=(40, 101)))
