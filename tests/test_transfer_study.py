"""transfer_study.py from end to end on made-up clips: what it trains, its rows and tables, resumption, and mistakes."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest
import soundfile
import torch

import transfer_study
from src import config
from src.datasets import store
from src.datasets.crafted import read_clips
from src.datasets.resample import resample
from src.evaluation import Crafter, Judge
from src.output import figures
from src.victims import checkpoint
from tests.conftest import WORDS, call, rows

SETTINGS = [
    "DATA.n_test=6", "MODEL.names=resnet,second", "MODEL.resnet.widths=6,12", "MODEL.second.model=resnet",
    "MODEL.second.widths=6,12", "MODEL.second.FRONTEND.log_mel.normalize=none", "TRAINING.method=standard",
    "TRAINING.epochs=12", "TRAINING.optimizer=adamw", "TRAINING.learning_rate=0.01", "TRAINING.schedule=cosine",
    "TRANSFER.substitutes=resnet,second", "TRANSFER.targets=resnet,second", "RESULTS.model_dir=models",
    "RESULTS.results_dir=results", "RESULTS.plot_dir=plots", "ATTACK.targeted=yes", "ATTACK.names=pgd,cw",
    "ATTACK.eps=10 dB", "ATTACK.norm=l2", "ATTACK.speech=no", "ATTACK.cw.steps=10", "ATTACK.cw.search_steps=1",
]  # fmt: skip
RUNS = ("pgd", "cw", "random_signs")


def study(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str, flags: tuple[str, ...] = ()) -> int:
    """Run the study in `folder` without its figures; its exit code."""
    monkeypatch.setattr(figures, "save", lambda figure, *_, **__: figures.plt.close(figure))
    sets = [part for setting in (*SETTINGS, *overrides) for part in ("--set", setting)]
    return call(folder, monkeypatch, "transfer_study.py", *sets, *flags)


@pytest.fixture(scope="module")
def made(small_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the study has run once, data, models and all."""
    folder = tmp_path_factory.mktemp("transfer")
    shutil.copytree(small_study / "wavs", folder / "wavs")
    shutil.copy(small_study / "config.ini", folder)
    with pytest.MonkeyPatch.context() as patch:
        assert study(folder, patch) == 0
    return folder


