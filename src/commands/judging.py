"""`attack.py --judge`: the clips crafted against every model scored on other models, or on the same ones behind other
defenses. It reads the stores of crafted clips and needs forward passes only."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from src.commands import selection
from src.commands.attack import AttackCommand, attack_runs
from src.commands.shared_rows import collect
from src.config import Config
from src.datasets.store import Clips
from src.evaluation import ATTACK_FIELDS, ATTACK_KEY, Judge, summary
from src.output import results

JUDGED_KEY = (*ATTACK_KEY, "judge_checkpoint")


def judges(config: Config, names: Sequence[str], clips: Clips) -> list[selection.Trained]:
    """The models named NAME or NAME+DEFENSE+...: as in their checkpoint, behind these defenses with the options and
    the places of the config.

    Raises:
        OSError: no such model.
        ValueError: an unknown defense, or one that cannot stand there.
    """
    judging = []
    for name in dict.fromkeys(names):
        model, *defenses = name.split("+")
        (trained,) = selection.models(config, [model], clips, selection.configured_defenses(config, defenses))
        judging.append(selection.Trained(name, trained.weights, trained.victim, trained.facts))
    return judging


def judge_crafted(
    command: AttackCommand,
    models: Sequence[selection.Trained],
    judging: Sequence[selection.Trained],
    device: torch.device,
) -> None:
    """Score what every attack made against every one of the models, on every judge: rows in judged.csv, one line per
    model, attack, eps and judge in judged.summary.csv."""
    settings, clips = command.config.attack, command.clips
    scorers = {
        judge.name: Judge(judge.victim, device, seed=settings.seed, batch_size=settings.batch_size) for judge in judging
    }

    def compute(rows: results.RowFile) -> list[tuple[str, ...]]:
        keys: list[tuple[str, ...]] = []
        for model in models:
            for name, eps in attack_runs(command.config):
                store = command.store(model, name, eps)
                for judge in judging:
                    checkpoints = (model.weights[:8], judge.weights[:8])
                    run_keys = [
                        (model.name, checkpoints[0], name, str(eps or "inf"), example, judge.name, checkpoints[1])
                        for example in clips.ids
                    ]
                    keys += run_keys
                    share = command.members.share([i for i, key in enumerate(run_keys) if key not in rows])
                    chosen = clips.select(share)
                    if not share:
                        continue
                    judged = scorers[judge.name].rows(*store.read(chosen.ids), targeted=settings.targeted, clean=chosen)
                    for row in judged:
                        names = {"model": model.name, "checkpoint": checkpoints[0], "judge": judge.name, "wav": ""}
                        rows.write({**row, **names, "judge_checkpoint": checkpoints[1]})
        return keys

    opening = (command.folder / "judged.csv", (*ATTACK_FIELDS, "judge_checkpoint"), JUDGED_KEY, command.identity)
    rows = collect(command.members, opening, compute)
    if command.members.leads:
        table = summary.judged(rows)
        title = f"Clips crafted against a model, judged on others, {len(clips)} clips"
        notes = [selection.SYNTHETIC] * clips.synthetic
        results.write_table(command.folder / "judged.summary.csv", table, title, notes)
        print("\n".join(["", title, "", results.markdown(table), *notes]))
