"""The pieces of transfer_study.py: which models attack which, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from src.commands import selection
from src.commands.attack import AttackCommand, attack_runs
from src.config import Config
from src.datasets import store
from src.datasets.resample import resample
from src.datasets.store import Clips
from src.evaluation import transfer
from src.evaluation.accuracy import logits_of, summarize
from src.evaluation.summary import Row
from src.output import results, transfer_figures
from src.victims import checkpoint

ACCURACY_FIELDS = ("model", "checkpoint", "split", "correct", "n", "accuracy", "low_95", "high_95")
SHOWN = (
    "substitute",
    "attack",
    "eps",
    "target model",
    "white box",
    "A",
    "I",
    "transfer %",
    "target %",
    "white box target %",
)
"""Columns of the table on the terminal."""


@dataclass(frozen=True)
class Study:
    """The models of a study.

    Attributes:
        substitutes: those that clips are crafted on.
        targets: those that score them: every substitute, then the others.
    """

    substitutes: Sequence[selection.Trained]
    targets: Sequence[selection.Trained]


def study(config: Config, clips: Clips) -> Study:
    """The models that [TRANSFER] names, or all in model_dir.

    Raises:
        OSError: no such model, or none at all.
        ValueError: attacks without targets, a substitute that was trained for other clips, a target model of other
            classes than the substitutes, or no target model but the substitute itself.
    """
    if not config.attack.targeted:
        raise ValueError("the tables of a transfer study need attacks with a target; set ATTACK.targeted = yes")
    names = dict.fromkeys([*config.transfer.substitutes, *config.transfer.targets])
    named = selection.models(config, list(names), clips, judging=True) if names else []
    everyone = named
    if not config.transfer.substitutes or not config.transfer.targets:
        others = selection.models(config, None, clips, judging=True)
        everyone = named + [model for model in others if model.name not in names]
    substitutes = [m for m in everyone if m.name in (config.transfer.substitutes or {m.name for m in everyone})]
    substitutes = selection.usable(
        substitutes,
        lambda victim: checkpoint.check_fits(victim, None, sample_rate=clips.sample_rate, n_samples=clips.n_samples),
        config.transfer.substitutes or None,
        "not a substitute",
    )
    attacking = {model.name for model in substitutes}
    asked = config.transfer.targets or {model.name for model in everyone}
    targets = [*substitutes, *(m for m in everyone if m.name in asked and m.name not in attacking)]
    first = substitutes[0]
    for model in targets:
        ours, theirs = set(model.victim.classes), set(first.victim.classes)
        if ours != theirs:
            other = sorted(ours ^ theirs)[0]
            who = model.name if other in ours else first.name
            raise ValueError(f"{model.name} has other classes than {first.name}: only {who} knows '{other}'")
    if len(targets) < 2:
        raise ValueError(f"{first.name} is the only model: a transfer study needs another one to transfer to")
    return Study(substitutes, targets)


def accuracies(config: Config, folder: Path, models: Sequence[selection.Trained], device: torch.device) -> None:
    """Table 1: accuracy of every model on the training and test clips, whole splits; what is there already is not
    computed again."""
    splits = {split: store.load(config.data.data_dir, split) for split in ("train", "test")}
    identity = {
        "clips": {split: clips.fingerprint() for split, clips in splits.items()},
        "defenses": selection.configured_defenses(config),
        "seed": config.data.seed,
    }
    rows = results.RowFile(folder / "accuracy.rows.csv", ACCURACY_FIELDS, ACCURACY_FIELDS[:3], identity)
    keys = [(model.name, model.weights[:8], split) for model in models for split in splits]
    for model in models:
        for split, clips in splits.items():
            key = (model.name, model.weights[:8], split)
            if key in rows:
                continue
            try:
                known = clips.relabeled(model.victim.classes)
            except ValueError:  # speakers of the training split, whom a recognizer does not know
                continue
            n_samples = None if model.victim.uses_mask else model.victim.n_samples
            known = resample(known, model.victim.sample_rate, n_samples)
            title = f"{model.name}, {split}"
            logits = logits_of(model.victim, known, device=device, seed=config.data.seed, title=title)
            values = summarize(logits, known.labels)
            values |= {"model": model.name, "checkpoint": model.weights[:8], "split": split}
            rows.write({field: values[field] for field in ACCURACY_FIELDS})
    rows.sort(keys)
    wanted = [row for row in rows.rows if tuple(row[k] for k in ACCURACY_FIELDS[:3]) in keys]
    rows.close()
    table = []
    for name in dict.fromkeys(row["model"] for row in wanted):
        of_model = {row["split"]: row for row in wanted if row["model"] == name}
        line: dict[str, Any] = {"model": name}
        for split in splits:
            row = of_model.get(split, {})
            line |= {f"{split} {k}": row.get(k, "") for k in ("accuracy", "low_95", "high_95", "correct", "n")}
        table.append(line)
    results.write_table(
        folder / "1_accuracy.csv", table, "Table 1: accuracy on training and test clips", _notes(splits)
    )


def _notes(splits: Mapping[str, Clips]) -> list[str]:
    return ["Intervals are Wilson's, 95 %."] + [selection.SYNTHETIC] * splits["test"].synthetic


def report(command: AttackCommand, models: Study, rows: Sequence[Row]) -> None:
    """Tables 2 to 7, Figure 2, the heat maps, the wavs of the most transferable clips and the manifest."""
    config, folder, clips = command.config, command.folder, command.clips
    runs = list(dict.fromkeys((name, str(eps or "inf")) for name, eps in attack_runs(config)))
    controls = {name for name, _ in runs if config.attack.spec(name).kind == "control"}
    found = transfer.pairs(rows, controls)
    classes = {model.name: model.victim.classes for model in models.substitutes}
    notes = [
        f"{len(clips)} clips of {clips.source}, results on the wav at each model's own sample rate. A: clips whose "
        "attack succeeded on the substitute (all clips of a control); I: those of A that the target model has right "
        "without the attack; transfer %: of I, those it then gets wrong; target %: of I, those it takes for the target "
        "class. Intervals are Wilson's, 95 %."
    ] + [selection.SYNTHETIC] * clips.synthetic
    if config.attack.ensemble:
        notes.append(f"Attacked together with each substitute: {', '.join(config.attack.ensemble)}.")
    all_rows = len(classes) * len(runs) * len(models.targets) * len(clips)
    if len(rows) < all_rows:
        notes.insert(0, f"Incomplete: {len(rows)} of {all_rows} rows.")
    lines = transfer.transfer_table(found, config.attack.ensemble)
    by_label = transfer.label_table(found, classes)
    tables = {
        "attacks": ("Attacks on the substitutes", transfer.success_table(found)),
        **{
            f"2_transfer.{name}": (
                f"Tables 2 to 5: clips crafted on {name}",
                [line for line in lines if line["substitute"] == name],
            )
            for name in classes
        },
        "6_labels": ("Table 6: the labels that transfer most", transfer.top_labels(by_label)),
        "6_labels.all": ("Transfer by label", by_label),
        "7_differences": ("Table 7: clips that transferred (s) and that did not (f)", transfer.difference_table(found)),
    }
    for name, (title, table) in tables.items():
        write_table(folder / f"{name}.csv", table, title, notes)
    figures_of(command, models, found, lines)
    listen(command, models, transfer.most_transferable(found, config.attack.wavs, controls), rows, notes)
    facts = {
        "config": config.text,
        "seed": config.attack.seed,
        "synthetic": clips.synthetic,
        "source": clips.source,
        "models": {model.name: {"weights": model.weights, **model.facts} for model in models.targets},
    }
    results.write_manifest(folder / "manifest.json", facts)
    shown = [{k: f"{line[k]:.3g}" if isinstance(line[k], float) else line[k] for k in SHOWN} for line in lines]
    print("\n".join([results.markdown(shown), *notes, f"files: {folder}, plots: {config.results.plot_dir}"]))


def figures_of(
    command: AttackCommand, models: Study, found: Sequence[transfer.Pair], lines: Sequence[Mapping[str, Any]]
) -> None:
    """One heat map per attack and eps, and the histograms of labels of each substitute's first attack."""
    plots = command.config.results.plot_dir
    about = " (synthetic speech)" if command.clips.synthetic else ""
    for attack, eps in dict.fromkeys((line["attack"], line["eps"]) for line in lines):
        of_run = [line for line in lines if (line["attack"], line["eps"]) == (attack, eps)]
        columns = {"transfer %": "transfer %", "target %": "target %"}
        values = {title: transfer.matrix(of_run, column) for title, column in columns.items()}
        substitutes, targets, clips = transfer.matrix(of_run, "I")
        transfer_figures.heat_maps(
            plots / f"transfer_{attack}_{eps}.png".replace(" ", ""),
            {title: matrix for title, (_, _, matrix) in values.items()},
            clips, substitutes, targets, title=f"{attack}, eps {eps}{about}: clips crafted on a substitute (rows)",
        )  # fmt: skip
    firsts = {pair.substitute: pair for pair in reversed(found) if pair.substitute == pair.target_model}
    for model in models.substitutes:
        if model.name not in firsts:  # not attacked yet
            continue
        pair = firsts[model.name]
        counts = transfer.label_counts(pair, len(model.victim.classes))
        transfer_figures.label_histograms(
            plots / f"transfer_labels.{model.name}.png",
            {
                title: (counts[f"{column}, all"], counts[f"{column}, A"])
                for title, column in (("ground-truth label", "label"), ("target class", "target"))
            },
            model.victim.classes,
            title=f"{model.name}, {pair.attack}, eps {pair.eps}{about}",
        )


