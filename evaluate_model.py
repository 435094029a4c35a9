"""Accuracy of trained models: with its interval, by class, and as a confusion matrix."""

from __future__ import annotations

import argparse

from src import cli
from src.commands import selection
from src.commands.error_rates import ErrorRates
from src.config import Config
from src.datasets import store
from src.distributed import choose_device
from src.evaluation.accuracy import confusion, logits_of, per_class, summarize
from src.output import figures, results


def main(config: Config, args: argparse.Namespace) -> None:
    """Evaluate trained models on a split of the prepared data.

    Writes a table over the models, one per-class table and one confusion matrix (CSV and plot) per model to
    results_dir/evaluate and plot_dir; for recognizers that may reject, a table of error rates and a DET plot too.
    """
    split = args.split
    clips = store.load(config.data.data_dir, split)
    models = selection.models(config, args.model, clips)
    device = choose_device(config.training.use_cuda)
    folder = config.results.results_dir / "evaluate"
    notes = [f"{len(clips)} clips of the {split} split of {clips.source}; intervals are Wilson's, 95 %."]
    if defenses := selection.configured_defenses(config):
        notes.append(f"The models stand behind {selection.describe(defenses)}.")
    if clips.synthetic:
        notes.append(selection.SYNTHETIC)
    table, error_rates = [], ErrorRates(config.speaker.target_prior)
    about = " (synthetic speech)" if clips.synthetic else ""
    for model in models:
        name, classes = model.name, model.victim.classes
        known = selection.known_clips([model], clips).relabeled(classes)
        labels = known.labels
        logits = logits_of(model.victim, known, device=device, seed=config.data.seed, title=name)
        table.append({"model": name, **summarize(logits, labels)})
        counts = confusion(labels, logits.argmax(1), len(classes))
        title = f"{name}, {split}"
        by_class = per_class(counts, classes)
        results.write_table(folder / f"{name}.{split}.per_class.csv", by_class, f"Classes of {title}", notes)
        matrix = [
            {"true": true} | dict(zip(classes, row, strict=True))
            for true, row in zip(classes, counts.tolist(), strict=True)
        ]
        results.write_table(folder / f"{name}.{split}.confusion.csv", matrix, f"Confusion matrix of {title}", notes)
        plot = config.results.plot_dir / f"confusion.{name}.{split}.png"
        figures.confusion(plot, counts.tolist(), classes, title=f"{title}{about}")
        print(f"{title}\n\n{results.markdown(by_class)}")
        error_rates.add(model, logits, labels)
    results.write_table(folder / f"accuracy.{split}.csv", table, f"Accuracy, {split} split", notes)
    error_rates.write(folder, config.results.plot_dir, split, notes, about)
    results.write_manifest(folder / f"{split}.manifest.json", {"config": config.text, "synthetic": clips.synthetic})
    print("\n".join([results.markdown(table), *notes, f"files: {folder}, plots: {config.results.plot_dir}"]))


if __name__ == "__main__":
    cli.run(
        main,
        model={"action": "append", "metavar": "NAME", "help": "a model in model_dir; may be repeated (default: all)"},
        split={"default": "test", "metavar": "SPLIT", "help": "a split of the prepared data (default: test)"},
    )
