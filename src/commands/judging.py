"""`attack.py --judge`: the clips crafted against every model scored on other models, or on the same ones behind other
defenses. It reads the stores of crafted clips and needs forward passes only; clips that a store lacks are crafted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from src.commands import selection
from src.commands.attack import AttackCommand, AttackedModel, attack_runs
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
        defended = selection.configured_defenses(config, defenses)
        (trained,) = selection.models(config, [model], clips, defended, judging=True)
        judging.append(selection.Trained(name, trained.weights, trained.victim, trained.facts))
    return judging


def judged_rows(
    command: AttackCommand,
    attacked: Sequence[AttackedModel],
    judging: Sequence[selection.Trained],
    device: torch.device,
    path: Path,
    *,
    work: bool = True,
) -> list[dict[str, str]]:
    """The rows of every clip that every attack made against every one of the models, on every judge, which is asked
    about the clips of classes that it knows. Clips and rows that are not there yet are made, unless `work` is False.

    Args:
        judging: a judge that is one of the attacked models itself has its columns of the stage and the audio as well.
        path: of the file of rows.

    Raises:
        ValueError: `work` is False and there are no rows of this run.
    """
    settings, clips = command.config.attack, command.clips
    known = {judge.name: set(selection.known_clips([judge], clips).ids) for judge in judging}
    scorers = {
        judge.name: Judge(judge.victim, device, seed=settings.seed, batch_size=settings.batch_size) for judge in judging
    }

    def compute(rows: results.RowFile) -> list[tuple[str, ...]]:
        keys: list[tuple[str, ...]] = []
        for entry in attacked:
            model = entry.model
            for name, eps in attack_runs(command.config):
                run = (model.name, model.weights[:8], name, str(eps or "inf"))
                run_keys = {
                    judge.name: [(*run, example, judge.name, judge.weights[:8]) for example in clips.ids]
                    for judge in judging
                }
                missing = {
                    judge: [key not in rows and key[4] in known[judge] for key in judge_keys]
                    for judge, judge_keys in run_keys.items()
                }
                keys += [key for judge, judge_keys in run_keys.items() for key in judge_keys if key[4] in known[judge]]
                # Shared by clip, not by judge, so that no two processes craft the same clip.
                wanted = [i for i, lacks in enumerate(zip(*missing.values(), strict=True)) if any(lacks)]
                share = command.members.share(wanted) if work else ()
                if not share:
                    continue
                store = command.store(model, name, eps)
                command.craft(entry, store, share, name, eps)
                for judge in judging:
                    index = [i for i in share if missing[judge.name][i]]
                    if not index:
                        continue
                    chosen = clips.select(index)
                    crafted, facts = store.read(chosen.ids)
                    clean = None if judge.victim is model.victim else chosen
                    for row in scorers[judge.name].rows(crafted, facts, targeted=settings.targeted, clean=clean):
                        names = {"model": model.name, "checkpoint": run[1], "judge": judge.name, "wav": ""}
                        rows.write({**row, **names, "judge_checkpoint": judge.weights[:8]})
        return keys

    opening = (path, (*ATTACK_FIELDS, "judge_checkpoint"), JUDGED_KEY, command.identity)
    if not work and not results.holds_rows_of(path, opening[1], command.identity):
        raise ValueError(f"{path}: no rows of these settings to report on; leave --report out")
    return collect(command.members, opening, compute)


def judge_crafted(
    command: AttackCommand,
    attacked: Sequence[AttackedModel],
    judging: Sequence[selection.Trained],
    device: torch.device,
) -> None:
    """Score what every attack made against every one of the models, on every judge: rows in judged.csv, one line per
    model, attack, eps and judge in judged.summary.csv. A judge is asked about the clips of classes that it knows."""
    clips = command.clips
    rows = judged_rows(command, attacked, judging, device, command.folder / "judged.csv")
    if command.members.leads:
        table = summary.judged(rows)
        title = f"Clips crafted against a model, judged on others, {len(clips)} clips"
        notes = [selection.SYNTHETIC] * clips.synthetic
        results.write_table(command.folder / "judged.summary.csv", table, title, notes)
        print("\n".join(["", title, "", results.markdown(table), *notes]))
