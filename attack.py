"""Attack trained models, listen to the result, and draw accuracy against the size of the perturbation."""

from __future__ import annotations

import argparse

from src import cli
from src.commands import sanity, selection
from src.commands.attack import attack, identity, report, subject
from src.commands.shared_rows import collect
from src.config import Config
from src.datasets import store
from src.distributed import choose_device, team
from src.evaluation import ATTACK_FIELDS, ATTACK_KEY
from src.output import results


def main(config: Config, args: argparse.Namespace) -> None:
    """Attack trained models at any representation, judge the result on the 16-bit wav, and listen.

    Runs every attack of [ATTACK] names at every eps, with random signs of the same size as control, on n_test clips
    of the test split. Writes one row per clip to results_dir/attack/rows.csv, wavs and spectrograms, a summary,
    accuracy against eps as table and plot, and signs of a failed attack to manifest.json. A second run goes on after
    the last row; torchrun shares the clips over processes.
    """
    everything = store.load(config.data.data_dir, "test")
    order = selection.drawn(config, everything)
    clips = everything.select(order.sort().values)
    heard = {everything.ids[i] for i in order[: config.attack.wavs].tolist()}
    models = selection.models(config, args.model, clips)
    with team() as members:
        device = choose_device(config.training.use_cuda)
        subjects = [subject(config, model, device) for model in models]
        if args.self_test:
            if members.leads:
                sanity.plant_and_search(config, subjects, clips)
            return

        def compute(rows: results.RowFile) -> list[tuple[str, ...]]:
            return [key for one in subjects for key in attack(config, one, clips, heard, rows, members)]

        folder, given = config.results.results_dir / "attack", identity(config, everything, device)
        rows = collect(members, (folder / "rows.csv", ATTACK_FIELDS, ATTACK_KEY, given), compute)
        if members.leads:
            signs, searched = sanity.search(config, subjects, clips, rows, given, folder / "manifest.json")
            report(config, subjects, clips, rows, signs, searched)
        members.wait()


if __name__ == "__main__":
    cli.run(
        main,
        model={"action": "append", "metavar": "NAME", "help": "a model in model_dir; may be repeated (default: all)"},
        self_test={"action": "store_true", "help": "only test whether the attacks find a planted adversarial example"},
    )
