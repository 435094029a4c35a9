"""The pieces of attack.py: clips crafted and judged for one model, what can be listened to, and the report."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tqdm import tqdm

from src.attacks.tap import INPUT
from src.budget import Budget
from src.commands import fitting, selection
from src.config import Config
from src.datasets.crafted import CraftedStore
from src.datasets.store import Clips
from src.distributed import Team
from src.evaluation import ATTACK_KEY, Crafter, Judge, summary, worst_case
from src.evaluation.indicators import Indicator, sanity_verdict
from src.evaluation.passing import gradient_of
from src.evaluation.settings import FIT_KEYS
from src.evaluation.summary import Row
from src.files import fingerprint
from src.output import figures, results
from src.registry import ATTACKS, INVERSIONS
from src.victims.embedder import NOBODY
from src.victims.victim import Victim

SHOWN = ("model", "attack", "norm", "eps", "clean accuracy", "robust accuracy", "on wav", "survival", "inversion only",
         "l2", "linf", "snr", "pesq", "backwards", "s/clip")  # fmt: skip
SHOWN_IF_ANY = ("infeasible",)
"""Columns of the table on the terminal, and those that are shown where they are not 0 throughout."""


@dataclass(frozen=True)
class AttackedModel:
    """A trained model and what crafts against it at the configured representation."""

    model: selection.Trained
    crafter: Crafter

    @property
    def undefended(self) -> Victim | None:
        """The model without the defenses that the attack has to pass; None where there is none to pass, or where the
        attacked representation is itself that of a defense."""
        return self.model.victim.undefended() if self.crafter.undefended_tail else None


def attacked_model(
    config: Config, model: selection.Trained, device: torch.device, ensemble: Sequence[selection.Trained] = ()
) -> AttackedModel:
    """What crafts against a model, together with those of the ensemble other than itself.

    Raises:
        ValueError: the model has no such representation or layer, an attack does not fit its sample rate or its task,
            or a model of the ensemble has other classes.
    """
    for name in config.attack.names:
        options = {**config.component("ATTACK", name), "sample_rate": model.victim.sample_rate}
        ATTACKS.check_options(config.attack.registered(name), options)
        if gradient_of(options) == "undefended" and config.attack.stage in {d.name for d in model.victim.defenses}:
            raise ValueError(f"{name}: gradient = undefended: the attacked {config.attack.stage} is itself a defense")
        if options.get("threshold") == "estimated" and NOBODY not in model.victim.classes:
            raise ValueError(f"{name}: threshold = estimated: {model.name} has no threshold, it rejects nobody")
    inversion = functools.partial(
        INVERSIONS[config.inversion.name], **config.component("INVERSION", config.inversion.name)
    )
    partners = [
        Crafter(other.victim, config.attack, inversion, device) for other in ensemble if other.name != model.name
    ]
    crafter = Crafter(model.victim, config.attack, inversion, device, partners)
    for name in config.attack.names:
        if config.attack.spec(name).takes_tap:
            options = config.component("ATTACK", name)
            with crafter.tap(options)(options.get("layer", INPUT)):
                pass  # the layer is there
    return AttackedModel(model, crafter)


def attack_runs(config: Config) -> list[tuple[str, Budget | None]]:
    """Every (attack, budget); random signs are the control of every attack with a budget."""
    names = list(config.attack.names)
    budgeted = [name for name in names if config.attack.spec(name).has_budget]
    registered = [config.attack.registered(name) for name in names]
    if budgeted and "random_signs" not in registered and config.attack.norm != "l0":
        names.append("random_signs")
        budgeted.append("random_signs")
    return [(name, eps) for name in names for eps in (config.attack.eps if name in budgeted else (None,))]


def identity(
    config: Config, clips: Clips, device: torch.device, ensemble: Sequence[selection.Trained] = ()
) -> dict[str, object]:
    """What all rows depend on; the model and its weights, the attack and eps stand in the rows."""
    kinds = ("ATTACK", "INVERSION", "DEFENSE")
    return {
        "attack": config.attack.identity(),
        "inversion": config.inversion.name,
        "defenses": selection.configured_defenses(config),
        "components": {name: keys for name, keys in config.components.items() if name.startswith(kinds)},
        "clips": clips.fingerprint(),
        **({} if clips.speech else {"speech": False}),
        "device": device.type,
        **({"ensemble": {model.name: model.weights for model in ensemble}} if ensemble else {}),
        **(
            {"fit": fitting.clips(config).fingerprint()}
            if any(map(config.attack.uses_fit_clips, config.attack.names))
            else {}
        ),
    }


@dataclass(frozen=True)
class AttackCommand:
    """One run of attack.py, or of another script that attacks: what it attacks, and where its results go.

    Attributes:
        clips: those that are attacked.
        listened: ids of clips whose wavs and figures are kept.
        identity: what all rows depend on.
        name: of its folder in results_dir.
    """

    config: Config
    clips: Clips
    listened: frozenset[str]
    identity: Mapping[str, object]
    members: Team
    name: str = "attack"

    @property
    def folder(self) -> Path:
        return self.config.results.results_dir / self.name

    def store(self, model: selection.Trained, name: str, eps: Budget | None) -> CraftedStore:
        """The store of what this attack made against this model. Its name holds a fingerprint of all that it depends
        on, so that runs with other settings have stores of their own."""
        config = self.config
        fit_keys = set() if config.attack.uses_fit_clips(name) else {"fit", *FIT_KEYS}
        unused = {"wavs", "variants"} | fit_keys
        settings = {key: value for key, value in config.attack.identity().items() if key not in unused}
        facts = {
            **{key: value for key, value in self.identity.items() if key not in unused},
            "attack": settings, "components": config.component("INVERSION", config.inversion.name),
            "options": config.component("ATTACK", name), "model": model.name, "weights": model.weights,
            "name": name, "eps": str(eps or "inf"),
            **({"variant_of": config.attack.registered(name)} if name in config.attack.variants else {}),
        }  # fmt: skip
        run = f"{name}_{eps or 'inf'}_{fingerprint(facts)}".replace(" ", "")
        clips = self.clips.relabeled(model.victim.classes)
        return CraftedStore(self.folder / "crafted" / model.name / run, clips, facts, self.members.rank)

    def collect(self, attacked: AttackedModel, rows: results.RowFile) -> list[tuple[str, ...]]:
        """Craft what is not in the stores yet, judge it on the model itself, and write the rows that are missing;
        returns the keys of all its rows."""
        model, keys = attacked.model, list[tuple[str, ...]]()
        judge = Judge(
            model.victim, attacked.crafter.device,
            seed=self.config.attack.seed, batch_size=self.config.attack.batch_size,
        )  # fmt: skip
        for name, eps in attack_runs(self.config):
            run_keys = [
                (model.name, model.weights[:8], name, str(eps or "inf"), example, model.name)
                for example in self.clips.ids
            ]
            keys += run_keys
            missing = [i for i, key in enumerate(run_keys) if key not in rows]
            share = self.members.share(missing)
            if not share:
                continue
            store = self.store(model, name, eps)
            self.craft(attacked, store, share, name, eps)
            chosen = self.clips.select(share)
            for row in judge.rows(*store.read(chosen.ids), targeted=self.config.attack.targeted):
                row |= {"model": model.name, "checkpoint": model.weights[:8], "judge": model.name}
                row["wav"] = self.export(row, store) if row["id"] in self.listened else ""
                if tuple(row[key] for key in ATTACK_KEY) not in rows:
                    rows.write(row)
        return keys

    def craft(
        self, attacked: AttackedModel, store: CraftedStore, index: Sequence[int], name: str, eps: Budget | None
    ) -> None:
        """Put the clips at `index` that the store lacks into it."""
        missing = [i for i in index if self.clips.ids[i] not in store]
        if not missing:
            return
        options = self.config.component("ATTACK", name)
        ensemble = cast(Mapping[str, str], self.identity.get("ensemble", {}))
        fitted = fitting.tensors(self.config, attacked.crafter, attacked.model, name, eps, self.folder, ensemble)
        examples = fitting.examples(self.config, name)
        crafted = attacked.crafter.craft(self.clips.select(missing), name, options, eps, fitted, examples)
        title = f"{attacked.model.name}, {name}, eps {eps or 'smallest'}"
        for clip in tqdm(crafted, title, len(missing), unit="clip", disable=not self.members.leads, leave=False):
            if clip.facts["id"] not in store:
                store.append(clip.samples, clip.facts)

    def export(self, row: Mapping[str, Any], store: CraftedStore) -> str:
        """Write the original, the adversarial clip and the perturbation as wavs, and the figure of all three. Returns
        the adversarial wav's path inside the results folder."""
        clips, (adversarial, _) = self.clips, store.read([row["id"]])
        written = self.wav_path(row)
        folder, name = (self.folder / written).parent, written.name.removesuffix(".adversarial.wav")
        x = clips.waveforms([clips.ids.index(row["id"])])[0].numpy()
        x_adv = adversarial.waveforms()[0].numpy()
        delta = x_adv - x
        for what, waveform in (("original", x), ("adversarial", x_adv), ("perturbation", delta)):
            results.write_wav(folder / f"{name}.{what}.wav", waveform, clips.sample_rate)
        word = [*adversarial.classes, "undefined"]
        aim = f", target '{word[row['target']]}'" if row["target"] >= 0 else ""
        panels = [
            (f"original: '{word[row['label']]}', heard '{word[row['prediction']]}'", x),
            (f"{row['attack']}, eps {row['eps']}{aim}: wav heard '{word[row['prediction_wav']]}'", x_adv),
            (f"perturbation: max {np.abs(delta).max():.2g}, SNR {row['snr']:.1f} dB", delta),
        ]
        note = selection.SYNTHETIC if clips.synthetic else ""
        figures.spectrograms(folder / f"{name}.png", panels, clips.sample_rate, note=note)
        return str(written)

    def wav_path(self, row: Mapping[str, Any]) -> Path:
        """Where the adversarial wav of a row is, inside the results folder."""
        place = Path("wavs", row["model"], f"{row['attack']}_{row['eps']}".replace(" ", ""))
        return place / f"{row['id'].removesuffix('.wav').replace('/', '_')}.adversarial.wav"


