"""Figures from plain values; each function writes one PNG, atomically."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from src.results import write_bytes  # noqa: E402


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG and release it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    write_bytes(path, buffer.getvalue())


def curves(
    path: Path,
    series: dict[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str,
    y_label: str,
    title: str,
    log_x: bool = False,
) -> None:
    """Line plot of named (x, y) series."""
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for name, (x, y) in series.items():
        axes.plot(x, y, marker="." if len(x) < 60 else None, label=name)
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    if log_x:
        axes.set_xscale("log")
    axes.grid(alpha=0.3)
    if series:
        axes.legend()
    save(figure, path)


def certified(
    path: Path,
    radii: Sequence[float],
    accuracy: dict[str, Sequence[float]],
    *,
    best: Sequence[float],
    x_label: str,
    title: str,
) -> None:
    """Certified accuracy against radius, one step curve per noise level, and their upper envelope."""
    figure, axes = plt.subplots(figsize=(7, 4.2))
    axes.plot(radii, best, color="0.8", linewidth=6, label="best sigma at each radius")
    for name, values in accuracy.items():
        axes.plot(radii, values, drawstyle="steps-pre", label=name)
    axes.set(xlabel=x_label, ylabel="certified accuracy", title=title, ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)
