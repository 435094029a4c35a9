"""Every study of experiments/ in a tiny setting: each runs from its own command to its tables."""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import scripts
from src import config
from src.victims import checkpoint
from tests.conftest import ROOT, call

OWN_TESTS = ("speakers", "sec4sr", "transfer_esc10", "transfer_keywords")
STUDIES = sorted(path.stem for path in (ROOT / "experiments").glob("*.ini") if path.stem not in OWN_TESTS)
SMALL = [
    "DATA.n_test=2", "MODEL.resnet.widths=4,8", "TRAINING.epochs=1", "TRAINING.batch_size=64", "TRAINING.noise_dir=",
    "ATTACK.eps=0.001", "ATTACK.checks=0", "ATTACK.wavs=0", "ATTACK.pgd.steps=2", "ATTACK.cw.steps=5",
    "ATTACK.cw.search_steps=1", "CERTIFY.sigma=0.02", "CERTIFY.n0=16", "CERTIFY.n=32",
    "CERTIFY.preset=none", "CERTIFY.mode=fixed", "CERTIFY.attack_clips=0", "CERTIFY.attack_steps=1",
    "CERTIFY.attack_n=100", "CERTIFY.baselines=", "MODEL.rescnn.width=4",
]  # fmt: skip
QUERIES = ("autoattack", "square", "nes", "spsa", "siren", "genetic", "tile_bandit", "hopskipjump", "boundary")
SMALL_OF_STUDY = {
    # its front end alone would take longer than all other tests here
    "keywords_cnn": ["FRONTEND.linear_mel.hop_length=1000", "FRONTEND.linear_mel.n_fft=1024",
                     "FRONTEND.linear_mel.n_mels=48", "FRONTEND.linear_mel.pad_seconds=3"],
    "inversions_keywords": ["MODEL.names=resnet"],
    "codecs_keywords": ["DEFENSE.names=mp3", *(f"ATTACK.{name}.steps=2" for name in (
        "gain_entropy", "gain_margin", "identity_small", "identity_momentum", "transfer")), "ATTACK.square.queries=5"],
    "attacks_keywords": [f"ATTACK.{name}.queries=20" for name in QUERIES]
                        + ["ATTACK.autoattack.steps=10", "ATTACK.psychoacoustic.steps=5", "ATTACK.universal.steps=5"],
}  # fmt: skip
"""What else must be small in one study."""


