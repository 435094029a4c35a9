"""Variants of an attack: the same attack under a name of its own, with options of its own, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from src import config
from src.commands import attack as attack_commands
from src.commands import sanity
from src.evaluation import AttackSettings
from src.registry import ATTACKS
from tests.conftest import call, rows
from tests.test_wiring_stores import CPU, EPS, Study, study, tone_clips, trained  # noqa: F401

TWO = (
    "[ATTACK]\nnames = pgd_1, pgd_9\n[ATTACK.pgd_1]\nattack = pgd\nsteps = 1\n[ATTACK.pgd_9]\nattack = pgd\nsteps = 9\n"
)


def load(folder: Path, text: str, *overrides: str) -> config.Config:
    (folder / "config.ini").write_text(text)
    return config.load(folder / "config.ini", list(overrides))


def test_a_variant_is_its_attack_with_options_of_its_own(tmp_path: Path) -> None:
    loaded = load(tmp_path, TWO, "ATTACK.pgd_1.momentum=0.5", "ATTACK.late.attack=fgsm", "ATTACK.names=late,pgd_1,pgd")
    assert loaded.attack.names == ("late", "pgd_1", "pgd")
    assert [loaded.attack.registered(name) for name in loaded.attack.names] == ["fgsm", "pgd", "pgd"]
    assert loaded.component("ATTACK", "pgd_1") == {"steps": 1, "momentum": 0.5}
    assert loaded.component("ATTACK", "late") == {}
    assert loaded.attack.spec("late").name == "fgsm"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[ATTACK]\nnames = pgd_10\n",
            "config.ini:2: names = pgd_10: unknown attack 'pgd_10'; did you mean 'pgd'? (choices: apgd, ",
        ),
        ("[ATTACK]\nnames = pgd_1\n[ATTACK.pgd_11]\nattack = pgd\n", "did you mean 'pgd_11'?"),
        ("[ATTACK.pgd_10]\nsteps = 10\n", "config.ini:1: unknown attack 'pgd_10'"),
        ("[ATTACK.pgd_10]\nsteps = 10\n", "a variant says which attack it is: attack = ..."),
        ("[ATTACK.slow]\nsteps = 9\nattack = pdg\n", "config.ini:3: unknown attack 'pdg'; did you mean 'pgd'?"),
        ("[ATTACK.slow]\nattack = slower\n[ATTACK.slower]\nattack = pgd\n", "config.ini:2: unknown attack 'slower'"),
        ("[ATTACK.fgsm]\nattack = pgd\n", "config.ini:2: fgsm is itself an attack; give its variant a name of its own"),
        ("[ATTACK.a/b]\nattack = pgd\n", "config.ini:2: 'a/b' cannot name a variant"),
        ("[ATTACK.slow]\nattack = pgd\nsteeps = 9\n", "config.ini:3: unknown key in [ATTACK.slow] 'steeps'; did you"),
        ("[ATTACK.slow]\nattack = pgd\nsteps = 0\n", "config.ini:3: steps = 0: "),
        ("[ATTACK.slow]\nattack = pgd\nrestarts = 2\nrandom_start = no\n", "config.ini:1: [ATTACK.slow] restarts need"),
        ("[ATTACK]\nnames = k\ntargeted = yes\n[ATTACK.k]\nattack = kenansville\n", "kenansville cannot aim"),
        ("[ATTACK]\nnames = b\nstage = mel\n[ATTACK.b]\nattack = band_limited\n", "band_limited perturbs waveforms"),
        ("[MODEL.small]\nattack = cnn\n", "unknown model 'small'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"config\.ini") as error:
        load(tmp_path, text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_attack_with_a_key_of_that_name_keeps_it(tmp_path: Path) -> None:
    loaded = load(tmp_path, "[ATTACK]\nnames = time_shuffled\n[ATTACK.time_shuffled]\nattack = fgsm\n")
    assert loaded.component("ATTACK", "time_shuffled") == {"attack": "fgsm"}
    assert loaded.attack.variants == {}


def test_without_variants_nothing_is_identified_otherwise() -> None:
    assert "variants" not in AttackSettings().identity()
    assert "variants" in AttackSettings(variants={"a": "pgd"}, names=("pgd",)).identity()
    with pytest.raises(ValueError, match="unknown attack 'a'"):
        AttackSettings().spec("a")


def test_rows_and_stores_carry_the_name_of_the_variant(study: Study) -> None:  # noqa: F811
    """A variant with the options of [ATTACK.pgd] makes the same clips as pgd, in a store of its own."""
    one = "ATTACK.other.attack=pgd", "ATTACK.other.steps=2", "ATTACK.names=pgd,other"
    command, attacked = study.command(*one), study.attacked(*one)
    made = {}
    for name in ("pgd", "other"):
        store = command.store(attacked.model, name, EPS)
        command.craft(attacked, store, range(len(study.clips)), name, EPS)
        clips, facts = store.read(study.clips.ids)
        made[name] = clips.samples
        assert {fact["attack"] for fact in facts} == {name}
    assert (made["pgd"] == made["other"]).all()
    stores = {command.store(attacked.model, name, EPS).folder for name in ("pgd", "other")}
    assert len(stores) == 2
    stronger = study.command(*one, "ATTACK.other.steps=3")
    assert stronger.store(attacked.model, "other", EPS).folder not in stores
    assert stronger.store(attacked.model, "pgd", EPS).folder in stores, "another variant's options change no store"
    before = study.command().store(trained(), "pgd", EPS).folder
    assert before in stores, "nor does a variant that is added"
    as_fgsm = study.command("ATTACK.other.attack=fgsm", "ATTACK.names=other")
    plain = study.command("ATTACK.other.attack=apgd", "ATTACK.names=other")
    assert as_fgsm.store(trained(), "other", EPS).folder != plain.store(trained(), "other", EPS).folder
    assert as_fgsm.identity != plain.identity


def test_variants_of_controls_and_minimum_norm_attacks(study: Study) -> None:  # noqa: F811
    loaded = study.config(
        "ATTACK.coin.attack=random_signs", "ATTACK.smallest.attack=cw", "ATTACK.names=coin,smallest,pgd"
    )
    runs = attack_commands.attack_runs(loaded)
    assert runs == [("coin", EPS), ("smallest", None), ("pgd", EPS)], "random signs are there already"
    assert sanity.untested(study.config("ATTACK.smallest.attack=cw", "ATTACK.names=smallest")) == {
        "smallest": "no norm linf"
    }


def test_a_fitted_variant_is_fitted_with_its_options(study: Study) -> None:  # noqa: F811
    names = (
        "ATTACK.names=universal,short",
        "ATTACK.short.attack=universal",
        "ATTACK.short.steps=1",
        "ATTACK.universal.steps=2",
    )
    command, attacked = study.command(*names), study.attacked(*names)
    for name in ("universal", "short"):
        command.craft(attacked, command.store(attacked.model, name, EPS), range(2), name, EPS)
    files = sorted(path.name.split("_")[0] for path in (command.folder / "fitted").rglob("*.pt"))
    assert files == ["short", "universal"]


def test_variants_run_from_config_to_judge(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, wavs, signs of failure, judges and a second run, by the variants' names."""

    def run(*args: str) -> int:
        keys = [
            "ATTACK.names=pgd_1,pgd_9", "ATTACK.pgd_1.attack=pgd", "ATTACK.pgd_1.steps=1", "ATTACK.pgd_9.attack=pgd",
            "ATTACK.pgd_9.steps=9", "ATTACK.eps=0.001", "ATTACK.checks=2", "ATTACK.wavs=1", "DATA.n_test=4",
            "RESULTS.results_dir=variants",
        ]  # fmt: skip
        return call(workspace, monkeypatch, "attack.py", *args, *(part for key in keys for part in ("--set", key)))

    assert run("--judge", "resnet+quantize") == 0
    folder = workspace / "variants/attack"
    table = rows(folder / "rows.csv")
    assert {row["attack"] for row in table} == {"pgd_1", "pgd_9", "random_signs"}
    backwards = {
        name: max(int(row["backwards"]) for row in table if row["attack"] == name) for name in ("pgd_1", "pgd_9")
    }
    assert backwards["pgd_1"] == 1
    assert backwards["pgd_9"] > 1
    assert {path.name for path in (folder / "wavs/resnet").iterdir()} >= {"pgd_1_0.001", "pgd_9_0.001"}
    assert set(json.loads((folder / "manifest.json").read_text())["signs"]) >= {"resnet, pgd_1", "resnet, pgd_9"}
    assert {row["attack"] for row in rows(folder / "judged.csv")} == {"pgd_1", "pgd_9", "random_signs"}
    before = (folder / "rows.csv").read_bytes()

    def forbidden(*args: object, **kwargs: object) -> torch.Tensor:
        pytest.fail("an attack ran again")

    monkeypatch.setattr(ATTACKS["pgd"], "function", forbidden)
    assert run() == 0
    assert (folder / "rows.csv").read_bytes() == before
