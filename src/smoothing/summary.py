"""What the rows of a run amount to: certified accuracy at a radius, ACR, abstentions, and the meaning in sound."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

FIELDS = ("idx", "id", "label", "predict", "radius", "correct", "n_used", "time")
"""The columns of a row: true label, certified label (-1: abstained), radius, whether they agree, draws, seconds."""


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
