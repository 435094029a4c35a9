"""Variants of a model, and sections that hold for the training of one model only."""

from __future__ import annotations

from pathlib import Path

import pytest

from src import config
from src.commands.trainings import trainings
from src.files import sha256_of
from src.victims import checkpoint
from tests.conftest import call
from tests.small_study import run

TEXT = """[MODEL]
names = cnn, plain, robust
[FRONTEND]
name = log_mel
[FRONTEND.log_mel]
n_mels = 44
normalize = band_mean
[TRAINING]
mixup = 1
epochs = 3
[MODEL.plain]
model = cnn
[MODEL.plain.TRAINING]
mixup = 0
[MODEL.plain.FRONTEND.log_mel]
normalize = none
[MODEL.robust]
model = resnet
widths = 4, 8
[MODEL.robust.TRAINING]
method = pgd
[MODEL.robust.TRAINING.pgd]
steps = 3
[MODEL.cnn.TRAINING]
epochs = 5
"""


def load(folder: Path, text: str, *overrides: str) -> config.Config:
    (folder / "config.ini").write_text(text)
    return config.load(folder / "config.ini", list(overrides))


def test_a_variant_is_trained_with_settings_of_its_own(tmp_path: Path) -> None:
    loaded = load(tmp_path, TEXT, "MODEL.plain.TRAINING.epochs=7")
    listed = trainings(loaded)
    assert [(t.name, t.listed, t.model) for t in listed] == [
        ("cnn", "cnn", "cnn"), ("plain", "plain", "cnn"), ("robust", "robust", "resnet"),
    ]  # fmt: skip
    cnn, plain, robust = (t.config for t in listed)
    assert (cnn.training.epochs, plain.training.epochs, robust.training.epochs) == (5, 7, 3)
    assert (cnn.training.mixup, plain.training.mixup, robust.training.mixup) == (1, 0, 1)
    assert cnn.component("FRONTEND", "log_mel") == {"n_mels": 44, "normalize": "band_mean"}
    assert plain.component("FRONTEND", "log_mel") == {"n_mels": 44, "normalize": "none"}
    assert robust.component("TRAINING", "pgd") == {"steps": 3}
    assert loaded.component("MODEL", "robust") == {"widths": (4, 8)}
    assert (loaded.training.epochs, loaded.training.method) == (3, "standard")
    assert "MODEL.plain.TRAINING" in loaded.text, "the manifest has everything that was written"


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["TRAINING.method=gaussian"], ["cnn_gaussian", "plain_gaussian", "robust"]),
        (
            ["TRAINING.gradient_penalty=0.1", "MODEL.names=plain", "MODEL.robust.TRAINING.method=standard"],
            ["plain_penalty_0.1"],
        ),
        (["MODEL.plain.TRAINING.gradient_penalty=0.1", "MODEL.names=plain"], ["plain"]),
        (
            ["MODEL.plain.TRAINING.gradient_penalty=0.1,0.2", "MODEL.names=plain"],
            ["plain_penalty_0.1", "plain_penalty_0.2"],
        ),
        (["DEFENSE.names=quantize", "MODEL.names=plain"], ["plain_quantize"]),
    ],
)
def test_the_name_of_a_variant_says_what_its_own_sections_set(
    tmp_path: Path, overrides: list[str], names: list[str]
) -> None:
    assert [t.name for t in trainings(load(tmp_path, TEXT, *overrides))] == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[MODEL]\nnames = cn\n", "config.ini:2: names = cn: unknown model 'cn'; did you mean 'cnn'?"),
        ("[MODEL.small]\nmodel = cmn\n", "config.ini:2: unknown model 'cmn'"),
        ("[MODEL.small]\nwidths = 4\n", "a variant says which model it is: model = ..."),
        ("[MODEL.cnn]\nmodel = resnet\n", "config.ini:2: cnn is itself a model; give its variant a name of its own"),
        ("[MODEL.small.TRAINING]\nmixup = 0\n", "config.ini:1: unknown model 'small'"),
        ("[MODEL.cnn.TRAINIG]\nmixup = 0\n", "config.ini:1: unknown section of [MODEL.cnn] 'TRAINIG'; did you mean"),
        ("[MODEL.cnn.ATTACK]\nmask = none\n", "(choices: TRAINING, FRONTEND)"),
        ("[MODEL.cnn.TRAINING]\nmixap = 0\n", "config.ini:2: unknown key in [TRAINING] 'mixap'; did you mean 'mixup'?"),
        ("[MODEL.cnn.TRAINING]\nuse_cuda = no\n", "config.ini:1: use_cuda holds for all models; set it in [TRAINING]"),
        ("[MODEL.cnn.TRAINING]\nmixup = -1\n", "config.ini:2: mixup = -1: "),
        ("[MODEL.cnn.TRAINING]\nnoise_snr = 9, 5\n", "config.ini:1: [TRAINING] noise_snr: the lowest (9)"),
        ("[TRANSFER]\ntargets = cnn, resnet, cnn\n", "[TRANSFER] targets names cnn twice"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"config\.ini") as error:
        load(tmp_path, text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"two models would be saved as cnn\.pt"):
        trainings(load(tmp_path, "[MODEL]\nnames = cnn, cnn\n"))


def test_the_checkpoint_has_what_the_variant_says(small_study: Path) -> None:
    settings = ["MODEL.bare.model=cnn", "MODEL.names=bare", "TRAINING.epochs=1", "RESULTS.model_dir=variants"]
    own = ["MODEL.bare.FRONTEND.log_mel.normalize=none", "MODEL.bare.TRAINING.method=standard"]
    run(small_study, "train_model.py", *settings, *own)
    assert [path.name for path in (small_study / "variants").glob("*.pt")] == ["bare.pt"]
    victim, facts = checkpoint.load(small_study / "variants/bare.pt")
    assert victim.recipe["front_end_options"]["normalize"] == "none"
    assert victim.recipe["front_end_options"]["n_mels"] == 44
    assert victim.recipe["model"] == "cnn"
    assert "gaussian" not in str(facts)


def test_a_teacher_is_trained_before_its_student(small_study: Path) -> None:
    """One run trains both; the student learns from the teacher of this run and has the name of the variant."""
    settings = [
        "MODEL.names=cnn,student", "MODEL.student.model=cnn", "TRAINING.method=standard", "TRAINING.epochs=1",
        "MODEL.student.TRAINING.method=distillation", "MODEL.student.TRAINING.distillation.teacher=cnn",
        "RESULTS.model_dir=taught",
    ]  # fmt: skip
    run(small_study, "train_model.py", *settings)
    _, facts = checkpoint.load(small_study / "taught/student.pt")
    assert sha256_of(small_study / "taught/cnn.pt") in str(facts)


def test_a_teacher_that_comes_after_its_student_is_refused_before_any_work(
    tmp_path: Path, small_study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [
        "MODEL.names=student,cnn", "MODEL.student.model=cnn", "TRAINING.method=standard", "TRAINING.epochs=1",
        "MODEL.student.TRAINING.method=distillation", "MODEL.student.TRAINING.distillation.teacher=cnn",
        f"RESULTS.model_dir={tmp_path}",
    ]  # fmt: skip
    sets = [part for setting in settings for part in ("--set", setting)]
    assert call(small_study, monkeypatch, "train_model.py", *sets) == 2
    assert "cnn.pt: no such model" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
