"""What is kept is used again only where it still holds: names of the stores of crafted clips, files of fitted attacks,
rows of judges and signs of failure change with all that they depend on, and with nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src import api
from src.budget import Budget
from src.commands import attack as attack_commands
from src.commands import fitting, judging, sanity
from src.commands.attack import AttackCommand, AttackedModel
from src.commands.selection import Trained
from src.config import Config, load
from src.datasets.crafted import CraftedStore, read_clips
from src.datasets.store import Clips
from src.distributed import Team
from src.evaluation import AttackSettings, Crafter, Judge
from src.evaluation.indicators import Indicator
from src.registry import INVERSIONS
from src.victims import checkpoint
from src.victims.victim import Victim
from tests.conftest import rows
from tests.test_attacks_universal import RATE, TIME, LoudestBand, make_clips

CPU = torch.device("cpu")
EPS = Budget(0.2)
WEIGHTS = "0" * 64
LEGAL = {"feasible": "1", "budget": "0.1"}
"""Columns that the signs over rows read."""


def make_victim(*defenses: Mapping[str, Any]) -> Victim:
    victim = Victim([], LoudestBand(), classes=("low", "middle", "high"), sample_rate=RATE, n_samples=TIME)
    return checkpoint.defend(victim, defenses)


def trained(name: str = "net", weights: str = WEIGHTS, victim: Victim | None = None) -> Trained:
    return Trained(name, weights, victim or make_victim(), {})


@pytest.fixture(scope="module")
def tone_clips() -> Clips:
    return make_clips(1, "test").select(range(6))


@dataclass(frozen=True)
class Study:
    """A config file in a folder of its own, and test clips."""

    folder: Path
    clips: Clips

    def config(self, *overrides: str) -> Config:
        path = self.folder / "config.ini"
        path.write_text("[ATTACK]\nnames = pgd\neps = 0.2\nspeech = no\n[ATTACK.pgd]\nsteps = 2\n")
        return load(path, [f"RESULTS.results_dir={self.folder / 'results'}", *overrides])

    def command(self, *overrides: str) -> AttackCommand:
        loaded = self.config(*overrides)
        identity = attack_commands.identity(loaded, self.clips, CPU)
        return AttackCommand(loaded, self.clips, frozenset(), identity, Team())

    def attacked(self, *overrides: str, model: Trained | None = None) -> AttackedModel:
        return attack_commands.attacked_model(self.config(*overrides), model or trained(), CPU)

    def judge(self, judges: Sequence[Trained], *overrides: str) -> list[dict[str, str]]:
        judging.judge_crafted(self.command(*overrides), [self.attacked(*overrides)], judges, CPU)
        return rows(self.folder / "results/attack/judged.csv")


@pytest.fixture
def study(tmp_path: Path, tone_clips: Clips, monkeypatch: pytest.MonkeyPatch) -> Study:
    splits = {"train": make_clips(0, "train"), "validation": make_clips(2, "validation")}
    monkeypatch.setattr(fitting.store, "load", lambda data_dir, split: splits[split])
    return Study(tmp_path, tone_clips)


COMMON = (
    "ATTACK.norm=l2", "ATTACK.seed=3", "ATTACK.mask=none", "ATTACK.silence_db=20", "ATTACK.adaptive=no",
    "ATTACK.eot_draws=3", "DEFENSE.names=quantize",
)  # fmt: skip
"""Keys that both crafted clips and fitted attacks depend on."""


@pytest.mark.parametrize(
    "change", [*COMMON, "ATTACK.pgd.steps=3", "ATTACK.targeted=yes", "ATTACK.speech=no", "INVERSION.name=nnls"]
)
def test_clips_of_other_settings_are_in_another_store(study: Study, change: str) -> None:
    speech = ["ATTACK.speech=yes"]
    before = study.command(*speech).store(trained(), "pgd", EPS).folder
    assert study.command(*speech).store(trained(), "pgd", EPS).folder == before
    assert study.command(*speech, change).store(trained(), "pgd", EPS).folder != before


def test_the_store_belongs_to_model_clips_attack_and_eps(study: Study) -> None:
    folders = [
        study.command().store(trained(), "pgd", EPS).folder,
        study.command().store(trained(weights="1" * 64), "pgd", EPS).folder,
        study.command().store(trained("other"), "pgd", EPS).folder,
        study.command().store(trained(), "fgsm", EPS).folder,
        study.command().store(trained(), "pgd", Budget(0.1)).folder,
        Study(study.folder, study.clips.select(range(3))).command().store(trained(), "pgd", EPS).folder,
    ]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize(
    "change",
    [
        "ATTACK.names=pgd,universal", "ATTACK.names=cw", "ATTACK.eps=0.1,0.2", "ATTACK.wavs=1", "ATTACK.checks=1",
        "ATTACK.batch_size=2", "ATTACK.fit_clips=9", "ATTACK.cw.steps=3", "ATTACK.universal.steps=3",
        "INVERSION.nnls.iterations=3", "DEFENSE.quantize.step=512",
    ],
)  # fmt: skip
def test_settings_of_other_parts_keep_the_store(study: Study, change: str) -> None:
    before = study.command().store(trained(), "pgd", EPS).folder
    assert study.command(change).store(trained(), "pgd", EPS).folder == before


@pytest.mark.parametrize("change", ["ATTACK.fit_clips=9", "ATTACK.fit_split=validation", "ATTACK.universal.steps=3"])
def test_clips_of_a_fitted_attack_depend_on_its_fit(study: Study, change: str) -> None:
    names = ["ATTACK.names=pgd,universal"]
    stores = {
        name: [study.command(*names, *more).store(trained(), name, EPS).folder for more in ((), (change,))]
        for name in ("pgd", "universal", "random_signs")
    }
    assert stores["universal"][0] != stores["universal"][1]
    assert stores["pgd"][0] == stores["pgd"][1]
    assert stores["random_signs"][0] == stores["random_signs"][1]


def fitted_file(study: Study, *overrides: str, model: Trained | None = None, eps: Budget = EPS) -> Path:
    """The file that a fit with these settings is kept in; what it holds does not matter here."""

    class Fitting(Crafter):
        def fit(self, *args: object) -> dict[str, torch.Tensor]:
            return {"delta": torch.zeros(1)}

    model, loaded = model or trained(), study.config("ATTACK.names=universal", *overrides)
    crafter = Fitting(model.victim, loaded.attack, INVERSIONS["gain_mask"], CPU)
    folder = study.folder / "fit"
    shutil.rmtree(folder, ignore_errors=True)
    assert fitting.tensors(loaded, crafter, model, "universal", eps, folder) is not None
    (path,) = (folder / "fitted" / model.name).glob("*.pt")
    return path


@pytest.mark.parametrize(
    "change", [*COMMON, "ATTACK.universal.steps=3", "ATTACK.fit_clips=9", "ATTACK.fit_split=validation"]
)
def test_a_fit_of_other_settings_is_another_file(study: Study, change: str) -> None:
    before = fitted_file(study)
    assert fitted_file(study) == before
    assert fitted_file(study, change) != before


@pytest.mark.parametrize("change", ["weights", "eps", "stage"])
def test_a_fit_belongs_to_model_stage_and_eps(study: Study, change: str) -> None:
    model = trained(victim=make_victim({"name": "quantize"}))
    before = fitted_file(study, model=model)
    other = {
        "weights": lambda: fitted_file(study, model=replace(model, weights="1" * 64)),
        "eps": lambda: fitted_file(study, model=model, eps=Budget(0.1)),
        "stage": lambda: fitted_file(study, "ATTACK.stage=quantize", model=model),
    }
    assert other[change]() != before


@pytest.mark.parametrize(
    "change",
    [
        "ATTACK.names=universal,pgd", "ATTACK.eps=0.1,0.2", "ATTACK.pgd.steps=3", "ATTACK.speech=yes", "ATTACK.wavs=1",
        "ATTACK.batch_size=2", "ATTACK.checks=1", "INVERSION.name=nnls", "DEFENSE.quantize.step=512",
    ],
)  # fmt: skip
def test_settings_that_a_fit_does_not_use_keep_its_file(study: Study, change: str) -> None:
    before = fitted_file(study)
    assert fitted_file(study, change) == before


def test_the_api_fits_with_the_options(tone_clips: Clips) -> None:
    """One step along the sign of the gradient has the size `step`."""
    arguments: dict[str, Any] = {"eps": 0.2, "fit_clips": make_clips(0, "train"), "mask": "none", "speech": False}
    victim, largest = make_victim(), {}
    for step in (0.1, 0.5):
        options = {"steps": 1, "step": step, "momentum": 0.0}
        made = api.attack(victim, tone_clips, "universal", options=options, **arguments)
        settings = AttackSettings(names=("universal",), eps=(EPS,), mask="none", speech=False)
        crafter = Crafter(victim, settings, INVERSIONS["gain_mask"], CPU)
        fitted = crafter.fit(arguments["fit_clips"], "universal", options, EPS)
        expected = [clip.samples for clip in crafter.craft(tone_clips, "universal", options, EPS, fitted)]
        assert (made.clips.samples == np.stack(expected)).all()
        largest[step] = float(fitted["delta"].abs().max())
    assert largest[0.1] != largest[0.5], "the options must matter for this test to mean anything"


@pytest.mark.parametrize("change", ["ATTACK.fit_clips=9", "ATTACK.fit_split=validation"])
@pytest.mark.parametrize("targeted", ["yes", "no"])
def test_clips_of_an_attack_that_begins_at_others_depend_on_them(study: Study, targeted: str, change: str) -> None:
    names = ["ATTACK.names=pgd,hopskipjump", f"ATTACK.targeted={targeted}"]
    stores = {
        name: [study.command(*names, *more).store(trained(), name, None).folder for more in ((), (change,))]
        for name in ("pgd", "hopskipjump")
    }
    assert (stores["hopskipjump"][0] != stores["hopskipjump"][1]) == (targeted == "yes")
    assert stores["pgd"][0] == stores["pgd"][1]


@pytest.mark.parametrize("name", ["hopskipjump", "boundary"])
def test_a_search_towards_a_target_begins_at_training_clips(study: Study, name: str) -> None:
    """Of two queries, one is for the clean clip and one for the nearest example of the target class: the result."""
    settings = {"targeted": True, "mask": "none", "norm": "l2", "speech": False}
    keys = [f"ATTACK.names={name}", f"ATTACK.{name}.queries=2", *(f"ATTACK.{key}={settings[key]}" for key in settings)]
    command, attacked = study.command(*keys), study.attacked(*keys)
    store = command.store(attacked.model, name, None)
    command.craft(attacked, store, range(len(study.clips)), name, None)
    made, facts = store.read(study.clips.ids)
    train = make_clips(0, "train")
    inputs, labels = train.waveforms(), train.relabeled(attacked.model.victim.classes).labels
    assert {fact["target"] for fact in facts} & set(labels.tolist())
    for x, x_adv, fact in zip(study.clips.waveforms(), made.waveforms(), facts, strict=True):
        of_class = inputs[labels == fact["target"]]
        if len(of_class):
            assert torch.equal(x_adv, of_class[(of_class - x).norm(dim=1).argmin()])
        else:
            assert torch.equal(x_adv, x)
    victim, options = attacked.model.victim, {"queries": 2}
    through_api = api.attack(victim, study.clips, name, fit_clips=train, options=options, **settings)
    assert (through_api.clips.samples == np.asarray(made.samples)).all()


def test_a_retrained_judge_scores_anew(study: Study) -> None:
    judges = [trained("judge", "1" * 64)]
    first = study.judge(judges)
    assert study.judge(judges) == first
    deaf = make_victim({"name": "quantize", "options": {"step": 60000}})
    second = study.judge([trained("judge", "2" * 64, deaf)])
    old, new = ([row for row in second if row["judge_checkpoint"] == 8 * digit] for digit in "12")
    assert old == first
    assert len(new) == len(old)
    expected = Judge(deaf, CPU).labels(study.clips, deaf.classes)
    assert {row["id"]: int(row["prediction"]) for row in new} == dict(zip(study.clips.ids, expected, strict=True))
    assert [row["prediction"] for row in new] != [row["prediction"] for row in old]


def test_a_random_judge_draws_with_the_seed_of_the_config(study: Study) -> None:
    noisy = make_victim({"name": "noise_at_snr", "options": {"snr_db": -20.0}})
    labels = {seed: Judge(noisy, CPU, seed=seed).labels(study.clips, noisy.classes) for seed in (0, 3)}
    assert labels[0] != labels[3], "the seed must matter for this test to mean anything"
    judged = study.judge([trained("noisy", victim=noisy)], "ATTACK.seed=3")
    expected = dict(zip(study.clips.ids, labels[3], strict=True))
    assert all(int(row["prediction"]) == expected[row["id"]] for row in judged)


def test_a_judge_scores_clips_whose_store_was_deleted(study: Study) -> None:
    """The rows are complete, the clips are gone: they are crafted again for a second judge, and nothing is left where
    nothing is missing."""
    (first, second), stores = (trained("judge", "1" * 64), trained("other", "2" * 64)), study.folder / "results/attack"
    before = study.judge([first])
    shutil.rmtree(stores / "crafted")
    assert study.judge([first]) == before
    assert not (stores / "crafted").exists(), "nothing was crafted"
    judged = study.judge([first, second])
    assert [row for row in judged if row["judge"] == "judge"] == before
    unnamed = [
        [{key: value for key, value in row.items() if not key.startswith("judge") and key != "seconds"} for row in part]
        for part in (before, [row for row in judged if row["judge"] == "other"])
    ]
    assert unnamed[0] == unnamed[1]
    folders = sorted((stores / "crafted/net").iterdir())
    assert [folder.name.split("_0.2_")[0] for folder in folders] == ["pgd", "random_signs"]
    assert all(set(read_clips(folder)[0].ids) == set(study.clips.ids) for folder in folders)


def test_signs_of_a_retrained_model_are_measured_again(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def on_clips(loaded: Config, entry: AttackedModel, *args: object) -> list[Indicator]:
        measured.append(entry.model.weights[0])
        return [Indicator("reach", float(entry.model.weights[0]), 0.5, False, "")]

    monkeypatch.setattr(sanity, "on_clips", on_clips)
    command, manifest = study.command(), study.folder / "manifest.json"
    table = [
        {
            "model": "net",
            "attack": "pgd",
            "id": example,
            "correct": "1",
            "success_stage": "0",
            "feasible": "1",
            "budget": "0.1",
        }
        for example in study.clips.ids
    ]

    def search(weights: str) -> float:
        entry = study.attacked(model=trained(weights=weights))
        signs, searched = sanity.search(command.config, [entry], study.clips, table, command.identity, manifest)
        facts = {title: [sign.facts() for sign in indicators] for title, indicators in signs.items()}
        manifest.write_text(json.dumps({"signs": facts, "searched": searched}))
        (value,) = (sign.value for sign in signs["net, pgd"] if sign.name == "reach")
        return value

    assert [search(8 * digit) for digit in "1122"] == [1.0, 1.0, 2.0, 2.0]
    assert measured == ["1", "2"]


def test_signs_are_searched_on_clips_that_the_model_has_right(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """On its own, not on those of another model; on the first ones of them, as many as configured."""
    ids, searched = study.clips.ids, dict[str, tuple[str, ...]]()
    right = {"net": [ids[i] for i in (1, 3, 4, 5)], "other": ids[:2]}

    def on_clips(loaded: Config, entry: AttackedModel, part: Clips, *_: object) -> list[object]:
        searched[entry.model.name] = part.ids
        return []

    monkeypatch.setattr(sanity, "on_clips", on_clips)
    table = [
        {"model": model, "attack": "pgd", "eps": "0.2", "norm": "linf", "id": example, "label": "1",
         "correct": str(int(example in right[model])), **LEGAL, "prediction_stage": "1", "success_stage": "0",
         "success_wav": "0"}
        for model in right
        for example in ids
    ]  # fmt: skip
    loaded, models = study.config("ATTACK.checks=3"), [study.attacked(model=trained(name)) for name in right]
    signs, _ = sanity.search(loaded, models, study.clips, table, {}, study.folder / "manifest.json")
    assert searched == {"net": (ids[1], ids[3], ids[4]), "other": (ids[0], ids[1])}
    assert set(signs) == {"net, pgd", "other, pgd"}


def test_a_fit_is_labeled_with_its_budget(study: Study) -> None:
    for eps in (EPS, Budget(20, True)):
        assert fitting.load(fitted_file(study, eps=eps)).eps == str(eps)


def test_a_clip_in_two_parts_costs_no_other_clip(tone_clips: Clips, tmp_path: Path) -> None:
    """Two processes made the same clip; the part of the first still holds three whole clips when it is opened again."""

    def fill(store: CraftedStore, index: list[int]) -> None:
        for i in index:
            facts = {"id": tone_clips.ids[i], "label": 1, "length": TIME, "tags": {}}
            store.append(tone_clips.samples[i], facts)

    first, second = (CraftedStore(tmp_path / "s", tone_clips, {}, part) for part in (0, 1))
    fill(first, [0, 1, 2])
    fill(second, [0])
    again = CraftedStore(tmp_path / "s", tone_clips, {}, part=0)
    fill(again, [3])
    assert len((tmp_path / "s/part0.jsonl").read_text().splitlines()) == 4
    assert (read_clips(tmp_path / "s", tone_clips.ids[:4])[0].samples == tone_clips.samples[:4]).all()


def test_nothing_is_transferred_to_the_output_of_a_defense(study: Study) -> None:
    """The undefended model has no representation 'quantize' to attack at."""
    victim = make_victim({"name": "quantize"}, {"name": "noise_at_snr"})
    at_defense = study.attacked("ATTACK.stage=quantize", model=trained(victim=victim))
    assert at_defense.undefended is None
    part = study.clips.select(range(2))
    signs = sanity.on_clips(study.config("ATTACK.stage=quantize"), at_defense, part, "pgd", EPS)
    assert "transfer_is_better" not in {sign.name for sign in signs}
    at_waveform = study.attacked(model=trained(victim=victim)).undefended
    assert at_waveform is not None
    assert at_waveform.defenses == ()


def test_the_self_test_names_what_it_does_not_test(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    names = "ATTACK.names=universal"
    sanity.plant_and_search(study.config(names), [study.attacked(names)], study.clips)
    assert capsys.readouterr().out.splitlines() == ["universal: not tested (fitted)"]
    sanity.plant_and_search(study.config(), [study.attacked()], study.clips)
    assert "not tested" not in capsys.readouterr().out


def test_attacks_without_eot_repeat_on_a_random_model(tone_clips: Clips) -> None:
    """Not adaptive: one draw per call from the streams of the clips, whatever the global generator does and however the
    clips are batched."""
    noisy = make_victim({"name": "noise_at_snr", "options": {"snr_db": 0.0}})
    made = []
    for state, batch_size in ((0, 6), (1, 6), (2, 2)):
        torch.manual_seed(state)
        settings = AttackSettings(names=("pgd",), adaptive=False, speech=False, targeted=True, batch_size=batch_size)
        crafter = Crafter(noisy, settings, INVERSIONS["gain_mask"], CPU)
        made.append(np.stack([clip.samples for clip in crafter.craft(tone_clips, "pgd", {"steps": 3}, EPS)]))
    assert (made[0] == made[1]).all()
    assert (made[0] == made[2]).all()


def test_a_model_without_randomness_is_attacked_as_it_is(tone_clips: Clips) -> None:
    settings = AttackSettings(names=("pgd",), adaptive=False)
    crafter = Crafter(make_victim({"name": "quantize"}), settings, INVERSIONS["gain_mask"], CPU)
    assert crafter.attacked_model(tone_clips.ids, tone_clips.waveforms(), tone_clips.valid()) is crafter.frozen_tail


def test_clips_and_rows_of_older_rules_are_not_used_again(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    before, fitted = study.command().store(trained(), "pgd", EPS).folder, fitted_file(study)
    assert study.command().store(trained(), "pgd", EPS).folder == before
    monkeypatch.setattr("src.evaluation.settings.RULES", -1)
    assert study.command().store(trained(), "pgd", EPS).folder != before
    assert fitted_file(study) != fitted