@pytest.fixture
def done(made: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def test_one_command_prepares_trains_and_fills_every_table(made: Path) -> None:
    assert sorted(path.name for path in (made / "models").glob("*.pt")) == ["resnet.pt", "second.pt"]
    table = rows(made / "results/transfer/rows.csv")
    clips = {row["id"] for row in table}
    assert len(clips) == 6
    keys = {(row["model"], row["judge"], row["attack"], row["id"]) for row in table}
    names = ("resnet", "second")
    assert keys == {(m, j, a, c) for m in names for j in names for a in RUNS for c in clips}
    assert len(table) == len(keys)
    assert all(row["target"] not in (row["label"], "-1") for row in table)
    folder = made / "results/transfer"
    accuracy = rows(folder / "1_accuracy.csv")
    assert [(row["model"], row["train n"], row["test n"]) for row in accuracy] == [(n, "16", "8") for n in names]
    for name in names:
        transfer = rows(folder / f"2_transfer.{name}.csv")
        assert {(row["substitute"], row["attack"], row["target model"]) for row in transfer} == {
            (name, a, j) for a in RUNS for j in names
        }
        assert [row["A"] for row in transfer if row["attack"] == "random_signs"] == ["6", "6"], "a control has all"
    assert {row["target model"] for row in rows(folder / "7_differences.csv")} == set(names)
    assert len(rows(folder / "attacks.csv")) == 6
    assert (folder / "manifest.json").is_file()


def test_models_that_are_missing_are_trained_with_their_teachers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """a learns from b and b from c; d, of which nothing is asked, learns from e, and f is there without its teacher."""
    learned = {"a": "b", "b": "c", "d": "e", "f": "e"}
    text = "[MODEL]\nnames = c, b, a, e, d, f\n[TRANSFER]\nsubstitutes = a\ntargets = f\n"
    text += "".join(f"[MODEL.{name}]\nmodel = cnn\n" for name in "abcdef")
    for name, teacher in learned.items():
        text += f"[MODEL.{name}.TRAINING]\nmethod = distillation\n"
        text += f"[MODEL.{name}.TRAINING.distillation]\nteacher = {teacher}\n"
    (tmp_path / "config.ini").write_text(text)
    (tmp_path / "dataset.json").touch()
    (tmp_path / "f.pt").touch()
    loaded = config.load(tmp_path / "config.ini", [f"RESULTS.model_dir={tmp_path}", f"DATA.data_dir={tmp_path}"])
    trained = []
    monkeypatch.setattr(transfer_study, "train", lambda config, _: trained.append(config.model.names))
    transfer_study.make_missing(loaded, argparse.Namespace())
    assert trained == [("c", "b", "a")]


def test_accuracy_is_that_of_the_whole_split(made: Path) -> None:
    victim, _ = checkpoint.load(made / "models/second.pt")
    clips = store.load(made / "clips", "test").relabeled(victim.classes)
    with torch.no_grad():
        right = int((victim(clips.waveforms()).argmax(1) == clips.labels).sum())
    assert rows(made / "results/transfer/1_accuracy.csv")[1]["test correct"] == str(right)


def test_the_listed_wavs_hold_what_was_judged(made: Path) -> None:
    folder = made / "results/transfer"
    index = rows(folder / "most_transferable.csv")
    assert index, "some clip transfers at 10 dB"
    for entry in index:
        (place,) = folder.glob(f"crafted/{entry['substitute']}/{entry['store']}")
        clips, _ = read_clips(place, [entry["id"]])
        written, rate = soundfile.read(folder / entry["wav"], dtype="int16")
        assert rate == 16000
        assert (written == clips.samples[0]).all()
        assert entry["label"] != entry["target"]
        assert {entry["label"], entry["target"]} <= set(WORDS)
        of = [r for r in rows(folder / "rows.csv") if all(r[k] == entry[k] for k in ("attack", "eps", "id"))]
        of = [r for r in of if r["model"] == entry["substitute"] != r["judge"] and r["correct"] == "1"]
        assert entry["models"] == ", ".join(r["judge"] for r in of if r["prediction_wav"] != r["label"])


def test_a_second_run_does_nothing(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in (done / "results").rglob("*") if path.is_file()}
    wavs = {path: path.stat().st_mtime_ns for path in done.rglob("*.adversarial.wav")}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(Crafter, "craft", refuse)
    monkeypatch.setattr(Judge, "rows", refuse)
    monkeypatch.setattr("src.commands.transfer.logits_of", refuse)
    monkeypatch.setattr("src.training.loop.TrainingRun", refuse)
    assert study(done, monkeypatch) == 0
    after = {path: path.read_bytes() for path in (done / "results").rglob("*") if path.is_file()}
    assert after.keys() == before.keys()
    assert [path.name for path in before if before[path] != after[path]] == []
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*.adversarial.wav")} == wavs


def test_an_interrupted_run_goes_on_after_its_last_row(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = done / "results/transfer/rows.csv"
    expected = path.read_text()
    shutil.rmtree(done / "results")
    judged, count = Judge.rows, [0]

    def interrupted(self: Judge, *args: object, **keys: object):  # type: ignore[no-untyped-def]
        for row in judged(self, *args, **keys):  # type: ignore[arg-type]
            count[0] += 1
            if count[0] == 11:
                raise KeyboardInterrupt
            yield row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Judge, "rows", interrupted)
        assert study(done, patch) == 130
    assert len(rows(path)) == 10
    assert study(done, monkeypatch, flags=("--report",)) == 0
    assert "Incomplete: 10 of 72 rows." in (path.with_name("2_transfer.resnet.md")).read_text()
    assert len(rows(path)) == 10, "a report makes no row"
    assert study(done, monkeypatch) == 0

    def without_seconds(text: str) -> list[str]:
        lines = [line.split(",") for line in text.splitlines()]
        place = lines[0].index("seconds")
        return [",".join(line[:place] + line[place + 1 :]) for line in lines]

    assert without_seconds(path.read_text()) == without_seconds(expected)


def test_a_target_model_of_another_rate_and_order_of_classes_joins(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = ("down", "yes", "no", "up")
    victim = checkpoint.build(
        model="cnn", front_end="log_mel", front_end_options={"n_mels": 44, "hop_length": 160}, classes=classes,
        sample_rate=8000, n_samples=8000,
    )  # fmt: skip
    checkpoint.save(done / "models/telephone.pt", victim.eval(), {})
    before = rows(done / "results/transfer/rows.csv")
    monkeypatch.setattr(Crafter, "craft", lambda *_, **__: pytest.fail("everything is crafted already"))
    assert study(done, monkeypatch, "TRANSFER.targets=") == 0
    after = rows(done / "results/transfer/rows.csv")
    assert [row for row in after if row["judge"] != "telephone"] == before
    new = [row for row in after if row["judge"] == "telephone"]
    assert len(new) == len(before) // 2
    row = new[0]
    (place,) = (done / "results/transfer/crafted" / row["model"]).glob(f"{row['attack']}_*")
    crafted, _ = read_clips(place, [row["id"]])
    with torch.no_grad():
        heard = classes[int(victim(resample(crafted, 8000).waveforms()).argmax())]
    assert crafted.classes[int(row["prediction_wav"])] == heard


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ATTACK.targeted=no"], "set ATTACK.targeted = yes"),
        (["ATTACK.names=kenansville"], "kenansville cannot aim at a target"),
        (["TRANSFER.substitutes=vgg"], "models/vgg.pt: no such model (trained models there: resnet, second)"),
        (["TRANSFER.substitutes=", "TRANSFER.targets=third"], "models/third.pt: no such model"),
        (["TRANSFER.substitutes=resnet", "TRANSFER.targets=resnet"], "resnet is the only model"),
        (["TRANSFER.substitutes=", "TRANSFER.targets=", "RESULTS.model_dir=none"], "no trained models here"),
        (["TRANSFER.target=resnet"], "unknown key in [TRANSFER] 'target'; did you mean 'targets'?"),
        (["ATTACK.stage=nowhere"], "nowhere"),
        (["ATTACK.cw_transfer.min_snr=nan"], "min_snr = nan: input should be a finite number"),
    ],
)
def test_mistakes_are_one_line(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    before = sorted(done.rglob("*"))
    assert study(done, monkeypatch, *overrides) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(done.rglob("*")) == before


def test_a_report_needs_rows(done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert study(done, monkeypatch, "RESULTS.results_dir=empty", flags=("--report",)) == 2
    assert "no rows of these settings to report on; leave --report out" in capsys.readouterr().err
    assert not (done / "empty").exists()
    before = {path: path.read_bytes() for path in (done / "results").rglob("*") if path.is_file()}
    assert study(done, monkeypatch, "ATTACK.seed=5", flags=("--report",)) == 2
    assert "no rows of these settings" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (done / "results").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("classes", "rate", "overrides", "message"),
    [
        (("yes", "no", "up", "left"), 16000, ["TRANSFER.targets=odd"], "does not know the class 'down'"),
        ((*WORDS, "left"), 16000, ["TRANSFER.targets=odd"], "odd has other classes than resnet: only odd knows 'left'"),
        (WORDS, 8000, ["TRANSFER.substitutes=odd"], "odd: this model was trained for another sample rate (8000)"),
    ],
)
def test_a_model_that_does_not_fit_is_one_line(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    classes: tuple[str, ...], rate: int, overrides: list[str], message: str,
) -> None:  # fmt: skip
    options = {"n_mels": 44, "hop_length": rate // 50}
    victim = checkpoint.build(
        model="cnn", front_end="log_mel", front_end_options=options, classes=classes, sample_rate=rate, n_samples=rate
    )
    checkpoint.save(done / "models/odd.pt", victim.eval(), {})
    before = sorted(done.rglob("*"))
    assert study(done, monkeypatch, *overrides) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(done.rglob("*")) == before


def test_help_names_what_the_study_reads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tmp_path, monkeypatch, "transfer_study.py", "--help") == 0
    text = capsys.readouterr().out
    for section in ("TRANSFER", "ATTACK", "MODEL", "TRAINING", "DATA", "RESULTS"):
        assert f"\n[{section}]\n" in text
    assert "[CERTIFY]" not in text
    assert "  substitutes (list of name; ): trained models that the clips are crafted on" in text
