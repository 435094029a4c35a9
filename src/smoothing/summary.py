"""What the rows of a run amount to: certified accuracy at a radius, ACR, abstentions, the meaning in sound, and what
attacks leave beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

CERTIFICATE_FIELDS = ("idx", "id", "label", "predict", "radius", "correct", "n_used", "time")
"""The columns of a row: true label, certified label (-1: abstained), radius, whether they agree, draws, seconds."""

POINTS = 400
"""Steps of a curve."""
TITLES = {
    "certified_accuracy": "Certified accuracy",
    "summary": "The smoothed classifier",
    "bands": "Budgets by octave",
    "attacked_accuracy": "Certified accuracy and accuracy under attack",
    "curves": "Certified accuracy against radius",
}


def certified_accuracy(rows: Sequence[Mapping[str, Any]], radii: Sequence[float]) -> list[float]:
    """Share of the clips with the right label and a certificate of at least each radius."""
    reached = [float(row["radius"]) for row in rows if int(row["correct"])]
    return [sum(radius >= r for radius in reached) / len(rows) for r in radii]


def envelope(curves: Sequence[Sequence[float]]) -> list[float]:
    """The best of several curves at each radius. No single classifier reaches it: sigma is chosen afterwards."""
    return [max(values) for values in zip(*curves, strict=True)]


def certified_snr(size: float, radius: float) -> float:
    """20 log10(||x|| / R) dB: every perturbation with a higher signal-to-noise ratio is certified; inf without one."""
    return 20 * math.log10(size / radius) if radius > 0 and size > 0 else math.inf


def decibel(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "none"


def table(rows: Mapping[float, Sequence[Mapping[str, Any]]], radii: Sequence[float]) -> list[dict[str, str]]:
    """Certified accuracy, sigma x radius, in the form of O'Reilly's Tables 2 and 3."""
    lines = []
    for sigma, own in rows.items():
        accuracy = zip(radii, certified_accuracy(own, radii), strict=True)
        lines.append({"sigma": f"{sigma:g}"} | {f"r = {r:g}": f"{value:.2f}" for r, value in accuracy})
    return lines


def budgets(
    rows: Mapping[float, Sequence[Mapping[str, Any]]], sizes: Mapping[str, float], bands: Mapping[str, float]
) -> list[dict[str, Any]]:
    """For shaped noise: what the median clip's radius allows a perturbation within one octave.

    Args:
        bands: L2 radius within each band per unit of radius.
    """
    clip = median(sizes.values())
    lines = []
    for sigma, own in rows.items():
        radius = median(float(row["radius"]) * int(row["correct"]) for row in own)
        for band, weight in bands.items():
            snr = decibel(certified_snr(clip, radius * weight))
            lines.append({"sigma": sigma, "band": band, "L2 radius": radius * weight, "dB below the clip": snr})
    return lines


def summarize(
    rows: Sequence[Mapping[str, Any]], sizes: Mapping[str, float], lipschitz: float | None, weakest: float = 1.0
) -> dict[str, Any]:
    """One line about the rows of a model and sigma.

    Args:
        rows: with FIELDS.
        sizes: id -> L2 norm of the clip's waveform.
        lipschitz: of the map from waveform to the smoothed representation (1 for the waveform), or None: then no
            radius and no SNR in the waveform can be claimed.
        weakest: L2 radius per unit of radius, below 1 for shaped noise.
    """
    right = [float(row["radius"]) * int(row["correct"]) for row in rows]
    snr: Any = "none"
    wave: Any = "none"
    if lipschitz:
        scale = weakest / lipschitz
        snr = decibel(
            median(certified_snr(sizes[str(row["id"])], r * scale) for row, r in zip(rows, right, strict=True))
        )
        wave = median(right) * scale
    return {
        "clips": len(rows),
        "accuracy": sum(int(row["correct"]) for row in rows) / len(rows),
        "abstained": sum(int(row["predict"]) < 0 for row in rows) / len(rows),
        "ACR": sum(right) / len(rows),
        "median radius": median(right),
        "median waveform L2 radius": wave,
        "median certified SNR dB": snr,
        "mean draws": sum(int(row["n_used"]) for row in rows) / len(rows),
    }


def curves(
    rows: Mapping[float, Sequence[Mapping[str, Any]]], radii: Sequence[float], snr: Sequence[float]
) -> list[dict[str, Any]]:
    """Certified accuracy of every sigma and their envelope, a line per radius.

    Args:
        snr: what each radius means in sound, dB; inf where it means nothing.
    """
    accuracy = {f"sigma {sigma:g}": certified_accuracy(own, radii) for sigma, own in rows.items()}
    accuracy["best"] = envelope(list(accuracy.values()))
    return [
        {"radius": float(radius), "SNR dB": decibel(level)} | {name: values[i] for name, values in accuracy.items()}
        for i, (radius, level) in enumerate(zip(radii, snr, strict=True))
    ]


def attacked_accuracy(rows: Sequence[Mapping[str, Any]], radii: Sequence[float]) -> list[float]:
    """Share of the clips that keep the right label under all attacks within each radius; an abstention does not."""
    return [sum(float(row["broken_at"]) > r for row in rows) / len(rows) for r in radii]


def side_by_side(rows: Sequence[Mapping[str, Any]], radii: Sequence[float]) -> list[dict[str, str]]:
    """What is certified and what attacks leave, on the same clips; a line each per classifier and sigma.

    Args:
        rows: of attacks (src.evaluation.smoothed_attacks.FIELDS).
    """
    radii = [0.0, *(r for r in radii if r > 0)]
    lines = []
    for classifier, sigma in dict.fromkeys((row["classifier"], row["sigma"]) for row in rows):
        own = [row for row in rows if (row["classifier"], row["sigma"]) == (classifier, sigma)]
        name = classifier if sigma == "none" else f"{classifier}, sigma {sigma}"
        found = {"under attack": attacked_accuracy(own, radii)}
        if sigma != "none":
            known = [{"radius": row["radius"], "correct": row["certified"] == row["label"]} for row in own]
            found = {"certified": certified_accuracy(known, radii), **found}
        for what, values in found.items():
            cells = {f"r = {r:g}": f"{value:.2f}" for r, value in zip(radii, values, strict=True)}
            lines.append({"classifier": name, "accuracy": what} | cells)
    return lines


def certificate_verdict(rows: Sequence[Mapping[str, Any]], alpha: float) -> tuple[str, bool]:
    """What the attacks say about the certificates, in one line, and whether they contradict any.

    Args:
        rows: of attacks (src.evaluation.smoothed_attacks.FIELDS).
    """
    tested = [row for row in rows if row["contradicts"] != "none" and float(row["radius"]) > 0]
    if not tested:
        return "No certificate was put to the test: none has a radius.", False
    wrong = [row for row in tested if row["contradicts"] == "1"]
    if not wrong:
        return f"Check: no attack inside the radius of {len(tested)} certificate(s) found another label.", False
    named = ", ".join(f"{row['id']} (sigma {row['sigma']})" for row in wrong[:5])
    return (
        f"CERTIFICATE CONTRADICTED: attacks found another label inside {len(wrong)} of {len(tested)} certified radii; "
        f"chance explains at most {alpha * len(tested):.2g} on average: {named}",
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
) -> dict[str, list[dict[str, Any]]]:
    """Every table of a model, by the names of TITLES.

    Args:
        rows: sigma -> rows with FIELDS.
        attacked: rows of attacks at all radii; empty where there were none.
        sizes, lipschitz, weakest: see `summarize`.
        bands: of shaped noise, see `budgets`.
    """
    found: dict[str, list[dict[str, Any]]] = {"certified_accuracy": list(table(rows, radii))}
    found["summary"] = [{"sigma": sigma} | summarize(own, sizes, lipschitz, weakest) for sigma, own in rows.items()]
    if bands:
        found["bands"] = budgets(rows, sizes, bands)
    if attacked:
        found["attacked_accuracy"] = list(side_by_side(attacked, radii))
    largest = max([*radii, *(float(row["radius"]) for own in rows.values() for row in own)])
    grid = [largest * i / POINTS for i in range(POINTS + 1)]
    clip = median(sizes.values())
    snr = [certified_snr(clip, r * weakest / lipschitz) if lipschitz else math.inf for r in grid]
    found["curves"] = curves(rows, grid, snr)
    return found
