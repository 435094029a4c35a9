"""What evaluate_model.py says of recognizers that may reject: error rates with intervals, and DET curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from src.commands.selection import Trained
from src.output import figures, results
from src.speaker import error_rates, trials
from src.victims.recognizer import Recognizer, recognizer_of

NOTES = (
    "A trial is a clip with its best score: a target trial where an enrolled speaker speaks, else an imposter's. The "
    "column mistaken counts clips that were accepted as another of the enrolled; FRR and FAR do not.",
    "The interval of the EER holds it with at least 95 %; those of FRR and FAR, at the model's own theta, are "
    "Wilson's. They take trials as independent, which those of one speaker are not.",
    "pairs: every clip against every enrolled speaker, as verification counts, with theta free.",
)


class ErrorRates:
    """Collects the recognizers with a threshold among the evaluated models.

    Args:
        target_prior: of minDCF.
    """

    def __init__(self, target_prior: float):
        self.target_prior = target_prior
        self.rows: list[dict[str, Any]] = []
        self.curves: dict[str, dict[str, Any]] = {}

    def add(self, model: Trained, logits: Tensor, labels: Tensor) -> None:
        """Take in a model, if it is a recognizer with a threshold; says so where the clips give no error rates.

        Args:
            logits: [n, N + 1]. labels: [n], N for nobody.
        """
        recognizer = recognizer_of(model.victim)
        if recognizer is None or not recognizer.enrollment.thresholded:
            return
        try:
            row, curve = self._row(recognizer, logits, labels), self._curve(recognizer, logits, labels)
        except ValueError as error:
            print(f"{model.name}: no error rates: {error}")
            return
        self.rows.append({"model": model.name} | row)
        self.curves[model.name] = curve

    def _row(self, recognizer: Recognizer, logits: Tensor, labels: Tensor) -> dict[str, Any]:
        theta, predicted = recognizer.theta.item(), logits.argmax(1)
        clips, pairs = trials.of_clips(logits, labels), trials.of_pairs(logits, labels)
        nobody = logits.shape[1] - 1
        mistaken = int(((labels != nobody) & (predicted != nobody) & (predicted != labels)).sum())
        row = {"task": recognizer.enrollment.task, **error_rates.summarize(clips, self.target_prior), "theta": theta}
        return (
            row
            | error_rates.at_threshold(clips, theta)
            | {
                "mistaken": f"{mistaken} of {len(clips.target)}",
                "pairs": len(pairs.target) + len(pairs.non_target),
                "pair_EER": error_rates.equal_error_rate(pairs)[0],
                "pair_minDCF": error_rates.min_dcf(pairs, self.target_prior),
            }
        )

    @staticmethod
    def _curve(recognizer: Recognizer, logits: Tensor, labels: Tensor) -> dict[str, Any]:
        """As src.output.figures.det takes it."""
        clips = trials.of_clips(logits, labels)
        at = error_rates.at_threshold(clips, recognizer.theta.item())
        far, frr = error_rates.det_points(clips)
        intervals = {
            f"{rate}_interval".lower(): (at[f"{rate}_low_95"], at[f"{rate}_high_95"]) for rate in ("FAR", "FRR")
        }
        counts = {"target_trials": len(clips.target), "non_target_trials": len(clips.non_target)}
        return {
            "far": far.tolist(),
            "frr": frr.tolist(),
            "far_at": at["FAR"],
            "frr_at": at["FRR"],
            **intervals,
            **counts,
        }

    def write(self, folder: Path, plot_dir: Path, split: str, notes: list[str], about: str) -> None:
        """Write and print the table, and draw the DET plot; nothing without a recognizer.

        Args:
            about: what the title of the plot adds.
        """
        if not self.rows:
            return
        title = f"Error rates of accepting and rejecting, {split} split"
        results.write_table(folder / f"error_rates.{split}.csv", self.rows, title, [*notes, *NOTES])
        figures.det(plot_dir / f"det.{split}.png", self.curves, title=f"{split} split{about}")
        print("\n".join([f"{title}\n\n{results.markdown(self.rows)}", *NOTES, ""]))
