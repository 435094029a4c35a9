"""Figures of a transfer study; each function writes one PNG, atomically."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

from src.output import figures


def heat_maps(
    path: Path,
    panels: Mapping[str, Sequence[Sequence[float]]],
    clips: Sequence[Sequence[float]],
    substitutes: Sequence[str],
    targets: Sequence[str],
    *,
    title: str,
) -> None:
    """Percentages [substitute, target model] side by side, with a frame around the white boxes.

    Args:
        panels: title -> percentages; NaN where nothing is known.
        clips: number of clips that each percentage is of.
    """
    size = 1.6 + 0.62 * len(targets), 1.9 + 0.5 * len(substitutes)
    figure, every = plt.subplots(
        1, len(panels), figsize=(size[0] * len(panels) + 1, size[1]), squeeze=False, sharey=True, layout="constrained"
    )
    for axes, (name, values) in zip(every[0], panels.items(), strict=True):
        image = axes.imshow(np.asarray(values, dtype=float), cmap="viridis", vmin=0, vmax=100, aspect="auto")
        axes.set_facecolor("0.85")
        axes.set_title(name, fontsize=10)
        axes.set(xlabel="target model")
        axes.set_xticks(range(len(targets)), targets, rotation=90)
        axes.set_yticks(range(len(substitutes)), substitutes)
        for i, (row, counts) in enumerate(zip(values, clips, strict=True)):
            for j, (value, count) in enumerate(zip(row, counts, strict=True)):
                if not math.isnan(value):
                    shade = "black" if value > 60 else "white"
                    axes.text(j, i - 0.1, f"{value:.3g}", ha="center", va="center", fontsize=9, color=shade)
                    axes.text(j, i + 0.25, f"of {count:.0f}", ha="center", va="center", fontsize=6, color=shade)
                if substitutes[i] == targets[j]:
                    axes.add_patch(Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, fill=False, ec="red", lw=1.2))
    every[0][0].set(ylabel="substitute")
    figure.colorbar(image, ax=list(every[0]), label="%")
    figure.suptitle(title, fontsize=10)
    figures.save(figure, path)


def label_histograms(
    path: Path, counts: Mapping[str, tuple[Sequence[int], Sequence[int]]], classes: Sequence[str], *, title: str
) -> None:
    """Histograms of labels, one above the other: of all clips, and of those whose attack succeeded.

    Args:
        counts: what the labels are -> clips per class, and those of them whose attack succeeded.
    """
    width = min(max(5.0, 0.32 * len(classes) + 1.5), 16.0)
    figure, every = plt.subplots(
        len(counts), 1, figsize=(width, 2.3 * len(counts) + 1), squeeze=False, sharex=True, sharey=True,
        layout="constrained",
    )  # fmt: skip
    for axes, (name, (attacked, succeeded)) in zip(every[:, 0], counts.items(), strict=True):
        axes.bar(range(len(classes)), attacked, color="0.8", label="attacked")
        axes.bar(range(len(classes)), succeeded, color="C0", width=0.55, label="attack succeeded on the substitute")
        axes.set(ylabel="clips")
        axes.set_title(name, fontsize=10)
        axes.grid(axis="y", alpha=0.3)
    every[-1, 0].set_xticks(range(len(classes)), classes, rotation=90)
    handles, names = every[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=8, ncols=2, loc="outside lower center")
    figure.suptitle(title, fontsize=10)
    figures.save(figure, path)
