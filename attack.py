"""Attack trained models, listen to the result, and draw accuracy against the size of the perturbation."""

from __future__ import annotations

import argparse
import functools
import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from src import checkpoint, checks, figures, results, shell
from src.config import Config
from src.datasets import store
from src.distributed import Team, team
from src.evaluation import FIELDS, KEY, Evaluation, Outcome, bound, summary
from src.registry import ATTACKS, DEFENSES, INVERSIONS
from src.self_test import self_test
from src.streams import derive_seed
from src.threat import Budget
from src.victim import Victim

SYNTHETIC = "SYNTHETIC SPEECH: a speech synthesizer spoke these clips."
SHOWN = ("model", "attack", "norm", "eps", "clean accuracy", "robust accuracy", "on wav", "survival", "inversion only",
         "l2", "linf", "snr", "pesq", "backwards", "s/clip")  # fmt: skip
Run = tuple[str, Budget | None]


def main(config: Config, args: argparse.Namespace) -> None:
    """Attack trained models at any representation, judge the result on the 16-bit wav, and listen.

    Runs every attack of [ATTACK] names at every eps, with random signs of the same size as control, on n_test clips
    of the test split. Writes one row per clip to results_dir/attack/rows.csv, wavs and spectrograms, a summary,
    accuracy against eps as table and plot, and signs of a failed attack to manifest.json. A second run goes on after
    the last row; torchrun shares the clips over processes.
    """
    settings, everything = config.attack, store.load(config.data.data_dir, "test")
    order = torch.randperm(
        len(everything), generator=torch.Generator().manual_seed(derive_seed(config.data.seed, "n_test"))
    )[: config.data.n_test]
    clips, kept = everything.select(order.sort().values), {everything.ids[i] for i in order[: settings.wavs].tolist()}
    paths = [config.results.model_dir / f"{name}.pt" for name in args.model or ()]
    paths = paths or sorted(config.results.model_dir.glob("*.pt"))
    if not paths:
        raise FileNotFoundError(f"{config.results.model_dir}: no trained models here; run train_model.py first")
    with team() as members:
        device = members.device(config.training.use_cuda)
        evaluations, facts = {}, {}
        for path in paths:
            victim, facts[path.stem] = checkpoint.load(path)
            checkpoint.check_fits(
                victim, path, classes=clips.classes, sample_rate=clips.sample_rate, n_samples=clips.n_samples
            )
            evaluations[path] = evaluation(config, victim, defended=True, device=device)
        if args.self_test:
            if members.leads:
                plant_and_search(config, evaluations, clips)
            return
        folder = config.results.results_dir / "attack"
        opening = (folder / "rows.csv", FIELDS, KEY, identity(config, everything, device))
        if members.leads:
            results.Rows(*opening).close()  # takes in the parts that an interrupted run left
        members.wait()
        rows = results.Rows(*opening, part=None if members.size == 1 else members.rank)
        wanted = [attack(config, path, own, clips, kept, rows, members) for path, own in evaluations.items()]
        rows.close()
        members.wait()
        if members.leads:
            whole = results.Rows(*opening)
            keys = [key for own in wanted for key in own]
            whole.sort(keys)
            whole.close()
            asked = {tuple(map(results.cell, key)) for key in keys}
            own_rows = [row for row in whole.rows if tuple(row[k] for k in KEY) in asked]
            verdicts = search_for_failure(config, evaluations, clips, own_rows)
            report(config, clips, own_rows, verdicts, facts, device)
        members.wait()


def evaluation(config: Config, victim: Victim, *, defended: bool, device: torch.device) -> Evaluation:
    """The victim, behind the configured defenses if `defended`, at the configured representation."""
    stages = [
        DEFENSES[name](sample_rate=victim.sample_rate, **config.component("DEFENSE", name))
        for name in config.defense.names
    ]
    inversion = functools.partial(
        INVERSIONS[config.inversion.name], **config.component("INVERSION", config.inversion.name)
    )
    return Evaluation(victim.defended(stages) if defended and stages else victim, config.attack, inversion, device)


def runs(config: Config) -> list[Run]:
    """Every (attack, budget); random signs are the control of every attack with a budget."""
    names = list(config.attack.names)
    budgeted = [name for name in names if ATTACKS[name].kind == "budget"]  # type: ignore[attr-defined]
    if budgeted and "random_signs" not in names and config.attack.norm != "l0":
        names.append("random_signs")
        budgeted.append("random_signs")
    return [(name, eps) for name in names for eps in (config.attack.eps if name in budgeted else (None,))]


