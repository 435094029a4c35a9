"""Tables and curves from rows as results.Rows holds them: dictionaries of strings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import median
from typing import Any

from src.evaluation.accuracy import wilson
from src.evaluation.judge import errs

Row = Mapping[str, str]


def is_true(row: Row, column: str) -> bool:
    return row[column] == "1"


def still_right(row: Row, where: str = "stage") -> bool:
    """Whether the model is still right under attack; what is not feasible does not count against it."""
    broken = is_true(row, "feasible") and errs(int(row[f"prediction_{where}"]), int(row["label"]))
    return is_true(row, "correct") and not broken


def on_one_draw(row: Row) -> float:
    """Probability that the model is right about the wav in a single draw, where it is randomized; else 0 or 1."""
    return 1 - float(row["share_wav"]) if is_true(row, "correct") else 0.0


def middle(rows: Sequence[Row], column: str) -> float:
    """Median of what is defined; NaN for nothing."""
    values = [value for row in rows if not math.isnan(value := float(row[column]))]
    return median(values) if values else math.nan


def by_run(rows: Sequence[Row]) -> list[tuple[tuple[str, str, str], list[Row]]]:
    """The rows of each (model, attack, eps), in the order they come."""

    def run(row: Row) -> tuple[str, str, str]:
        return row["model"], row["attack"], row["eps"]

    order = {key: position for position, key in enumerate(dict.fromkeys(map(run, rows)))}
    return [
        (key, list(rows_of_run)) for key, rows_of_run in groupby(sorted(rows, key=lambda row: order[run(row)]), key=run)
    ]


def table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line per model, attack and eps. Sizes and sound quality are medians over the clips that the model had right
    and, for minimum-norm attacks (eps inf), that were fooled."""
    lines = []
    for (model, attack, eps), rows_of_run in by_run(rows):
        right = [row for row in rows_of_run if is_true(row, "correct")]
        fooled = [row for row in right if is_true(row, "success_stage")]
        sized = fooled if eps == "inf" else right
        kept = sum(map(still_right, rows_of_run))
        low, high = wilson(kept, len(rows_of_run))
        lines.append(
            {
                "model": model,
                "attack": attack,
                "norm": rows_of_run[0]["norm"],
                "eps": eps,
                "clips": len(rows_of_run),
                "clean accuracy": len(right) / len(rows_of_run),
                "robust accuracy": kept / len(rows_of_run),
                "low": low,
                "high": high,
                "on wav": sum(still_right(row, "wav") for row in rows_of_run) / len(rows_of_run),
                "on wav, one draw": sum(on_one_draw(row) for row in rows_of_run) / len(rows_of_run),
                "success": len(fooled) / len(right) if right else math.nan,
                "survival": _share(fooled, "success_wav"),
                "inversion only": sum(row["prediction_inversion"] == row["label"] for row in rows_of_run)
                / len(rows_of_run),
                **{column: middle(sized, column) for column in ("l2", "linf", "snr", "db_x", "seg_snr", "lsd")},
                **{column: middle(sized, column) for column in ("pesq", "stoi")},
                "pesq undefined": sum(math.isnan(float(row["pesq"])) for row in sized),
                "stoi undefined": sum(math.isnan(float(row["stoi"])) for row in sized),
                "forwards": _mean(right, "forwards"),
                "backwards": _mean(right, "backwards"),
                "s/clip": _mean(right, "seconds"),
                "infeasible": sum(not is_true(row, "feasible") for row in rows_of_run),
            }
        )
    return lines


def _share(rows: Sequence[Row], column: str) -> float:
    return sum(is_true(row, column) for row in rows) / len(rows) if rows else math.nan


def _mean(rows: Sequence[Row], column: str) -> float:
    return sum(float(row[column]) for row in rows) / len(rows) if rows else math.nan


def unit(row: Row) -> str:
    """The axis that a row's budget belongs to: its norm, or SNR."""
    return "SNR" if row["eps"].endswith("dB") else row["norm"]


def points(rows: Sequence[Row], most: int = 60) -> list[dict[str, Any]]:
    """Accuracy against eps with 95 % intervals: one point per budget, beginning with none; for minimum-norm attacks the
    share of clips whose distance is larger, from one run, at up to `most` distances."""
    lines = []
    clean: set[tuple[str, str, str]] = set()
    for (model, attack, eps), rows_of_run in by_run(rows):
        right, axis = sum(is_true(row, "correct") for row in rows_of_run), unit(rows_of_run[0])
        if eps == "inf":
            distances = sorted(float(row["distance"]) for row in rows_of_run if is_true(row, "success_stage"))
            shown = distances[:: max(1, len(distances) // most)] + distances[-1:]
            where = [(0.0, right), *((d, right - sum(other <= d for other in distances)) for d in dict.fromkeys(shown))]
        else:
            where = [(float(eps.removesuffix("dB")), sum(map(still_right, rows_of_run)))]
            if axis != "SNR" and (model, attack, axis) not in clean:
                where.insert(0, (0.0, right))
                clean.add((model, attack, axis))
        for size, kept in where:
            low, high = wilson(kept, len(rows_of_run))
            lines.append(
                {
                    "axis": axis,
                    "model": model,
                    "attack": attack,
                    "eps": size,
                    "accuracy": kept / len(rows_of_run),
                    "low": low,
                    "high": high,
                    "clips": len(rows_of_run),
                }
            )
    return sorted(lines, key=lambda p: (p["axis"], p["model"], p["attack"], p["eps"]))


def judged(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line per model, attack, eps and judging model: how often the judge errs on the wavs that were made against
    the model, among the clips that the judge had right."""

    def run(row: Row) -> tuple[str, ...]:
        return row["model"], row["attack"], row["eps"], row["judge"]

    lines = []
    for key in dict.fromkeys(map(run, rows)):
        of_run = [row for row in rows if run(row) == key]
        right = [row for row in of_run if is_true(row, "correct")]
        fooled = sum(is_true(row, "success_wav") for row in right)
        kept = sum(still_right(row, "wav") for row in of_run)
        low, high = wilson(fooled, len(right)) if right else (math.nan, math.nan)
        lines.append(
            dict(zip(("model", "attack", "eps", "judge"), key, strict=True))
            | {
                "clips": len(of_run),
                "clean accuracy": len(right) / len(of_run),
                "accuracy on wav": kept / len(of_run),
                "success on wav": fooled / len(right) if right else math.nan,
                "low": low,
                "high": high,
            }
        )
    return lines