@pytest.mark.parametrize("study", STUDIES)
def test_study_runs(study: str, tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = config.load(ROOT / f"experiments/{study}.ini").data.source
    corpus = {"speech_commands": "speech_commands", "fsdd": "fsdd", "librispeech": "librispeech_mini"}[source]
    words = {"speech_commands": "yes,no", "fsdd": "3,7", "librispeech": "1088,118"}[source]
    more = [f"DATA.{source}.files={ROOT / f'experiments/subsets/{source}.txt'}", *SMALL_OF_STUDY.get(study, [])]
    if source == "librispeech":
        lists = f"DATA.librispeech.splits_dir={ROOT / 'experiments/subsets/librispeech'}"
        more = [lists, "DATA.librispeech.crops=1", "DATA.n_test=1"]
    settings = [f"DATA.{source}.source_dir={shared / corpus}", f"DATA.include_dirs={words}", *SMALL, *more]
    args = ["--config", str(ROOT / f"experiments/{study}.ini")]
    args += [part for setting in settings for part in ("--set", setting)]
    scripts = ["prepare_dataset.py", "train_model.py", "evaluate_model.py"]
    if study.startswith("certified"):
        share = ["--stages", "magnitude", "normalize", "--methods", "gaussian"]
        assert call(tmp_path, monkeypatch, "experiments/certified.py", *args, *share) == 0
        (table,) = tmp_path.rglob("certified.csv")
        with table.open() as file:
            rows = {(row["stage"], row["training"]) for row in csv.DictReader(file)}
        assert rows == {(s, t) for s in ("magnitude", "normalize") for t in ("plain", "gaussian")}
        assert list(tmp_path.rglob("representations.png"))
    else:
        scripts += ["attack.py", "certify.py"]
    for script in scripts:
        assert call(tmp_path, monkeypatch, script, *args) == 0, script
    pattern = "certify/*.rows.csv" if study.startswith("certified") else "attack/rows.csv"
    for path in tmp_path.rglob(pattern):
        with path.open() as file:
            assert len(list(csv.DictReader(file))) >= 1, path
    assert list(tmp_path.rglob(pattern))


def test_networks_for_speakers_train_on_the_background(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """experiments/speakers.ini on two background speakers, an enrolled one and an imposter."""
    folders = ",".join(str(shared / name) for name in ("librispeech_mini", "librispeech_background"))
    settings = [
        f"DATA.librispeech.source_dir={folders}", "DATA.include_dirs=19,1867,118,1737,32",
        f"DATA.librispeech.splits_dir={ROOT / 'experiments/subsets/librispeech_speakers'}",
        "DATA.librispeech.crops=1", "DATA.seconds=1", "TRAINING.epochs=2", "MODEL.names=audionet,xvector,ivector",
        "MODEL.xvector.width=4", "MODEL.ivector.components=2", "MODEL.ivector.rank=4",
    ]  # fmt: skip
    args = ["--config", str(ROOT / "experiments/speakers.ini")]
    args += [part for setting in settings for part in ("--set", setting)]
    for script, *more in (("prepare_dataset.py",), ("train_model.py",), ("evaluate_model.py", "--split", "validation")):
        assert call(tmp_path, monkeypatch, script, *args, *more) == 0, script
    for name in ("audionet", "xvector", "ivector"):
        victim, _ = checkpoint.load(tmp_path / f"data/speakers/models/{name}.pt")
        assert victim.classes == ("19", "1867")
    (table,) = tmp_path.rglob("accuracy.validation.csv")
    with table.open() as file:
        assert [row["n"] for row in csv.DictReader(file)] == ["6"] * 3


@pytest.mark.parametrize(("study", "enrolls"), [("experiments/speakers.ini", True), ("config.ini", False)])
def test_make_study_enrolls_where_the_config_has_speakers(study: str, enrolls: bool) -> None:
    command = ["make", "--dry-run", "--silent", "-C", str(ROOT), "study", f"CONFIG={study}", "ARGS=--set DATA.seed=1"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    scripts = [line.split()[1] for line in lines if f"--config {study} --set DATA.seed=1" in line]
    enrollment = ["enroll_speakers.py"] * enrolls
    rest = ["evaluate_model.py", "attack.py", "certify.py"]
    assert scripts == ["prepare_dataset.py", "train_model.py", *enrollment, *rest]


def test_the_study_of_defenses_has_its_tables(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """experiments/sec4sr.py on two speakers, two defenses and few steps: its tables, from the rows of the scripts."""
    settings = [
        f"DATA.librispeech.source_dir={shared / 'librispeech_mini'}", "DATA.include_dirs=1088,118", "DATA.seconds=0.5",
        "TRAINING.pgd.steps=1",
        f"DATA.librispeech.splits_dir={ROOT / 'experiments/subsets/librispeech'}", "DATA.librispeech.crops=1",
        "DATA.n_test=2", "TRAINING.epochs=1", "ATTACK.eot_draws=2", "ATTACK.wavs=0", "ATTACK.fakebob.iterations=1",
        "ATTACK.fakebob.pairs=1", "ATTACK.siren.queries=4", "ATTACK.kenansville.levels=2", "ATTACK.kenansville.steps=1",
        "ATTACK.tile_bandit.queries=4",
        *(f"ATTACK.{name}.steps=2" for name in
          ("pgd_10", "pgd_100", "pgd_known", "pgd_identity", "pgd_momentum", "transfer", "cw2_0", "cw2_5", "cw_known")),
        *(f"ATTACK.{name}.search_steps=1" for name in ("cw2_0", "cw2_5", "cw_known")),
    ]  # fmt: skip
    chosen = ["--defenses", "QT", "FeCo raw, warped", "--processes", "2"]
    args = ["--config", str(ROOT / "experiments/sec4sr.ini"), *chosen]
    args += [part for setting in settings for part in ("--set", setting)]
    assert call(tmp_path, monkeypatch, "experiments/sec4sr.py", *args) == 0
    tables = {}
    for name in ("non_adaptive", "adaptive", "trained"):
        with (tmp_path / f"data/sec4sr/results/{name}.csv").open() as file:
            tables[name] = {row["defense"] + row.get("training", ""): row for row in csv.DictReader(file)}
    assert list(tables["non_adaptive"]) == ["none", "QT", "FeCo raw, warped"]
    assert list(tables["adaptive"]) == ["QT", "FeCo raw, warped"]
    for row in tables["adaptive"].values():
        under = [float(row[name]) for name in ("pgd_known", "pgd_momentum", "transfer", "tile_bandit")]
        assert float(row["worst case"]) <= min(under)
    assert tables["adaptive"]["QT"]["pgd_identity"]
    assert not tables["adaptive"]["FeCo raw, warped"]["pgd_identity"], "it has a gradient of its own"
    assert tables["non_adaptive"]["QT"]["published R1"] == "76"
    assert list(tables["trained"]) == ["QTplain", "QTadversarial"], (
        "adversarial training goes with some of the defenses"
    )
    victim, _ = checkpoint.load(tmp_path / "data/sec4sr/models/adversarial/quantize/audionet_pgd_quantize.pt")
    assert [defense.name for defense in victim.defenses] == ["quantize"]
    again = call(tmp_path, monkeypatch, "experiments/sec4sr.py", *args, "--report")
    assert again == 0


def test_the_study_of_transfer_between_representations(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """experiments/transfer_keywords.ini on two words: networks on three representations, one of them by a variant."""
    settings = [
        f"DATA.speech_commands.source_dir={shared / 'speech_commands'}", "DATA.include_dirs=yes,no", "DATA.n_test=2",
        f"DATA.speech_commands.files={ROOT / 'experiments/subsets/speech_commands.txt'}", "TRAINING.epochs=1",
        "TRAINING.warmup_epochs=0", "MODEL.resnet.widths=4,8", "MODEL.dense_wav.width=0.02", "ATTACK.wavs=0",
        "ATTACK.paper_confident.steps=2", "ATTACK.pgd.steps=1", "ATTACK.transfer_pgd.steps=1",
        "ATTACK.transfer_pgd_10.steps=1", "ATTACK.other_clip.perturbations=2",
    ]  # fmt: skip
    args = ["--config", str(ROOT / "experiments/transfer_keywords.ini")]
    args += [part for setting in settings for part in ("--set", setting)]
    assert call(tmp_path, monkeypatch, "transfer_study.py", *args) == 0
    last = {}
    for name in ("resnet", "tc_on_log_mel", "tc_resnet8", "dense_wav"):
        victim, _ = checkpoint.load(tmp_path / f"data/transfer_keywords/models/{name}.pt")
        last[name] = victim.representations
    assert last["resnet"] == last["tc_on_log_mel"] != last["tc_resnet8"]
    assert last["dense_wav"] == ("waveform",)
    with (tmp_path / "data/transfer_keywords/results/transfer/2_transfer.resnet.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["target model"] for line in lines} == set(last)
    assert {line["attack"] for line in lines} >= {"paper_confident", "transfer_pgd_10", "other_clip", "random_signs"}


def test_the_study_of_transfer_has_its_tables(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """experiments/transfer_esc10.ini on two sounds with tiny networks: from the clips to all tables in one command."""
    names = ("vgg13", "dense_wav", "vgg13_raw", "vgg13_from_crnn")
    settings = [
        f"DATA.esc50.source_dir={shared / 'esc10'}", "DATA.include_dirs=dog,rain", "DATA.seconds=0.5", "DATA.n_test=2",
        "TRAINING.epochs=1", "TRAINING.scheduler_steps=", "ATTACK.paper.steps=2", "ATTACK.paper_confident.steps=2",
        "ATTACK.pgd.steps=1", "ATTACK.transfer_pgd.steps=1", "ATTACK.other_clip.perturbations=2", "ATTACK.wavs=1",
        *(f"MODEL.{name}.width=0.02" for name in (*names, "crnn")),
        *(f"TRANSFER.{key}={','.join(names)}" for key in ("substitutes", "targets")),
    ]  # fmt: skip
    args = ["--config", str(ROOT / "experiments/transfer_esc10.ini")]
    args += [part for setting in settings for part in ("--set", setting)]
    assert call(tmp_path, monkeypatch, "transfer_study.py", *args) == 0
    _, facts = checkpoint.load(tmp_path / "data/transfer_esc10/models/vgg13_from_crnn.pt")
    assert facts["teacher"]["name"] == "crnn"
    assert not (tmp_path / "data/transfer_esc10/models/gcnn.pt").exists(), "no part of this study"
    folder = tmp_path / "data/transfer_esc10/results/transfer"
    with (folder / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    attacks = {"paper", "paper_confident", "pgd", "transfer_pgd", "other_clip", "random_signs"}
    assert len(rows) == len(attacks) * len(names) ** 2 * 2
    assert {(row["model"], row["judge"]) for row in rows} == {(a, b) for a in names for b in names}
    assert {row["stop"] for row in rows if row["attack"] == "paper"} <= {"steps", "probability", "snr"}
    assert all(row["target"] != row["label"] for row in rows)
    assert {row["attack"] for row in rows} == attacks
    tables = {path.stem for path in folder.glob("*.csv")} - {"rows"}
    assert tables >= {"1_accuracy", "attacks", "6_labels", "7_differences", *(f"2_transfer.{name}" for name in names)}
    assert list(tmp_path.rglob("transfer_paper_inf.png"))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_step_that_fails_ends_the_study(processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts, "ROOT", tmp_path)
    (tmp_path / "step.py").write_text(
        "import sys, pathlib\npathlib.Path(sys.argv[-1]).touch()\nsys.exit(3 if 'bad' in sys.argv[-1] else 0)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["study"])
    args = argparse.Namespace(config="x.ini", set=["A.b=c"])

    def steps(*names: str) -> list[scripts.Step]:
        return [scripts.Step("step.py", (f"A.d={name}",), (name,)) for name in names]

    assert steps("x")[0].command(args) == ["step.py", "--config", "x.ini", "--set", "A.b=c", "--set", "A.d=x", "x"]
    scripts.call_side_by_side(args, [steps("one", "two"), steps("three")], processes)
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "three", "step.py"}
    with pytest.raises(SystemExit) as end:
        scripts.call_side_by_side(args, [steps("bad", "four")] * processes + [steps("five")], processes)
    assert end.value.code == 3
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "three", "bad", "step.py"}
