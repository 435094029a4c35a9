"""Attack trained models, listen to the result, and draw accuracy against the size of the perturbation."""

from __future__ import annotations

import argparse

from src import cli
from src.commands import judging, sanity, selection
from src.commands.attack import AttackCommand, attacked_model, identity, report
from src.commands.shared_rows import collect
from src.config import Config
from src.datasets import store
from src.distributed import choose_device, team
from src.evaluation import ATTACK_FIELDS, ATTACK_KEY
from src.output import results


def main(config: Config, args: argparse.Namespace) -> None:
    """Attack trained models at any representation, judge the result on the 16-bit wav, and listen.

    Runs every attack of [ATTACK] names at every eps, with random signs of the same size as control, on n_test clips
    of the test split. Keeps what was made in stores of adversarial clips, and writes one row per clip to
    results_dir/attack/rows.csv, wavs and spectrograms, a summary, accuracy against eps as table and plot, and signs of
    a failed attack to manifest.json. A second run resumes after the last row; torchrun shares the clips over
    processes. With --judge the clips made against every model are scored on other models too, without gradients.
    """
    everything = store.load(config.data.data_dir, "test")
    models = selection.models(config, args.model, everything)
    everything = selection.known_clips(models, everything)
    order = selection.drawn(config, everything)
    clips = everything.select(order.sort().values)
    ensemble = selection.models(config, config.attack.ensemble, everything) if config.attack.ensemble else []
    listened = frozenset(everything.ids[i] for i in order[: config.attack.wavs].tolist())
    judges = judging.judges(config, args.judge or (), clips)
    with team() as members:
        device = choose_device(config.training.use_cuda)
        attacked = [attacked_model(config, model, device, ensemble) for model in models]
        if args.self_test:
            if members.leads:
                sanity.plant_and_search(config, attacked, clips)
            return
        command = AttackCommand(config, clips, listened, identity(config, everything, device, ensemble), members)

        def compute(rows: results.RowFile) -> list[tuple[str, ...]]:
            return [key for entry in attacked for key in command.collect(entry, rows)]

        rows = collect(members, (command.folder / "rows.csv", ATTACK_FIELDS, ATTACK_KEY, command.identity), compute)
        if members.leads:
            manifest = command.folder / "manifest.json"
            signs, searched = sanity.search(config, attacked, clips, rows, command.identity, manifest)
            report(config, attacked, clips, rows, signs, searched)
        if judges:
            judging.judge_crafted(command, attacked, judges, device)
        members.wait()


if __name__ == "__main__":
    cli.run(
        main,
        model={"action": "append", "metavar": "NAME", "help": "a model in model_dir; may be repeated (default: all)"},
        judge={
            "action": "append",
            "metavar": "NAME[+DEFENSE...]",
            "help": "score the crafted clips on this model too, behind these defenses; may be repeated",
        },
        self_test={"action": "store_true", "help": "only test whether the attacks find a planted adversarial example"},
    )