def report(
    config: Config,
    attacked: Sequence[AttackedModel],
    clips: Clips,
    rows: Sequence[Row],
    signs: Mapping[str, Sequence[Indicator]],
    searched: Mapping[str, str],
) -> None:
    """Tables, plots, manifest, and what to read first on the terminal.

    Args:
        signs: what sanity.search found, and
        searched: on what.
    """
    folder, plots, settings = config.results.results_dir / "attack", config.results.plot_dir, config.attack
    where = settings.stage if settings.stage == "waveform" else f"{settings.stage}, {config.inversion.name}"
    source = f"{len(clips)} clips{' of synthetic speech' if clips.synthetic else ''}"
    defenses = selection.configured_defenses(config)
    behind = f", models behind {selection.describe(defenses)}" if defenses else ""
    title = f"Attacks at {where}{', targeted' if settings.targeted else ''}{behind}, {source}"
    verdicts = {name: sanity_verdict(indicators) for name, indicators in signs.items()}
    notes = [selection.SYNTHETIC] * clips.synthetic + [f"{name}: {text}" for name, text in verdicts.items()]
    names = list(dict.fromkeys(name for name, _ in attack_runs(config)))
    controls = {name for name in names if settings.spec(name).kind == "control"}
    combined = worst_case.combined(rows, names, controls)
    notes += map(worst_case.note, combined)
    if combined:
        lines = worst_case.table(combined)
        results.write_table(folder / "worst_case.csv", lines, f"Clips that each attack breaks, {title}", notes)
    rows = [*rows, *worst_case.rows_of(combined)]
    table, points = summary.table(rows), summary.points(rows)
    results.write_table(folder / "summary.csv", table, title, notes)
    results.write_table(folder / "security.csv", points, f"Accuracy against eps, {title}", notes)
    for axis in sorted({point["axis"] for point in points}):
        unit = "SNR of the perturbation (dB)" if axis == "SNR" else f"{axis} of the perturbation ({settings.stage})"
        on_axis = [point for point in points if point["axis"] == axis]
        path = plots / f"security_{settings.stage}_{axis}.png"
        figures.security(
            path, on_axis, title=title, x_label=unit, falling=axis == "SNR", controls=controls, bold=(worst_case.NAME,)
        )
    facts = {
        "config": config.text,
        "seed": settings.seed,
        "device": str(attacked[0].crafter.device),
        "synthetic": clips.synthetic,
        "source": clips.source,
        "models": {entry.model.name: entry.model.facts for entry in attacked},
        "verdicts": verdicts,
        "signs": {name: [sign.facts() for sign in indicators] for name, indicators in signs.items()},
        "searched": searched,
    }
    results.write_manifest(folder / "manifest.json", facts)
    columns = [*SHOWN, *(column for column in SHOWN_IF_ANY if any(line[column] for line in table))]
    if not clips.speech or not settings.speech:
        columns.remove("pesq")
    if any(line["on wav"] != line["on wav, one draw"] for line in table):  # a randomized model
        columns.insert(columns.index("on wav") + 1, "on wav, one draw")
    shown = [
        {key: f"{line[key]:.3g}" if isinstance(line[key], float) else line[key] for key in columns} for line in table
    ]
    files = f"files: {folder} (rows, summary, security, manifest, wavs), {plots} (plots)"
    print("\n".join([title, "", results.markdown(shown), *notes, files]))
