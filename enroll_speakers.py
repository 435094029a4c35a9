"""Enroll speakers: recognizers that identify or verify them, made of trained networks."""

from __future__ import annotations

import argparse

from src import cli
from src.commands import selection
from src.commands.enrollment import EnrollmentRun, networks, note
from src.config import Config
from src.output import results


def main(config: Config, args: argparse.Namespace) -> None:
    """Enroll the speakers of [SPEAKER] with every trained network that gives embeddings.

    The background speakers (split train) give the back end and the cohort, the split enrollment the speakers' models,
    and the split calibration the threshold. Writes model_dir/NETWORK_TASK_BACKEND.pt each, models like any other for
    evaluate_model.py, attack.py and certify.py: a speaker is a class, and whoever is rejected is "nobody".
    """
    run = EnrollmentRun(config)
    every = networks(config, args.model, run.background)
    # All are built first, so that a mistake is reported before any work.
    plans = [(network, run.plans(network)) for network in every]
    # All are filled before the first is written: embeddings that a back end cannot use leave no half of the models.
    filled = [
        (plan, facts) for network, own in plans for plan, facts in zip(own, run.enroll(network, own), strict=True)
    ]
    lines = [run.save(plan, facts) for plan, facts in filled]
    fields = list(dict.fromkeys(field for line in lines for field in line))
    table = [{field: line.get(field, "") for field in fields} for line in lines]
    notes = [note(config.speaker.false_accept_rate, line) for line in lines if "theta" in line]
    notes.append(
        f"{len(run.background)} clips of {len(run.background.present)} background speakers, "
        f"{len(run.enrollment)} enrolled clips of {len(run.speakers)} speakers."
    )
    if defenses := selection.configured_defenses(config):
        notes.append(f"The speakers are enrolled behind {selection.describe(defenses)}.")
    if run.background.synthetic:
        notes.append(selection.SYNTHETIC)
    folder = config.results.results_dir / "enroll"
    results.write_table(folder / "enrollment.csv", table, "Enrolled speakers", notes)
    results.write_manifest(folder / "manifest.json", {"config": config.text, "synthetic": run.background.synthetic})
    print("\n".join([results.markdown(table), *notes, f"models: {config.results.model_dir}, tables: {folder}"]))


if __name__ == "__main__":
    cli.run(
        main,
        model={"action": "append", "metavar": "NAME", "help": "a network in model_dir; may be repeated (default: all)"},
    )
