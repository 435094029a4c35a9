"""The pieces of attack.py: the rows of one model, what can be listened to, and the report."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from src.attacks.core import spec_of
from src.commands.selection import SYNTHETIC, Trained
from src.config import Config
from src.datasets.store import Clips
from src.distributed import Team
from src.evaluation import ATTACK_KEY, Evaluation, Outcome, sanity_checks, summary
from src.output import figures, results
from src.registry import ATTACKS, DEFENSES, INVERSIONS
from src.threat import Budget

SHOWN = ("model", "attack", "norm", "eps", "clean accuracy", "robust accuracy", "on wav", "survival", "inversion only",
         "l2", "linf", "snr", "pesq", "backwards", "s/clip")  # fmt: skip
Row = Mapping[str, str]


@dataclass(frozen=True)
class AttackedModel:
    """A trained model and its evaluation behind the configured defenses at the configured representation."""

    model: Trained
    own: Evaluation


def subject(config: Config, model: Trained, device: torch.device) -> AttackedModel:
    """Raises ValueError where the model has no such representation or a defense does not fit."""
    for name in config.attack.names:  # what depends on the sample rate is refused before any work, too
        options = {**config.component("ATTACK", name), "sample_rate": model.victim.sample_rate}
        ATTACKS.check_options(name, options)
    defenses = [
        DEFENSES[name](sample_rate=model.victim.sample_rate, **config.component("DEFENSE", name))
        for name in config.defense.names
    ]
    inversion = functools.partial(
        INVERSIONS[config.inversion.name], **config.component("INVERSION", config.inversion.name)
    )
    victim = model.victim.defended(defenses) if defenses else model.victim
    return AttackedModel(model, Evaluation(victim, config.attack, inversion, device))


def runs(config: Config) -> list[tuple[str, Budget | None]]:
    """Every (attack, budget); random signs are the control of every attack with a budget."""
    names = list(config.attack.names)
    budgeted = [name for name in names if spec_of(name).has_budget]
    if budgeted and "random_signs" not in names and config.attack.norm != "l0":
        names.append("random_signs")
        budgeted.append("random_signs")
    return [(name, eps) for name in names for eps in (config.attack.eps if name in budgeted else (None,))]


def identity(config: Config, clips: Clips, device: torch.device) -> dict[str, object]:
    """What all rows depend on; the model and its weights, the attack and eps stand in the rows."""
    kinds = ("ATTACK", "INVERSION", "DEFENSE")
    return {
        "attack": config.attack.identity(),
        "inversion": config.inversion.name,
        "defenses": config.defense.names,
        "components": {name: keys for name, keys in config.components.items() if name.startswith(kinds)},
        "clips": clips.fingerprint(),
        "device": device.type,
    }


def attack(
    config: Config, subject: AttackedModel, clips: Clips, heard: set[str], rows: results.RowFile, members: Team
) -> list[tuple[str, ...]]:
    """Compute the rows of one model that are missing; returns the keys of all its rows.

    Args:
        heard: ids whose wavs and figures are kept.
    """
    model, weights = subject.model.name, subject.model.weights[:8]
    keys: list[tuple[str, ...]] = []
    for name, eps in runs(config):
        own = [(model, weights, name, str(eps or "inf"), example) for example in clips.ids]
        keys += own
        todo = [i for i, key in enumerate(own) if key not in rows]
        if spec_of(name).fitted and todo:  # one perturbation for all clips
            todo = list(range(len(clips))) if members.leads else []
        else:
            todo = list(members.share(todo))
        folder = config.results.results_dir / "attack" / "wavs" / model / f"{name}_{eps or 'inf'}".replace(" ", "")
        listen = functools.partial(through_wav, folder, heard, clips.sample_rate)
        outcomes = subject.own.run(clips.select(todo), name, config.component("ATTACK", name), eps, listen)
        title = f"{model}, {name}, eps {eps or 'smallest'}"
        for outcome in tqdm(outcomes, title, len(todo), unit="clip", disable=not members.leads, leave=False):
            row = {**outcome.row, "model": model, "checkpoint": weights}
            if row["id"] in heard:
                export(folder, outcome, clips)
            if tuple(row[k] for k in ATTACK_KEY) not in rows:
                rows.write(row)
    return keys


def plain(example: str) -> str:
    """An id as a file name."""
    return example.removesuffix(".wav").replace("/", "_")


def through_wav(folder: Path, heard: set[str], sample_rate: int, example: str, x: np.ndarray) -> np.ndarray:
    """x [time] as it is read back from a 16-bit wav, which stays in `folder` where the example is to be heard."""
    with tempfile.TemporaryDirectory() as scratch:
        wav = folder / f"{plain(example)}.adversarial.wav" if example in heard else Path(scratch) / "clip.wav"
        results.write_wav(wav, x, sample_rate)
        return results.read_wav(wav)


def export(folder: Path, outcome: Outcome, clips: Clips) -> None:
    """The original and the perturbation as wavs beside the adversarial one, and the figure of all three."""
    row, x, x_adv = outcome.row, outcome.x, outcome.x_adv
    name, delta = plain(row["id"]), x_adv - x
    results.write_wav(folder / f"{name}.original.wav", x, clips.sample_rate)
    results.write_wav(folder / f"{name}.perturbation.wav", delta, clips.sample_rate)
    word = [*clips.classes, "undefined"]
    aim = f", target '{word[row['target']]}'" if row["target"] >= 0 else ""
    panels = [
        (f"original: '{word[row['label']]}', heard '{word[row['prediction']]}'", x),
        (f"{row['attack']}, eps {row['eps']}{aim}: wav heard '{word[row['prediction_wav']]}'", x_adv),
        (f"perturbation: max {np.abs(delta).max():.2g}, SNR {row['snr']:.1f} dB", delta),
    ]
    note = SYNTHETIC if clips.synthetic else ""
    figures.spectrograms(folder / f"{name}.png", panels, clips.sample_rate, note=note)


def report(
    config: Config,
    subjects: Sequence[AttackedModel],
    clips: Clips,
    rows: Sequence[Row],
    signs: Mapping[str, Sequence[sanity_checks.Indicator]],
    searched: Mapping[str, str],
) -> None:
    """Tables, plots, manifest, and what to read first on the terminal.

    Args:
        signs: what failure.search found, and
        searched: on what.
    """
    folder, plots, settings = config.results.results_dir / "attack", config.results.plot_dir, config.attack
    where = settings.stage if settings.stage == "waveform" else f"{settings.stage}, {config.inversion.name}"
    source = f"{len(clips)} clips{' of synthetic speech' if clips.synthetic else ''}"
    title = f"Attacks at {where}{', targeted' if settings.targeted else ''}, {source}"
    verdicts = {name: sanity_checks.sanity_verdict(own) for name, own in signs.items()}
    notes = [SYNTHETIC] * clips.synthetic + [f"{name}: {text}" for name, text in verdicts.items()]
    table, points = summary.table(rows), summary.points(rows)
    results.write_table(folder / "summary.csv", table, title, notes)
    results.write_table(folder / "security.csv", points, f"Accuracy against eps, {title}", notes)
    controls = {name for name, _ in runs(config) if spec_of(name).kind == "control"}
    for axis in sorted({point["axis"] for point in points}):
        unit = "SNR of the perturbation (dB)" if axis == "SNR" else f"{axis} of the perturbation ({settings.stage})"
        own = [point for point in points if point["axis"] == axis]
        path = plots / f"security_{settings.stage}_{axis}.png"
        figures.security(path, own, title=title, x_label=unit, falling=axis == "SNR", controls=controls)
    facts = {
        "config": config.text,
        "seed": settings.seed,
        "device": str(subjects[0].own.device),
        "synthetic": clips.synthetic,
        "source": clips.source,
        "models": {one.model.name: one.model.facts for one in subjects},
        "verdicts": verdicts,
        "signs": {name: [sign.facts() for sign in found] for name, found in signs.items()},
        "searched": searched,
    }
    results.write_manifest(folder / "manifest.json", facts)
    shown = [
        {key: f"{line[key]:.3g}" if isinstance(line[key], float) else line[key] for key in SHOWN} for line in table
    ]
    files = f"files: {folder} (rows, summary, security, manifest, wavs), {plots} (plots)"
    print("\n".join([title, "", results.markdown(shown), *notes, files]))
