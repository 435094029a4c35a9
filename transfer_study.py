"""Craft clips on substitute models, and score them on every other model."""

from __future__ import annotations

import argparse
from dataclasses import replace

from prepare_dataset import main as prepare
from src import cli
from src.commands import selection, transfer
from src.commands.attack import AttackCommand, attacked_model, identity
from src.commands.judging import judged_rows
from src.commands.trainings import trainings
from src.config import Config
from src.datasets import store
from src.distributed import choose_device, team
from train_model import main as train


def main(config: Config, args: argparse.Namespace) -> None:
    """Study how attacks transfer: craft clips on every substitute of [TRANSFER], score the wavs on every target model.

    Runs every attack of [ATTACK] names, aimed at a random other class, on n_test test clips. Writes one row per clip
    and target model to results_dir/transfer/rows.csv, and from the rows: accuracy, transfer by target model and by
    label, what differs between clips that transfer and those that do not, heat maps of every model against every model,
    histograms of labels, and the wavs of the clips that transfer most. Data that are not prepared, and models that
    [TRANSFER] and [MODEL] name and that are missing, are made first. A second run resumes after the last row; torchrun
    shares the clips over processes, once data and models are there.
    """
    with team() as members:
        if members.size == 1 and not args.report:
            make_missing(config, args)
        everything = store.load(config.data.data_dir, "test")
        models = transfer.study(config, everything)
        everything = selection.known_clips(models.targets, everything)
        clips = everything.select(selection.drawn(config, everything).sort().values)
        device = choose_device(config.training.use_cuda)
        ensemble = selection.models(config, config.attack.ensemble, everything) if config.attack.ensemble else []
        attacked = [attacked_model(config, model, device, ensemble) for model in models.substitutes]
        facts = identity(config, everything, device, ensemble)
        command = AttackCommand(config, clips, frozenset(), facts, members, "transfer")
        path = command.folder / "rows.csv"
        rows = judged_rows(command, attacked, models.targets, device, path, work=not args.report)
        if not rows:
            raise ValueError(f"{path}: no row of these models and attacks; leave --report out")
        if members.leads:
            transfer.accuracies(config, command.folder, models.targets, device)
            transfer.report(command, models, rows)
        members.wait()


def make_missing(config: Config, args: argparse.Namespace) -> None:
    """Prepare the data where there are none, and train the models that [TRANSFER] and [MODEL] name and that are not in
    model_dir, with the teachers that these need, and theirs."""
    if not (config.data.data_dir / "dataset.json").is_file():
        prepare(config, args)
    listed = {training.name: training for training in trainings(config)}
    missing, queue = set[str](), [*config.transfer.substitutes, *config.transfer.targets]
    for name in queue:  # it grows by the teachers
        if name in listed and name not in missing and not (config.results.model_dir / f"{name}.pt").is_file():
            missing.add(name)
            queue.append(listed[name].teacher)
    if missing:
        names = dict.fromkeys(training.listed for training in listed.values() if training.name in missing)
        train(replace(config, model=replace(config.model, names=tuple(names))), args)


if __name__ == "__main__":
    cli.run(main, report={"action": "store_true", "help": "only write the tables and figures of the rows so far"})
