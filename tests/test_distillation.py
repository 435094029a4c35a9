"""Distillation: the loss, what the teacher hears, and what a student remembers of its teacher."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import nn

from src import config
from src.datasets.store import Clips
from src.files import sha256_of
from src.registry import METHODS
from src.training import TrainingSettings, fit, loop
from src.training.batches import Augmentation, Source, batches, representations
from src.training.methods.learner import Learner
from src.training.settings import model_name
from src.training.teacher import Teacher, load_teacher
from src.victims import checkpoint
from src.victims.chain import Chain, with_lengths
from src.victims.victim import Victim
from tests.conftest import WORDS, call

CPU = torch.device("cpu")
OPTIONS = {"teacher": "teacher"}


def build(
    clips: Clips, seed: int = 0, front_end: str = "log_mel", masked_pooling: bool = False, **options: object
) -> Victim:
    """A small net; the options are those of its front end."""
    torch.manual_seed(seed)
    return checkpoint.build(
        model="resnet", front_end=front_end, classes=clips.classes, sample_rate=clips.sample_rate,
        n_samples=clips.n_samples, model_options={"widths": (8, 16), "masked_pooling": masked_pooling},
        front_end_options={"hop_length": 320, **options},
    )  # fmt: skip


def settings(**changes: object) -> TrainingSettings:
    fixed = {"epochs": 12, "batch_size": 16, "learning_rate": 0.01, "method": "distillation", "scheduler_steps": ()}
    return TrainingSettings(**{**fixed, **changes})  # type: ignore[arg-type]


def saved(folder: Path, victim: Victim, name: str = "teacher") -> Path:
    checkpoint.save(folder / f"{name}.pt", victim.eval(), {})
    return folder / f"{name}.pt"


def loaded(folder: Path, clips: Clips, **options: object) -> Teacher:
    teacher = load_teacher("distillation", {**OPTIONS, **options}, folder, clips)
    assert teacher is not None
    return teacher


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 1.0), (3.0, 1.0), (1.0, 0.3), (3.0, 0.3)])
def test_loss_is_that_of_the_formula(temperature: float, weight: float) -> None:
    rng = np.random.default_rng(0)
    student, teacher, y = rng.normal(size=(5, 4)), 3 * rng.normal(size=(5, 4)), np.eye(4)[[0, 3, 1, 1, 2]]
    soft = -(softmax(teacher / temperature, 1) * log_softmax(student / temperature, 1)).sum(1).mean()
    hard = -(y * log_softmax(student, 1)).sum(1).mean()
    logits = torch.tensor(student, requires_grad=True)
    taught = torch.tensor(teacher)

    def learner(x: torch.Tensor) -> torch.Tensor:
        return x

    trained = Learner(learner, learner, nn.Identity(), (-1, 1), torch.Generator(), 0.0, taught=taught)
    keys = {"temperature": temperature, "weight": weight}
    loss = METHODS["distillation"](trained, logits, torch.tensor(y), **keys)
    assert loss.item() == pytest.approx(weight * temperature**2 * soft + (1 - weight) * hard, rel=1e-12)
    loss.backward()
    # d/dz of T^2 CE(p, softmax(z / T)) is T (softmax(z / T) - p)
    expected = weight * temperature * (softmax(student / temperature, 1) - softmax(teacher / temperature, 1))
    expected += (1 - weight) * (softmax(student, 1) - y)
    np.testing.assert_allclose(logits.grad.numpy(), expected / 5, atol=1e-12)  # type: ignore[union-attr]


def test_a_student_learns_the_teacher_where_the_labels_say_otherwise(tmp_path: Path, many_clips: Clips) -> None:
    """The teacher has other features and was trained on labels moved by one: whoever follows it is wrong."""
    moved = replace(many_clips, labels=(many_clips.labels + 1) % len(WORDS))
    keys = {"model_dir": tmp_path, "progress": False}
    teacher = build(many_clips, n_mels=32, normalize="clip_mean")
    fit(teacher, moved, moved, name="teacher", training=settings(method="standard", keep="last"), **keys)  # type: ignore[arg-type]
    before = copy.deepcopy(teacher.state_dict())
    taught, agreement = loaded(tmp_path, many_clips), {}
    x = many_clips.waveforms()
    for method, by in (("distillation", taught), ("standard", None)):
        student = build(many_clips, seed=1, hop_length=400, normalize="clip_mean")
        options = OPTIONS if by else {}
        training = settings(method=method, keep="last")
        facts = fit(
            student, many_clips, many_clips, name=method, training=training, options=options, teacher=by, **keys
        )
        with torch.no_grad():
            agreement[method] = float((student.eval()(x).argmax(1) == teacher.eval()(x).argmax(1)).float().mean())
        identity = {"name": "teacher", "weights": sha256_of(tmp_path / "teacher.pt")}
        assert facts.get("teacher") == facts["settings"].get("teacher") == (identity if by else None)
    assert agreement["distillation"] > 0.6
    assert agreement["standard"] < 0.3
    assert all(torch.equal(value, before[name]) for name, value in loaded_state(tmp_path).items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in taught.victim.parameters())
    assert not taught.victim.training


def loaded_state(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / "teacher.pt")[0].state_dict()


@pytest.mark.parametrize("augmented", [False, True])
def test_teacher_hears_the_waveforms_of_the_student(clips: Clips, augmented: bool) -> None:
    victim, other = build(clips), build(clips, seed=3, front_end="mfcc").frozen()
    training = settings(noise=1.0, time_shift=50.0) if augmented else settings()
    listening = Source(clips, Chain([]), CPU, augmented)  # the waveform itself
    teacher = Source(clips, other, CPU, augmented)
    student = Source(clips, victim.split("log_mel")[0], CPU, augmented)
    index = torch.tensor([3, 0, 7])

    def augmentation() -> Augmentation:
        return Augmentation(training, 0, clips.sample_rate, None, CPU)

    (heard, logits), _ = representations([listening, teacher], index, augmentation())
    torch.testing.assert_close(logits, other(heard), atol=1e-5, rtol=1e-5)
    assert torch.equal(heard, clips.waveforms(index)) is not augmented
    # The student gets the batches that it gets without a teacher.
    alone = list(batches(student, training, 0, augmentation()))
    along = list(batches(student, training, 0, augmentation(), teacher))
    for (x, y, valid, nothing), (x_along, y_along, valid_along, taught) in zip(alone, along, strict=True):
        assert torch.equal(x, x_along)
        assert torch.equal(y, y_along)
        assert torch.equal(valid, valid_along)
        assert nothing is None
        assert taught is not None
        assert taught.shape == y.shape


def test_padding_is_nothing_to_a_teacher_with_a_mask(clips: Clips) -> None:
    short = replace(clips, lengths=torch.tensor([8000 + 400 * i for i in range(len(clips))]))
    teacher = build(clips, masked_pooling=True).frozen()
    index = torch.arange(5)
    expected = with_lengths(teacher, short.valid(index))(short.waveforms(index))
    for augmented in (False, True):  # cached, and not
        logits, _ = Source(short, teacher, CPU, augmented, uses_mask=teacher.uses_mask)(index)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(Source(clips, teacher, CPU, False, uses_mask=True)(index)[0], expected, atol=1e-3)


@pytest.mark.parametrize("changes", [{}, {"noise": 1.0, "time_shift": 50.0, "stage": "waveform"}])
def test_an_interrupted_distillation_ends_with_the_same_weights(
    tmp_path: Path, clips: Clips, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    saved(tmp_path, build(clips, seed=5, front_end="mfcc"))
    teacher = loaded(tmp_path, clips)
    training = settings(epochs=3, **changes)

    def train(folder: str, options: dict[str, object]) -> dict[str, torch.Tensor]:
        fit(
            build(clips), clips, clips, name="student", model_dir=tmp_path / folder, training=training,
            options=options, teacher=teacher, progress=False,
        )  # fmt: skip
        return checkpoint.load(tmp_path / folder / "student.pt")[0].state_dict()

    options = {**OPTIONS, "temperature": 2.0, "weight": 0.5}
    whole, again = train("whole", options), train("again", options)
    epoch = loop.TrainingRun.epoch

    def stops(run: loop.TrainingRun, number: int, bar: object) -> None:
        if number == 2:
            raise KeyboardInterrupt
        epoch(run, number, bar)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingRun, "epoch", stops)
        with pytest.raises(KeyboardInterrupt):
            train("stopped", options)
    assert not (tmp_path / "stopped/student.pt").exists()
    resumed, other = train("stopped", options), train("other", {**options, "temperature": 4.0})
    for name, value in whole.items():
        assert torch.equal(value, again[name])
        assert torch.equal(value, resumed[name])
    assert any(not torch.equal(value, other[name]) for name, value in whole.items())


def test_a_student_is_trained_again_for_another_teacher(
    tmp_path: Path, clips: Clips, capsys: pytest.CaptureFixture[str]
) -> None:
    training, hashes = settings(epochs=1), []
    for seed in (1, 1, 2):
        saved(tmp_path, build(clips, seed=seed))
        facts = fit(
            build(clips), clips, clips, name="student", model_dir=tmp_path, training=training, options=OPTIONS,
            teacher=loaded(tmp_path, clips), progress=False,
        )  # fmt: skip
        hashes.append(facts["teacher"]["weights"])
        assert ("was trained with other settings (teacher.weights" in capsys.readouterr().err) is (seed == 2)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, classes=("yes", "no", "up", "left")), r"classes \(yes, no, up, down\) are not those of"),
        (lambda c: replace(c, classes=("no", "yes", "up", "down")), r"in their order \(no, yes, up, down\)"),
        (lambda c: replace(c, sample_rate=8000), "trained for another sample rate"),
        (lambda c: replace(c, samples=c.samples[:, :-1]), "trained for another clip length"),
    ],
)
def test_a_teacher_for_other_clips_is_refused(
    tmp_path: Path, clips: Clips, change: Callable[[Clips], Clips], message: str
) -> None:
    saved(tmp_path, build(clips))
    with pytest.raises(ValueError, match=message) as error:
        loaded(tmp_path, change(clips))
    assert "\n" not in str(error.value)


def test_a_teacher_that_cannot_teach_is_refused(tmp_path: Path, clips: Clips) -> None:
    saved(tmp_path, build(clips), "cnn")
    with pytest.raises(FileNotFoundError, match=r"teacher\.pt: no such model \(trained models there: cnn\)"):
        loaded(tmp_path, clips)
    with pytest.raises(ValueError, match=r"set TRAINING\.distillation\.teacher to its name"):
        loaded(tmp_path, clips, teacher="")
    saved(tmp_path, checkpoint.defend(build(clips), [{"name": "gaussian_noise"}]), "noisy")
    with pytest.raises(ValueError, match=r"the answers of this teacher are random \(gaussian_noise\)"):
        loaded(tmp_path, clips, teacher="noisy")
    assert load_teacher("standard", OPTIONS, tmp_path, clips) is None
    with pytest.raises(ValueError, match="method = distillation needs a teacher"):
        fit(build(clips), clips, clips, name="m", model_dir=tmp_path, training=settings(), progress=False)
    with pytest.raises(ValueError, match="method = standard learns from no teacher"):
        fit(build(clips), clips, clips, name="m", model_dir=tmp_path, training=settings(method="standard"),
            teacher=loaded(tmp_path, clips, teacher="cnn"), progress=False)  # fmt: skip


def test_mixup_and_distillation_exclude_each_other(tmp_path: Path) -> None:
    (tmp_path / "c.ini").write_text("[TRAINING]\nmethod = distillation\nmixup = 0.5\n")
    with pytest.raises(ValueError, match=r"method = distillation goes with mixup = 0, not 0\.5"):
        config.load(tmp_path / "c.ini")
    with pytest.raises(ValueError, match="it becomes part of a file name"):
        TrainingSettings(suffix="a/b")
    assert TrainingSettings(suffix="x").identity() == TrainingSettings().identity()


def test_names_tell_students_and_controls_apart() -> None:
    names = [
        model_name("vgg13", 0.0, method, teacher=teacher, suffix=suffix)
        for (method, teacher), suffix in itertools.product(
            (("standard", ""), ("distillation", "crnn"), ("distillation", "dense_mel")), ("", "no_mixup")
        )
    ]
    assert len(set(names)) == len(names)
    assert names[0] == "vgg13"
    assert names[2] == "vgg13_distillation_crnn"


def test_a_student_is_trained_by_the_script(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--set", "TRAINING.method=distillation", "--set", "TRAINING.epochs=1"]
    assert call(workspace, monkeypatch, "train_model.py", *common) == 2
    assert capsys.readouterr().err.startswith("error: method = distillation needs a model to learn from")
    common += ["--set", "TRAINING.distillation.teacher=resnet", "--set", "TRAINING.suffix=t"]
    before = set((workspace / "data/models").iterdir())
    try:
        assert call(workspace, monkeypatch, "train_model.py", *common) == 0
        _, facts = checkpoint.load(workspace / "data/models/resnet_distillation_resnet_t.pt")
        assert facts["teacher"]["name"] == "resnet"
        assert facts["method"] == "distillation"
    finally:  # other tests use all models of the folder
        for path in set((workspace / "data/models").iterdir()) - before:
            path.unlink()