def listen(
    command: AttackCommand, models: Study, chosen: Sequence[dict[str, Any]], rows: Sequence[Row], notes: Sequence[str]
) -> None:
    """Write the wavs of the most transferable clips and their index; where these are there already, nothing."""
    runs = {(name, str(eps or "inf")): (name, eps) for name, eps in attack_runs(command.config)}
    by_name = {model.name: model for model in models.substitutes}
    own = {
        (row["model"], row["attack"], row["eps"], row["id"]): row for row in rows if row["model"] == row["judge"]
    }  # fmt: skip
    index = []
    for line in chosen:
        key = (line["substitute"], line["attack"], line["eps"], line["id"])
        crafted = command.store(by_name[key[0]], *runs[key[1:3]])
        row: dict[str, Any] = {
            **own[key],
            **{name: int(own[key][name]) for name in ("label", "target", "prediction", "prediction_wav")},
            "snr": float(own[key]["snr"]),
        }
        words = by_name[key[0]].victim.classes
        path = str(command.wav_path(row))
        index.append(
            {**line, "label": words[row["label"]], "target": words[row["target"]], "wav": path,
             "store": crafted.folder.name}
        )  # fmt: skip
        if not (command.folder / path).is_file() or not _listed(command.folder / "most_transferable.csv", index[-1]):
            command.export(row, crafted)
    title = "The clips that transfer to the most target models, their wavs"
    write_table(command.folder / "most_transferable.csv", index, title, notes)


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], title: str, notes: Sequence[str]) -> None:
    """Write a table; one without rows is none, and what an earlier run left there goes."""
    if rows:
        results.write_table(path, rows, title, notes)
    else:
        for stale in (path, path.with_suffix(".md")):
            stale.unlink(missing_ok=True)


def _listed(path: Path, line: Mapping[str, Any]) -> bool:
    """Whether an index of an earlier run has the wav of this line, made by the same attack."""
    return any(
        (row.get("wav"), row.get("store")) == (str(line["wav"]), line["store"]) for row in results.read_table(path)
    )
