"""Summaries of the rows of a run: certified accuracy at a radius, average certified radius (ACR), abstentions, radii as
signal-to-noise ratios, and accuracy under attack beside it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from statistics import median
from typing import Any

from src.victims.embedder import NOBODY

CERTIFICATE_FIELDS = ("idx", "id", "label", "predict", "radius", "correct", "n_used", "time")
"""The columns of a row: true label, certified label (-1: abstained), radius, whether they agree, draws, seconds."""

POINTS = 400
"""Intervals of the radius grid of a curve."""
TITLES = {
    "certified_accuracy": "Certified accuracy",
    "certified_speakers": "Certified acceptance of the enrolled and rejection of imposters",
    "summary": "The smoothed classifier",
    "bands": "Budgets by octave",
    "attacked_accuracy": "Certified accuracy and accuracy under attack",
    "curves": "Certified accuracy against radius",
}


def certified_accuracy(rows: Sequence[Mapping[str, Any]], radii: Sequence[float]) -> list[float]:
    """Share of the clips that are certified with the right label at each radius."""
    certified = [float(row["radius"]) for row in rows if int(row["correct"])]
    return [sum(radius >= r for radius in certified) / len(rows) for r in radii]


def envelope(curves: Sequence[Sequence[float]]) -> list[float]:
    """The maximum of several curves at each radius. No single classifier attains it: sigma is chosen afterwards."""
    return [max(values) for values in zip(*curves, strict=True)]


def certified_snr(size: float, radius: float) -> float:
    """20 log10(||x|| / R) dB: every perturbation with a higher signal-to-noise ratio is certified; inf without one."""
    return 20 * math.log10(size / radius) if radius > 0 and size > 0 else math.inf


def decibel(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "none"


def table(rows: Mapping[float, Sequence[Mapping[str, Any]]], radii: Sequence[float]) -> list[dict[str, str]]:
    """Certified accuracy, sigma x radius, in the form of O'Reilly's Tables 2 and 3."""
    lines = []
    for sigma, rows_of_sigma in rows.items():
        accuracy = zip(radii, certified_accuracy(rows_of_sigma, radii), strict=True)
        lines.append({"sigma": f"{sigma:g}"} | {f"r = {r:g}": f"{value:.2f}" for r, value in accuracy})
    return lines


def speaker_groups(classes: Sequence[str]) -> dict[str, set[int]]:
    """The labels of enrolled speakers and of imposters, as `by_group` takes them; none where no class is "nobody"."""
    if NOBODY not in classes:
        return {}
    nobody = classes.index(NOBODY)
    return {"enrolled, accepted as themselves": set(range(len(classes))) - {nobody}, "imposters, rejected": {nobody}}


def by_group(
    rows: Mapping[float, Sequence[Mapping[str, Any]]], radii: Sequence[float], groups: Mapping[str, Collection[int]]
) -> list[dict[str, str]]:
    """Certified accuracy, sigma x radius, of the clips of each group alone.

    Args:
        groups: name -> true labels of its clips; one without clips is left out.
    """
    lines = []
    for sigma, rows_of_sigma in rows.items():
        for name, labels in groups.items():
            if selected := [row for row in rows_of_sigma if int(row["label"]) in labels]:
                cells = table({sigma: selected}, radii)[0]
                lines.append({"sigma": cells.pop("sigma"), "speakers": name, "clips": str(len(selected))} | cells)
    return lines


def budgets(
    rows: Mapping[float, Sequence[Mapping[str, Any]]], sizes: Mapping[str, float], bands: Mapping[str, float]
) -> list[dict[str, Any]]:
    """For shaped noise: the median radius as a budget for perturbations within one octave.

    Args:
        bands: L2 radius within each band per unit of radius.
    """
    clip = median(sizes.values())
    lines = []
    for sigma, rows_of_sigma in rows.items():
        radius = median(float(row["radius"]) * int(row["correct"]) for row in rows_of_sigma)
        for band, weight in bands.items():
            snr = decibel(certified_snr(clip, radius * weight))
            lines.append({"sigma": sigma, "band": band, "L2 radius": radius * weight, "dB below the clip": snr})
    return lines


def summarize(
    rows: Sequence[Mapping[str, Any]], sizes: Mapping[str, float], lipschitz: float | None, weakest: float = 1.0
) -> dict[str, Any]:
    """The line of the summary for one model and sigma.

    Args:
        rows: with CERTIFICATE_FIELDS.
        sizes: id -> L2 norm of the clip's waveform.
        lipschitz: constant of the map from waveform to the smoothed representation (1 for the waveform), or None:
            then there is neither a radius nor an SNR of the waveform.
        weakest: L2 radius per unit of radius, below 1 for shaped noise.
    """
    radii = [float(row["radius"]) * int(row["correct"]) for row in rows]
    snr: Any = "none"
    wave: Any = "none"
    if lipschitz:
        scale = weakest / lipschitz
        snr = decibel(
            median(certified_snr(sizes[str(row["id"])], r * scale) for row, r in zip(rows, radii, strict=True))
        )
        wave = median(radii) * scale
    return {
        "clips": len(rows),
        "accuracy": sum(int(row["correct"]) for row in rows) / len(rows),
        "abstained": sum(int(row["predict"]) < 0 for row in rows) / len(rows),
        "ACR": sum(radii) / len(rows),
        "median radius": median(radii),
        "median waveform L2 radius": wave,
        "median certified SNR dB": snr,
        "mean draws": sum(int(row["n_used"]) for row in rows) / len(rows),
    }


def curves(
    rows: Mapping[float, Sequence[Mapping[str, Any]]], radii: Sequence[float], snr: Sequence[float]
) -> list[dict[str, Any]]:
    """Certified accuracy of every sigma and their envelope, a line per radius.

    Args:
        snr: signal-to-noise ratio of each radius, dB; inf where it has none.
    """
    accuracy = {f"sigma {sigma:g}": certified_accuracy(rows_of_sigma, radii) for sigma, rows_of_sigma in rows.items()}
    accuracy["best"] = envelope(list(accuracy.values()))
    return [
        {"radius": float(radius), "SNR dB": decibel(level)} | {name: values[i] for name, values in accuracy.items()}
        for i, (radius, level) in enumerate(zip(radii, snr, strict=True))
    ]


def attacked_accuracy(rows: Sequence[Mapping[str, Any]], radii: Sequence[float]) -> list[float]:
    """Share of the clips that keep the right label under all attacks within each radius; an abstention does not."""
    return [sum(float(row["broken_at"]) > r for row in rows) / len(rows) for r in radii]


def side_by_side(rows: Sequence[Mapping[str, Any]], radii: Sequence[float]) -> list[dict[str, str]]:
    """Certified accuracy and accuracy under attack on the same clips, a line each per classifier and sigma.

    Args:
        rows: of attacks (src.evaluation.smoothed_attacks.SMOOTHED_ATTACK_FIELDS).
    """
    radii = [0.0, *(r for r in radii if r > 0)]
    lines = []
    for classifier, sigma in dict.fromkeys((row["classifier"], row["sigma"]) for row in rows):
        selected = [row for row in rows if (row["classifier"], row["sigma"]) == (classifier, sigma)]
        name = classifier if sigma == "none" else f"{classifier}, sigma {sigma}"
        accuracies = {"under attack": attacked_accuracy(selected, radii)}
        if sigma != "none":
            certificates = [{"radius": row["radius"], "correct": row["certified"] == row["label"]} for row in selected]
            accuracies = {"certified": certified_accuracy(certificates, radii), **accuracies}
        for kind, values in accuracies.items():
            cells = {f"r = {r:g}": f"{value:.2f}" for r, value in zip(radii, values, strict=True)}
            lines.append({"classifier": name, "accuracy": kind} | cells)
    return lines


def certificate_verdict(rows: Sequence[Mapping[str, Any]], alpha: float) -> tuple[str, bool]:
    """Whether the attacks contradict any certificate: the verdict as one line, and as a bool.

    Args:
        rows: of attacks (src.evaluation.smoothed_attacks.SMOOTHED_ATTACK_FIELDS).
    """
    tested = [row for row in rows if row["contradicts"] != "none" and float(row["radius"]) > 0]
    if not tested:
        return "No certificate was checked: none has a radius.", False
    contradicted = [row for row in tested if row["contradicts"] == "1"]
    if not contradicted:
        return f"Check: no attack inside the radius of {len(tested)} certificate(s) found another label.", False
    clips = ", ".join(f"{row['id']} (sigma {row['sigma']})" for row in contradicted[:5])
    return (
        f"CERTIFICATE CONTRADICTED: attacks found another label inside {len(contradicted)} of {len(tested)} certified "
        f"radii; chance explains at most {alpha * len(tested):.2g} on average: {clips}",
        True,
    )


def tables(
    rows: Mapping[float, Sequence[Mapping[str, Any]]],
    attacked: Sequence[Mapping[str, Any]],
    radii: Sequence[float],
    sizes: Mapping[str, float],
    lipschitz: float | None,
    weakest: float = 1.0,
    bands: Mapping[str, float] | None = None,
    groups: Mapping[str, Collection[int]] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Every table of a model, by the names of TITLES.

    Args:
        rows: sigma -> rows with CERTIFICATE_FIELDS.
        attacked: rows of attacks at all radii; empty without attacks.
        sizes, lipschitz, weakest: see `summarize`.
        bands: of shaped noise, see `budgets`.
        groups: name -> labels of clips that get a table of their own, see `by_group`.
    """
    lines: dict[str, list[dict[str, Any]]] = {"certified_accuracy": list(table(rows, radii))}
    if groups:
        lines["certified_speakers"] = list(by_group(rows, radii, groups))
    lines["summary"] = [{"sigma": sigma} | summarize(rows[sigma], sizes, lipschitz, weakest) for sigma in rows]
    if bands:
        lines["bands"] = budgets(rows, sizes, bands)
    if attacked:
        lines["attacked_accuracy"] = list(side_by_side(attacked, radii))
    largest = max([*radii, *(float(row["radius"]) for rows_of_sigma in rows.values() for row in rows_of_sigma)])
    grid = [largest * i / POINTS for i in range(POINTS + 1)]
    clip = median(sizes.values())
    snr = [certified_snr(clip, r * weakest / lipschitz) if lipschitz else math.inf for r in grid]
    lines["curves"] = curves(rows, grid, snr)
    return lines
