"""Certified accuracy of trained models by randomized smoothing, and how far attacks get against it."""

from __future__ import annotations

import argparse
import sys

from src import cli
from src.commands import selection
from src.commands.certify import CertificationRun, warn
from src.config import Config
from src.datasets import store
from src.distributed import team
from src.smoothing import check_certifiable, spectrum


def main(config: Config, args: argparse.Namespace) -> None:
    """Certify trained models by randomized smoothing, at any representation.

    Certifies n_test clips of the test split at every sigma and writes rows, the table of certified accuracy, a
    summary and a plot per model to results_dir/certify; then attacks the smoothed model and says what is left. A
    second run goes on after the last row; torchrun shares the clips over processes. Exit code 1: an attack
    succeeded inside a certified radius.
    """
    settings, data_dir = config.certify, config.data.data_dir
    clips = store.load(data_dir, "test")
    models = selection.models(config, args.model, clips)
    models = selection.usable(models, check_certifiable, args.model)
    clips = selection.known_clips(models, clips)
    drawn = selection.drawn(config, clips).sort().values
    for model in models:
        model.victim.split(settings.stage)  # refuses an unknown representation before any work
    n_samples, sample_rate = clips.n_samples, clips.sample_rate
    shaped = spectrum(settings, n_samples, sample_rate, lambda: store.load(data_dir, "train").waveforms(slice(0, 4000)))
    clips, idx, contradicted = clips.select(drawn), drawn.tolist(), False
    with team() as members:
        for model in models:
            if members.leads:
                warn(model, config)
            run = CertificationRun(config, model, shaped, clips, idx, members)
            rows = run.certify()
            attacked = run.attack(rows)
            if members.leads:
                contradicted |= run.report(rows, attacked)
            members.wait()
    if contradicted:
        print("error: an attack succeeded inside a certified radius; the certificate is wrong", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    cli.run(
        main,
        model={"action": "append", "metavar": "NAME", "help": "a model in model_dir; may be repeated (default: all)"},
    )
