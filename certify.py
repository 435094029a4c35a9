"""Certified accuracy of trained models by randomized smoothing."""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from src import checkpoint, figures, results, shell
from src.config import Config
from src.datasets import store
from src.distributed import Team, team
from src.smoothing import FIELDS, UNITS, Certifier, ShapedNoise, spectrum, statements, summary
from src.streams import derive_seed
from src.victim import Victim


def main(config: Config, args: argparse.Namespace) -> None:
    """Certify trained models by randomized smoothing, at any representation.

    Certifies n_test clips of the test split at every sigma and writes rows, the table of certified accuracy, a
    summary and a plot per model to results_dir/certify. A second run goes on after the last row; torchrun shares
    the clips over processes.
    """
    settings, data_dir = config.certify, config.data.data_dir
    clips = store.load(data_dir, "test")
    order = torch.Generator().manual_seed(derive_seed(config.data.seed, "n_test"))
    chosen = torch.randperm(len(clips), generator=order)[: config.data.n_test].sort().values
    paths = [config.results.model_dir / f"{name}.pt" for name in args.model or ()]
    paths = paths or sorted(config.results.model_dir.glob("*.pt"))
    if not paths:
        raise FileNotFoundError(f"{config.results.model_dir}: no trained models here; run train_model.py first")
    victims = {path: checkpoint.load(path) for path in paths}
    n_samples, sample_rate = clips.n_samples, clips.sample_rate
    for path, (victim, _) in victims.items():
        checkpoint.check_fits(victim, path, classes=clips.classes, sample_rate=sample_rate, n_samples=n_samples)
        victim.split(settings.stage)  # refuses an unknown representation before any work
    shaped = spectrum(settings, n_samples, sample_rate, lambda: store.load(data_dir, "train").waveforms(slice(0, 4000)))
    clips, idx = clips.select(chosen), chosen.tolist()
    with team() as members:
        for path, (victim, facts) in victims.items():
            trained = facts.get("sigma")
            if members.leads and trained and settings.kind == "noise" and set(settings.sigma) != {trained}:
                print(f"warning: {path.stem} was trained with noise of sigma {trained:g}, not {settings.sigma}")
            rows = certify(config, path, victim, shaped, clips, idx, members)
            if members.leads:
                report(config, path.stem, victim, shaped, clips, rows)
            members.wait()


def certify(
    config: Config,
    path: Path,
    victim: Victim,
    shaped: ShapedNoise | None,
    clips: store.Clips,
    idx: list[int],
    team: Team,
) -> dict[float, list[dict[str, str]]]:
    """The rows of one model, by sigma; only those that are missing are computed."""
    settings, device = config.certify, team.device(config.training.use_cuda)
    head, tail = victim.to(device).frozen().split(settings.stage)
    certifier = Certifier(head, tail, settings, clips.sample_rate, shaped)
    given = {
        "model": hashlib.sha256(path.read_bytes()).hexdigest(),
        "clips": hashlib.sha256(clips.samples.tobytes()).hexdigest(),
        "shape": shaped and hashlib.sha256(shaped.amplitude.numpy().tobytes()).hexdigest(),
        "device": device.type,
        **settings.identity(),
    }
    found = {}
    for sigma in settings.sigma:
        file = config.results.results_dir / "certify" / f"{path.stem}.{settings.space}.{sigma:g}.rows.csv"
        opening = (file, FIELDS, ["idx"], {**given, "sigma": sigma})
        if team.leads:
            results.Rows(*opening).close()  # takes in the parts that an interrupted run left
        team.wait()
        rows = results.Rows(*opening, part=None if team.size == 1 else team.rank)
        mine = team.share(range(len(clips)))
        for i in tqdm(mine, f"{path.stem}, {settings.space}, sigma {sigma:g}", unit="clip", disable=not team.leads):
            if (idx[i],) in rows:
                continue
            start, label = time.perf_counter(), int(clips.labels[i])
            certificate = certifier(clips.waveforms([i])[0].to(device), clips.ids[i], sigma)
            seconds, right = round(time.perf_counter() - start, 3), certificate.correct(label)
            values = (idx[i], clips.ids[i], label, certificate.label, certificate.radius, right, certificate.n_used)
            rows.write(dict(zip(FIELDS, (*values, seconds), strict=True)))
        rows.close()
        team.wait()
        if team.leads:
            whole = results.Rows(*opening)
            whole.sort([(i,) for i in idx])
            whole.close()
            found[sigma] = whole.rows
    return found


def report(
    config: Config,
    model: str,
    victim: Victim,
    shaped: ShapedNoise | None,
    clips: store.Clips,
    rows: dict[float, list[dict[str, str]]],
) -> None:
    """Tables, plot and manifest of one model."""
    settings = config.certify
    name, folder = f"{model}.{settings.space}", config.results.results_dir / "certify"
    notes = statements(settings)
    if clips.synthetic:
        notes.append("SYNTHETIC SPEECH: a speech synthesizer spoke these clips.")
    table = summary.table(rows, settings.radii)
    title = f"Certified accuracy of {model} ({settings.space}), {len(clips)} clips"
    results.write_table(folder / f"{name}.certified_accuracy.csv", table, title, notes)
    sizes = {example: float(clips.waveforms([i]).norm()) for i, example in enumerate(clips.ids)}
    lipschitz = victim.lipschitz(settings.stage) if settings.kind == "noise" else None
    lines = [
        {"sigma": sigma} | summary.summarize(own, sizes, lipschitz, shaped.l2() if shaped else 1.0)
        for sigma, own in rows.items()
    ]
    results.write_table(folder / f"{name}.summary.csv", lines, f"The smoothed {model} ({settings.space})", notes)
    if shaped:
        budgets = summary.budgets(rows, sizes, shaped.bands(clips.sample_rate))
        results.write_table(folder / f"{name}.bands.csv", budgets, f"Budgets of {model} by octave", notes)
    largest = max([*settings.radii, *(float(row["radius"]) for own in rows.values() for row in own)])
    grid = np.linspace(0, largest, 400)
    curves = {f"sigma {sigma:g}": summary.certified_accuracy(own, grid) for sigma, own in rows.items()}
    figures.certified(
        config.results.plot_dir / f"certified_accuracy.{name}.png",
        grid,
        curves,
        best=summary.envelope(list(curves.values())),
        x_label=f"radius ({UNITS[settings.kind]})",
        title=f"{model}, {settings.space}{' (synthetic speech)' if clips.synthetic else ''}",
    )
    facts = {"config": config.text, "notes": notes, "lipschitz": lipschitz, "synthetic": clips.synthetic}
    results.write_manifest(folder / f"{name}.manifest.json", facts)
    print("\n".join([title, "", results.markdown(table), results.markdown(lines), *notes, f"files: {folder}", ""]))


if __name__ == "__main__":
    shell.run(
        main,
        ["CERTIFY", "DATA", "RESULTS"],
        model={"action": "append", "metavar": "NAME", "help": "a model in model_dir; may be repeated (default: all)"},
    )
