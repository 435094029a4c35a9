"""Figures from plain values; each function writes one PNG, atomically."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from scipy.stats import norm

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from src.output.results import write_bytes


def save(figure: Figure, path: Path, crop: bool = True) -> None:
    """Write the figure as PNG and release it; `crop` cuts the margins, at the price of drawing twice."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight" if crop else None)
    plt.close(figure)
    write_bytes(path, buffer.getvalue())


def curves(
    path: Path,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str,
    y_label: str,
    title: str,
    log_x: bool = False,
    drawstyle: str = "default",
) -> None:
    """Line plot of named (x, y) series; `drawstyle` is matplotlib's (steps-post holds a value up to the next x)."""
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for name, (x, y) in series.items():
        axes.plot(x, y, marker="." if len(x) < 60 else None, label=name, drawstyle=drawstyle)
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    if log_x:
        axes.set_xscale("log")
    axes.grid(alpha=0.3)
    if len(series) > 3:  # many names would hide the curves
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    elif series:
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


def security(
    path: Path,
    points: Sequence[Mapping[str, Any]],
    *,
    title: str,
    x_label: str,
    falling: bool,
    controls: Collection[str] = (),
) -> None:
    """Accuracy against budget with 95 % bands, a color per model and a line style per attack, random controls dotted.

    Args:
        points: with model, attack, eps, accuracy, low and high, in the order of eps.
        falling: whether the budget grows to the left (an SNR).
        controls: the attacks that are controls.
    """
    models = list(dict.fromkeys(point["model"] for point in points))
    attacks = [a for a in dict.fromkeys(point["attack"] for point in points) if a not in controls]
    figure, axes = plt.subplots(figsize=(7.5, 4.6))
    for model, attack in dict.fromkeys((point["model"], point["attack"]) for point in points):
        points_of_curve = [point for point in points if (point["model"], point["attack"]) == (model, attack)]
        color = f"C{models.index(model) % 10}"
        style = (0, (1, 1.5)) if attack not in attacks else ("-", "--", "-.")[attacks.index(attack) % 3]
        eps = [point["eps"] for point in points_of_curve]
        marker = "." if len(points_of_curve) < 15 else None
        axes.plot(
            eps,
            [p["accuracy"] for p in points_of_curve],
            color=color,
            ls=style,
            marker=marker,
            label=f"{model}, {attack}",
        )
        axes.fill_between(
            eps,
            [p["low"] for p in points_of_curve],
            [p["high"] for p in points_of_curve],
            color=color,
            alpha=0.12,
            lw=0,
        )
    axes.set(xlabel=x_label, ylabel="accuracy", title=title, ylim=(-0.02, 1.02))
    if falling:
        axes.invert_xaxis()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))  # many curves leave no free corner
    save(figure, path)


DET_TICKS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9)
"""Error rates that stand beside the axes of a DET plot."""


def det(path: Path, series: Mapping[str, Mapping[str, Any]], *, title: str) -> None:
    """Detection error tradeoff (Martin et al. 1997): false rejects against false accepts, both axes scaled so that
    normally distributed scores give straight lines; a cross is the chosen threshold with its 95 % intervals.

    Args:
        series: name -> far and frr (the curve), and far_at, frr_at, far_interval, frr_interval (the threshold). Rates
            of 0 and 1, which the axes do not reach, are drawn at half an error, of the numbers of trials
            non_target_trials and target_trials.
    """

    def scaled(rates: Any, n: int) -> np.ndarray:
        return np.asarray(norm.ppf(np.clip(rates, 0.5 / n, 1 - 0.5 / n)))

    figure, axes = plt.subplots(figsize=(6, 5.6))
    for number, (name, line) in enumerate(series.items()):
        n_accept, n_reject = line["non_target_trials"], line["target_trials"]
        color = f"C{number % 10}"
        axes.plot(scaled(line["far"], n_accept), scaled(line["frr"], n_reject), color=color, label=name)
        far, frr = scaled(line["far_at"], n_accept), scaled(line["frr_at"], n_reject)
        axes.plot(scaled(line["far_interval"], n_accept), [frr, frr], color=color, lw=0.8)
        axes.plot([far, far], scaled(line["frr_interval"], n_reject), color=color, lw=0.8)
        axes.plot([far], [frr], "o", color=color, ms=4)
    ticks = norm.ppf(DET_TICKS)
    limits = (ticks[0], ticks[-1])
    axes.plot(limits, limits, color="0.8", lw=0.8, zorder=0)
    axes.set(
        xlabel="imposters accepted (%)", ylabel="enrolled speakers rejected (%)", title=title, xlim=limits, ylim=limits
    )
    labels = [f"{100 * rate:g}" for rate in DET_TICKS]
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    axes.grid(alpha=0.3)
    if series:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))  # curves may fill every corner
    save(figure, path)


def spectrograms(path: Path, panels: Sequence[tuple[str, np.ndarray]], sample_rate: int, *, note: str = "") -> None:
    """Spectrograms of waveforms [time] side by side, in dB of full scale; a panel's level range is its own.

    Args:
        panels: titles and waveforms.
    """
    figure, every = plt.subplots(1, len(panels), figsize=(5 * len(panels), 3.8), squeeze=False)
    for axes, (title, x) in zip(every[0], panels, strict=True):
        frames = np.lib.stride_tricks.sliding_window_view(np.pad(x, (256, 256)), 512)[::128]
        level = np.abs(np.fft.rfft(frames * np.hanning(512))) / 128
        top = max(20 * np.log10(max(level.max(), 1e-9)), -120.0)
        shown = 20 * np.log10(np.maximum(level, 1e-9)).T
        image = axes.imshow(
            shown, origin="lower", aspect="auto", cmap="magma", vmin=top - 80, vmax=top,
            extent=(0, len(x) / sample_rate, 0, sample_rate / 2000),
        )  # fmt: skip
        axes.set(xlabel="time (s)", ylabel="frequency (kHz)")
        axes.set_title(title, fontsize=10)
        figure.colorbar(image, ax=axes, label="level (dB of full scale)")
    if note:
        figure.text(0.01, 0.005, note, fontsize=8)
    figure.subplots_adjust(0.045, 0.15, 0.965, 0.91, wspace=0.18)
    save(figure, path, crop=False)


def confusion(path: Path, counts: Sequence[Sequence[int]], classes: Sequence[str], *, title: str) -> None:
    """Confusion matrix: true classes down, predicted ones across, counts in the cells, shares of the row as shade."""
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    size = 2.5 + 0.45 * len(classes)
    figure, axes = plt.subplots(figsize=(size, size))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    if len(classes) <= 40:
        for i, row in enumerate(counts):
            for j, count in enumerate(row):
                if count:
                    shade = "white" if shares[i][j] > 0.5 else "black"
                    axes.text(j, i, str(count), ha="center", va="center", fontsize=8, color=shade)
    save(figure, path)


def training(path: Path, history: Sequence[dict[str, float]], *, title: str) -> None:
    """Loss, validation accuracy and learning rate against epochs."""
    epochs = [entry["epoch"] for entry in history]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6))
    left.plot(epochs, [entry["loss"] for entry in history], label="training (as penalised and augmented)")
    left.plot(epochs, [entry["validation_loss"] for entry in history], label="validation cross-entropy")
    left.set(xlabel="epoch", title="loss")
    left.legend()
    middle.plot(epochs, [entry["validation_accuracy"] for entry in history])
    middle.set(xlabel="epoch", title="validation accuracy")
    right.plot(epochs, [entry["learning_rate"] for entry in history])
    right.set(xlabel="epoch", title="learning rate")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    save(figure, path)