def identity(config: Config, clips: store.Clips, device: torch.device) -> dict[str, object]:
    """What all rows depend on; the model and its weights, the attack and eps stand in the rows."""
    kinds = ("ATTACK", "INVERSION", "DEFENSE")
    return {
        "attack": config.attack.identity(),
        "inversion": config.inversion.name,
        "defenses": config.defense.names,
        "components": {name: keys for name, keys in config.components.items() if name.startswith(kinds)},
        "clips": hashlib.sha256(clips.samples.tobytes()).hexdigest(),
        "device": device.type,
    }


def attack(
    config: Config,
    path: Path,
    own: Evaluation,
    clips: store.Clips,
    kept: set[str],
    rows: results.Rows,
    members: Team,
) -> list[tuple[str, ...]]:
    """Compute the rows of one model that are missing; returns the keys of all its rows."""
    model, weights = path.stem, hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    keys: list[tuple[str, ...]] = []
    for name, eps in runs(config):
        keys += [(model, weights, name, str(eps or "inf"), example) for example in clips.ids]
        todo = [i for i in range(len(clips)) if keys[i - len(clips)] not in rows]
        if not getattr(ATTACKS[name], "per_example", True) and todo:  # one perturbation for all clips
            todo = list(range(len(clips))) if members.leads else []
        else:
            todo = list(members.share(todo))
        folder = config.results.results_dir / "attack" / "wavs" / model / f"{name}_{eps or 'inf'}".replace(" ", "")
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "clip.wav"

            def listen(example: str, x: np.ndarray, folder: Path = folder, scratch: Path = scratch) -> np.ndarray:
                wav = folder / f"{plain(example)}.adversarial.wav" if example in kept else scratch
                results.write_wav(wav, x, clips.sample_rate)
                return results.read_wav(wav)

            outcomes = own.run(clips.select(todo), name, config.component("ATTACK", name), eps, listen)
            title = f"{model}, {name}, eps {eps or 'smallest'}"
            for outcome in tqdm(outcomes, title, len(todo), unit="clip", disable=not members.leads, leave=False):
                row = {**outcome.row, "model": model, "checkpoint": weights}
                if row["id"] in kept:
                    export(folder, outcome, clips)
                if tuple(row[k] for k in KEY) not in rows:
                    rows.write(row)
    return keys


def plain(example: str) -> str:
    """An id as a file name."""
    return example.removesuffix(".wav").replace("/", "_")


def export(folder: Path, outcome: Outcome, clips: store.Clips) -> None:
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


def search_for_failure(
    config: Config, evaluations: dict[Path, Evaluation], clips: store.Clips, rows: Sequence[dict[str, str]]
) -> dict[str, list[checks.Indicator]]:
    """The signs of failure of every attack on every model, on a few clips at the first eps and over all rows."""
    found: dict[str, list[checks.Indicator]] = {}
    settings = config.attack
    if not settings.checks:
        return found
    first = {name: eps for name, eps in reversed(runs(config)) if not name.startswith("random_")}
    for path, own in evaluations.items():
        right = {row["id"] for row in rows if row["model"] == path.stem and row["correct"] == "1"}
        chosen = [i for i, example in enumerate(clips.ids) if example in right][: settings.checks]
        for name, eps in reversed(first.items()):
            mine = [row for row in rows if (row["model"], row["attack"]) == (path.stem, name)]
            signs = [checks.lost_on_wav(mine)]
            if eps and len(settings.eps) > 1 and len({budget.is_snr for budget in settings.eps}) == 1:
                sign = -1 if eps.is_snr else 1
                points = {sign * p["eps"]: p["accuracy"] for p in summary.points(mine)}
                signs.append(checks.not_monotone(points))
            if chosen:
                signs += check_one(config, own, clips.select(chosen), name, eps)
            found[f"{path.stem}, {name}"] = signs
    return found


