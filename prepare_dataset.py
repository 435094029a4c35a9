"""Decode the recordings of the data source once, into the clip store that every other script reads."""

from __future__ import annotations

import argparse

from src import cli
from src.config import Config
from src.datasets.prepare import prepare

SHOWN = 20


def main(config: Config, args: argparse.Namespace) -> None:
    """Prepare the training, validation and test clips from [DATA] source under data_dir.

    A second run with the same settings and recordings does nothing; otherwise the clips are prepared again.
    """
    data = config.data
    facts, fresh = prepare(data, config.component("DATA", data.source))
    counts, skipped, splits = facts["counts"], facts["skipped"], facts["splits"]
    width = max(len(name) for name in [*facts["classes"], "class"])
    print(f"{'class':{width}}  " + "  ".join(f"{split:>10}" for split in splits))
    for name in facts["classes"]:
        print(f"{name:{width}}  " + "  ".join(f"{counts[split][name]:10}" for split in splits))
    print(f"{'all':{width}}  " + "  ".join(f"{sum(counts[split].values()):10}" for split in splits))
    for entry in skipped[:SHOWN]:
        print(f"skipped {entry['id']}: {entry['reason']}")
    if skipped:
        more = f"; the others are in {data.data_dir / 'dataset.json'}" if len(skipped) > SHOWN else ""
        print(f"{len(skipped)} recordings skipped{more}")
    if facts["synthetic"]:
        print("The speech is synthetic (espeak-ng): good for trying things out, not for claims about real speech.")
    state = "prepared in" if fresh else "already prepared, nothing to do:"
    print(f"{facts['source']}, {facts['seconds']:g} s at {facts['sample_rate']} Hz: {state} {data.data_dir}")


if __name__ == "__main__":
    cli.run(main)
