"""Every cell and bar of the figures of a transfer study, read back from the matplotlib figure."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from src.output import figures, transfer_figures

PATH = Path("figure.png")
SUBSTITUTES, TARGETS = ["vgg13", "crnn"], ["vgg13", "crnn", "dense_wav"]
TRANSFER = [[100.0, 41.4, math.nan], [30.0, 98.0, 4.5]]
TARGET = [[99.0, 23.6, math.nan], [12.0, 97.0, 0.0]]
CLIPS = [[80, 70, 0], [75, 78, 66]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that a test makes, instead of files."""
    made: list[Figure] = []
    monkeypatch.setattr(figures, "save", lambda figure, path, crop=True: made.append(figure))
    yield made
    for figure in made:
        figures.plt.close(figure)


def heat_maps(path: Path) -> None:
    panels = {"transfer %": TRANSFER, "target %": TARGET}
    transfer_figures.heat_maps(path, panels, CLIPS, SUBSTITUTES, TARGETS, title="cw")


def label_histograms(path: Path) -> None:
    counts = {"ground-truth label": ([5, 1, 3], [4, 0, 3]), "target class": ([3, 3, 3], [2, 3, 2])}
    transfer_figures.label_histograms(path, counts, ["dog", "rain", "bell"], title="vgg13")


def test_heat_maps_show_every_pair(drawn: list[Figure]) -> None:
    heat_maps(PATH)
    transfer, target, bar = drawn[0].axes
    for axes, values in ((transfer, TRANSFER), (target, TARGET)):
        np.testing.assert_array_equal(np.asarray(axes.images[0].get_array()), values)
        assert axes.images[0].get_clim() == (0, 100)
        assert [tick.get_text() for tick in axes.get_xticklabels()] == TARGETS
        cells = {(round(t.get_position()[0]), round(t.get_position()[1]), t.get_text()) for t in axes.texts}
        expected = {(j, i, f"{values[i][j]:.3g}") for i in range(2) for j in range(3) if CLIPS[i][j]}
        assert cells == expected | {(j, i, f"of {CLIPS[i][j]}") for i in range(2) for j in range(3) if CLIPS[i][j]}
        framed = {(round(p.get_x() + 0.48), round(p.get_y() + 0.46)) for p in axes.patches if isinstance(p, Rectangle)}
        assert framed == {(0, 0), (1, 1)}, "the white boxes"
    assert [tick.get_text() for tick in transfer.get_yticklabels()] == SUBSTITUTES
    assert (transfer.get_title(), target.get_title(), bar.get_ylabel()) == ("transfer %", "target %", "%")
    assert (transfer.get_xlabel(), transfer.get_ylabel()) == ("target model", "substitute")
    assert drawn[0].get_suptitle() == "cw"


def test_label_histograms_show_all_clips_and_those_that_succeeded(drawn: list[Figure]) -> None:
    label_histograms(PATH)
    truth, target = drawn[0].axes
    for axes, attacked, succeeded in ((truth, [5, 1, 3], [4, 0, 3]), (target, [3, 3, 3], [2, 3, 2])):
        heights = [[bar.get_height() for bar in container] for container in axes.containers]
        assert heights == [attacked, succeeded]
        assert axes.get_ylabel() == "clips"
    assert [tick.get_text() for tick in target.get_xticklabels()] == ["dog", "rain", "bell"]
    assert (truth.get_title(), target.get_title()) == ("ground-truth label", "target class")
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert names == ["attacked", "attack succeeded on the substitute"]


@pytest.mark.parametrize("name", ["heat_maps", "label_histograms"])
def test_every_figure_looks_as_it_did(name: str, tmp_path: Path) -> None:
    """EARSHOT_WRITE_GOLDEN=1 draws the stored pictures anew; look at them then."""
    stored = Path(__file__).with_name("golden") / "figures" / f"transfer_{name}.png"
    {"heat_maps": heat_maps, "label_histograms": label_histograms}[name](tmp_path / "figure.png")
    if os.environ.get("EARSHOT_WRITE_GOLDEN"):
        stored.write_bytes((tmp_path / "figure.png").read_bytes())
    expected, actual = imread(stored), imread(tmp_path / "figure.png")
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).mean() < 5e-4