def check_one(
    config: Config, own: Evaluation, part: store.Clips, name: str, eps: Budget | None
) -> list[checks.Indicator]:
    """The checks of one attack on one model on these clips."""
    settings = config.attack
    x, valid, y, z = own.load(part)
    if settings.targeted:
        y = own.targets(y, part.ids)
    undefended = None
    if config.defense.names and settings.stage == "waveform":
        plain_victim = Victim(
            list(own.victim.stages)[len(config.defense.names) :],  # type: ignore[arg-type]
            own.victim.classifier,  # type: ignore[arg-type]
            classes=own.victim.classes, sample_rate=own.victim.sample_rate, n_samples=own.victim.n_samples,
        )  # fmt: skip
        undefended = plain_victim.eval().frozen()
    with tqdm(desc=f"searching {name} for signs of failure", total=1, leave=False):
        return checks.check(
            bound(name, config.component("ATTACK", name)), own.tail, own.attacked(part.ids), z, y,
            own.threat(x, z, valid, name, eps), streams=lambda purpose: own.streams(part.ids, purpose),
            targeted=settings.targeted, is_adaptive=settings.adaptive, undefended=undefended,
        )  # fmt: skip


def plant_and_search(config: Config, evaluations: dict[Path, Evaluation], clips: store.Clips) -> None:
    """--self-test: does each attack with a budget find a planted adversarial example?"""
    part = clips.select(range(min(len(clips), config.attack.batch_size)))
    for path, own in evaluations.items():
        x, valid, _, z = own.load(part)
        for name, eps in runs(config):
            if eps and not name.startswith("random_"):
                threat = own.threat(x, z, valid, name, eps)
                outcome = self_test(
                    bound(name, config.component("ATTACK", name)), own.attacked(part.ids), z, threat,
                    streams=lambda purpose, own=own: own.streams(part.ids, purpose),  # type: ignore[misc]
                )  # fmt: skip
                print(f"{path.stem}, {name}, eps {eps}: {outcome}", flush=True)


def report(
    config: Config,
    clips: store.Clips,
    rows: Sequence[dict[str, str]],
    signs: dict[str, list[checks.Indicator]],
    facts: dict[str, dict[str, object]],
    device: torch.device,
) -> None:
    """Tables, plots, manifest, and what to read first on the terminal."""
    folder, settings = config.results.results_dir / "attack", config.attack
    where = settings.stage if settings.stage == "waveform" else f"{settings.stage}, {config.inversion.name}"
    source = f"{len(clips)} clips{' of synthetic speech' if clips.synthetic else ''}"
    title = f"Attacks at {where}{', targeted' if settings.targeted else ''}, {source}"
    verdicts = {name: checks.verdict(own) for name, own in signs.items()}
    notes = [SYNTHETIC] * clips.synthetic + [f"{name}: {text}" for name, text in verdicts.items()]
    table = summary.table(rows)
    results.write_table(folder / "summary.csv", table, title, notes)
    points = summary.points(rows)
    results.write_table(folder / "security.csv", points, f"Accuracy against eps, {title}", notes)
    for axis in sorted({point["axis"] for point in points}):
        figures.security(
            config.results.plot_dir / f"security_{settings.stage}_{axis}.png",
            [point for point in points if point["axis"] == axis],
            title=title,
            x_label="SNR of the perturbation (dB)"
            if axis == "SNR"
            else f"{axis} of the perturbation ({settings.stage})",
            falling=axis == "SNR",
        )
    results.write_manifest(
        folder / "manifest.json",
        {
            "config": config.text,
            "seed": settings.seed,
            "device": str(device),
            "synthetic": clips.synthetic,
            "source": clips.source,
            "models": facts,
            "verdicts": verdicts,
            "signs": {name: [sign.facts() for sign in own] for name, own in signs.items()},
        },
    )
    shown = [
        {key: f"{line[key]:.3g}" if isinstance(line[key], float) else line[key] for key in SHOWN} for line in table
    ]
    files = f"files: {folder} (rows, summary, security, manifest, wavs), {config.results.plot_dir} (plots)"
    print("\n".join([title, "", results.markdown(shown), *notes, files]))


if __name__ == "__main__":
    shell.run(
        main,
        ["ATTACK", "INVERSION", "DEFENSE", "DATA", "RESULTS"],
        model={"action": "append", "metavar": "NAME", "help": "a model in model_dir; may be repeated (default: all)"},
        self_test={"action": "store_true", "help": "only test whether the attacks find a planted adversarial example"},
    )
