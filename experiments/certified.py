"""The study of certified accuracy at several representations: a plain model and, for each representation, sigma and
method, one trained with noise of that sigma there, all certified on the same clips.

    python experiments/certified.py --config experiments/certified_speaker.ini

It calls the scripts in turn; the same command resumes it. `--stages` and `--methods` restrict the work, so that several
processes can share it; the report covers all results so far, and with `--report` nothing but the report is made."""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from experiments.scripts import Step, call  # noqa: E402
from src import cli  # noqa: E402
from src.commands import selection  # noqa: E402
from src.config import Config  # noqa: E402
from src.datasets import store  # noqa: E402
from src.output import figures, results  # noqa: E402
from src.smoothing import summary  # noqa: E402

STAGES = ("magnitude", "normalize", "waveform")
METHODS = ("gaussian", "consistency", "smoothadv", "macer")


def rows_of(folder: Path, pattern: str) -> list[dict[str, str]]:
    """The rows of the model whose file matches `pattern`, in the order of the clips."""
    for path in sorted(folder.glob(pattern)):
        with path.open(newline="") as file:
            return sorted(csv.DictReader(file), key=lambda row: int(row["idx"]))
    return []


def report(config: Config) -> None:
    """Write the table of all results so far, and the figure of the representations in waveform-equivalent dB."""
    settings, out = config.certify, config.results.results_dir
    clips = store.load(config.data.data_dir, "test")
    clips = clips.select(selection.drawn(config, clips).sort().values)
    victim = selection.models(config, None, clips)[0].victim
    lines, series = [], {}
    for training in ("plain", *METHODS):
        for stage in STAGES:
            start = out / "certify" / "*" if training == "plain" else out / "augmented/certify" / f"*_{training}"
            rows = {s: rows_of(start.parent, f"{start.name}.{stage}.{s:g}.rows.csv") for s in settings.sigma}
            rows = {sigma: rows_of_sigma for sigma, rows_of_sigma in rows.items() if rows_of_sigma}
            if not rows:
                continue
            for sigma, cells in zip(rows, summary.table(rows, settings.radii), strict=True):
                mean_draws = sum(int(row["n_used"]) for row in rows[sigma]) / len(rows[sigma])
                counts = {"mean draws": f"{mean_draws:.0f}", "clips": len(rows[sigma])}
                lines.append({"stage": stage, "training": training, **cells, **counts})
            lipschitz = victim.lipschitz(stage)
            if lipschitz:
                radii = [r for r in settings.radii if r > 0]
                clip_norm = median(float(clips.waveforms([i]).norm()) for i in range(len(clips)))
                best = summary.envelope(
                    [summary.certified_accuracy(rows_of_sigma, radii) for rows_of_sigma in rows.values()]
                )
                x = [summary.certified_snr(clip_norm, r / lipschitz) for r in radii]
                series[f"{stage}, {training}"] = (x[::-1], best[::-1])
            else:
                series[f"{stage}: no bound in the waveform"] = ([], [])
    if not lines:
        raise ValueError(f"{out}: nothing is certified yet; leave --report out")
    notes = [f"n0 = {settings.n0}, n = {settings.n}, alpha = {settings.alpha:g}, mode = {settings.mode}."]
    notes += [selection.SYNTHETIC] if clips.synthetic else []
    title = "Certified accuracy of test clips, sigma x radius"
    results.write_table(out / "certified.csv", lines, title, notes)
    figures.curves(
        config.results.plot_dir / "representations.png",
        series,
        x_label="signal-to-noise ratio above which every perturbation of the median clip is certified (dB)",
        y_label="certified accuracy, best sigma",
        title=f"Smoothing at {len(STAGES)} representations, as the waveform sees it",
        drawstyle="steps-post",  # between two radii, the accuracy at the larger one holds
    )
    print(f"{title}\n\n{results.markdown(lines)}\nfiles: {out}, {config.results.plot_dir}")


def main(config: Config, args: argparse.Namespace) -> None:
    """Train, certify and compare at several representations (see the top of the file)."""
    folders = config.results
    if not args.report:
        call(args, Step("prepare_dataset.py"), Step("train_model.py"))
        for stage in args.stages:
            call(args, Step("certify.py", (f"CERTIFY.stage={stage}",)))
            for sigma, method in itertools.product(config.certify.sigma, args.methods):
                folder_settings = [f"RESULTS.model_dir={folders.model_dir}/{method}_{stage}_{sigma:g}"]
                folder_settings += [f"RESULTS.results_dir={folders.results_dir}/augmented"]
                folder_settings += [f"RESULTS.plot_dir={folders.plot_dir}/{method}_{stage}_{sigma:g}"]
                noise = [f"TRAINING.method={method}", f"TRAINING.{method}.sigma={sigma:g}", f"TRAINING.stage={stage}"]
                smoothing = [f"CERTIFY.stage={stage}", f"CERTIFY.sigma={sigma:g}"]
                call(
                    args,
                    Step("train_model.py", (*folder_settings, *noise)),
                    Step("certify.py", (*folder_settings, *smoothing)),
                )
    report(config)


if __name__ == "__main__":
    stages = {"nargs": "*", "choices": STAGES, "default": list(STAGES), "help": "where noise enters (default: all)"}
    methods = {"nargs": "*", "choices": METHODS, "default": ["gaussian"], "help": "of training (default: gaussian)"}
    cli.run(
        main,
        stages=stages,
        methods=methods,
        report={"action": "store_true", "help": "only write the table and the figure of the results so far"},
    )
