"""Every line, band and cell of every figure: what a figure function draws is read back from the matplotlib figure."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from scipy.stats import norm

from src.output import figures

PATH = Path("figure.png")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that a test makes, instead of files."""
    made: list[Figure] = []
    monkeypatch.setattr(figures, "save", lambda figure, path, crop=True: made.append(figure))
    yield made
    for figure in made:
        figures.plt.close(figure)


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """Label -> (x, y) of every line."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def legend(axes: Axes) -> list[str]:
    """The entries of the legend; none where there is no legend."""
    return [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() else []


@pytest.mark.parametrize("crop", [True, False])
def test_a_figure_is_saved_as_png_and_released(tmp_path: Path, crop: bool) -> None:
    figure, axes = figures.plt.subplots()
    axes.plot([0, 1], [0, 1], color="red", linewidth=9)
    figures.save(figure, tmp_path / "deep/figure.png", crop)
    image = imread(tmp_path / "deep/figure.png")
    red = (image[..., 0] > 0.9) & (image[..., 1] < 0.1)
    assert red.mean() > 0.005
    assert not figures.plt.fignum_exists(figure.number)  # type: ignore[attr-defined]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["figure.png"]


@pytest.mark.parametrize("n_series", [0, 1, 3, 4])
def test_curves_draw_every_series(drawn: list[Figure], n_series: int) -> None:
    series = {f"series {i}": ([1.0, 10.0, 100.0], [0.1 * i, 0.2 * i, 0.3 * i]) for i in range(n_series)}
    figures.curves(PATH, series, x_label="x", y_label="y", title="title", log_x=True, drawstyle="steps-post")
    (axes,) = drawn[0].axes
    assert lines(axes) == series
    assert legend(axes) == list(series)
    assert {line.get_drawstyle() for line in axes.lines} <= {"steps-post"}
    assert {line.get_marker() for line in axes.lines} <= {"."}
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title(), axes.get_xscale()) == ("x", "y", "title", "log")


def test_curves_of_many_points_are_linear_and_without_markers(drawn: list[Figure]) -> None:
    x = list(range(60))
    figures.curves(PATH, {"many": (x, x)}, x_label="x", y_label="y", title="title")
    (axes,) = drawn[0].axes
    assert axes.get_xscale() == "linear"
    assert [(line.get_marker(), line.get_drawstyle()) for line in axes.lines] == [("None", "default")]


def test_certified_draws_every_sigma_and_the_envelope(drawn: list[Figure]) -> None:
    radii = [0.0, 0.5, 1.0]
    accuracy = {"sigma 0.1": [0.9, 0.2, 0.0], "sigma 0.5": [0.6, 0.5, 0.3]}
    best = [0.9, 0.5, 0.3]
    figures.certified(PATH, radii, accuracy, best=best, x_label="radius (L2 norm)", title="model")
    (axes,) = drawn[0].axes
    assert lines(axes) == {
        "best sigma at each radius": (radii, best),
        "sigma 0.1": (radii, accuracy["sigma 0.1"]),
        "sigma 0.5": (radii, accuracy["sigma 0.5"]),
    }
    assert legend(axes) == ["best sigma at each radius", "sigma 0.1", "sigma 0.5"]
    # Accuracy at r counts radii >= r, so a value holds from the previous radius up to its own.
    assert [line.get_drawstyle() for line in axes.lines[1:]] == ["steps-pre", "steps-pre"]
    assert axes.lines[0].get_linewidth() > 2 * axes.lines[1].get_linewidth(), "the envelope stays visible behind"
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == (
        "radius (L2 norm)", "certified accuracy", "model",
    )  # fmt: skip


DET = {
    "osi": {
        "far": [1.0, 0.5, 0.1, 0.0], "frr": [0.0, 0.02, 0.2, 1.0], "far_at": 0.1, "frr_at": 0.2,
        "far_interval": (0.05, 0.2), "frr_interval": (0.1, 0.3), "target_trials": 50, "non_target_trials": 100,
    },
    "sv": {
        "far": [1.0, 0.0, 0.0], "frr": [0.0, 0.0, 1.0], "far_at": 0.0, "frr_at": 0.0, "far_interval": (0.0, 0.1),
        "frr_interval": (0.0, 0.2), "target_trials": 10, "non_target_trials": 20,
    },
}  # fmt: skip


def test_det_axes_are_normal_deviates(drawn: list[Figure]) -> None:
    """Scores of two normal distributions of one variance, d apart, give the line y = -x - d."""
    d, theta = 2.0, np.linspace(-1, 3, 9)
    line = DET["osi"] | {"far": norm.sf(theta), "frr": norm.cdf(theta - d)}
    figures.det(PATH, {"osi": line | {"target_trials": 10**6, "non_target_trials": 10**6}}, title="title")
    x, y = lines(drawn[0].axes[0])["osi"]
    np.testing.assert_allclose(np.asarray(y), -np.asarray(x) - d, atol=1e-9)


def test_det_draws_every_recognizer_with_its_threshold(drawn: list[Figure]) -> None:
    figures.det(PATH, DET, title="title")
    (axes,) = drawn[0].axes
    assert legend(axes) == ["osi", "sv"]
    shown = [(norm.cdf(line.get_xdata()), norm.cdf(line.get_ydata()), line.get_color()) for line in axes.lines]
    curve, across, down, dot = shown[:4]
    # Rates of 0 and 1 stand at half an error: of 100 imposter trials and 50 target trials.
    np.testing.assert_allclose(curve[0], [0.995, 0.5, 0.1, 0.005])
    np.testing.assert_allclose(curve[1], [0.01, 0.02, 0.2, 0.99])
    np.testing.assert_allclose(across[0], [0.05, 0.2])
    np.testing.assert_allclose(across[1], [0.2, 0.2])
    np.testing.assert_allclose(down[0], [0.1, 0.1])
    np.testing.assert_allclose(down[1], [0.1, 0.3])
    np.testing.assert_allclose([dot[0], dot[1]], [[0.1], [0.2]])
    assert {color for _, _, color in shown[:4]} == {"C0"}
    assert {color for _, _, color in shown[4:8]} == {"C1"}
    np.testing.assert_allclose([shown[7][0], shown[7][1]], [[0.025], [0.05]])
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == [label.get_text() for label in axes.get_yticklabels()]
    np.testing.assert_allclose(norm.cdf(axes.get_xticks()), [float(label) / 100 for label in labels])
    assert axes.get_xlim() == axes.get_ylim()
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == (
        "imposters accepted (%)", "enrolled speakers rejected (%)", "title",
    )  # fmt: skip


def test_det_without_recognizers(drawn: list[Figure]) -> None:
    figures.det(PATH, {}, title="title")
    assert legend(drawn[0].axes[0]) == []


def point(model: str, attack: str, eps: float, accuracy: float) -> dict[str, Any]:
    return {
        "model": model, "attack": attack, "eps": eps, "accuracy": accuracy, "low": accuracy - 0.1,
        "high": accuracy + 0.05,
    }  # fmt: skip


POINTS = [
    point(model, attack, eps, accuracy - eps / 10)
    for model in ("cnn", "resnet")
    for attack, accuracy in (("pgd", 0.5), ("random_signs", 0.9), ("fgsm", 0.6), ("cw", 0.4))
    for eps in (0.0, 1.0, 2.0)
]


def test_security_draws_every_model_and_attack_with_its_band(drawn: list[Figure]) -> None:
    figures.security(PATH, POINTS, title="title", x_label="linf", falling=False, controls={"random_signs"})
    (axes,) = drawn[0].axes
    names = [f"{model}, {attack}" for model in ("cnn", "resnet") for attack in ("pgd", "random_signs", "fgsm", "cw")]
    assert legend(axes) == names
    shown = lines(axes)
    assert list(shown) == names
    for name, band in zip(names, axes.collections, strict=True):
        own = [p for p in POINTS if f"{p['model']}, {p['attack']}" == name]
        assert shown[name] == ([p["eps"] for p in own], [p["accuracy"] for p in own])
        corners = {(round(x, 6), round(y, 6)) for x, y in band.get_paths()[0].vertices}
        assert corners == {(p["eps"], round(p[side], 6)) for p in own for side in ("low", "high")}
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("linf", "accuracy", "title")
    assert not axes.xaxis_inverted()


def test_security_distinguishes_models_attacks_and_controls(drawn: list[Figure]) -> None:
    figures.security(PATH, POINTS, title="title", x_label="linf", falling=False, controls={"random_signs"})
    (axes,) = drawn[0].axes
    style = {line.get_label(): (line.get_color(), line._dash_pattern[1], line.get_linestyle()) for line in axes.lines}
    for model, color in (("cnn", "C0"), ("resnet", "C1")):
        assert {style[f"{model}, {a}"][0] for a in ("pgd", "random_signs", "fgsm", "cw")} == {color}
        attacks = [style[f"{model}, {attack}"][1:] for attack in ("pgd", "fgsm", "cw")]
        assert [ls for _, ls in attacks] == ["-", "--", "-."], "the control takes no style from the attacks"
        dash = style[f"{model}, random_signs"][1]
        assert dash is not None
        assert dash not in [pattern for pattern, _ in attacks]
        assert dash[0] < dash[1], "dotted: gaps longer than the dots"
    for line, band in zip(axes.lines, axes.collections, strict=True):
        rgb = matplotlib.colors.to_rgb(line.get_color())
        assert tuple(band.get_facecolor()[0][:3]) == pytest.approx(rgb)


def test_security_without_controls_has_no_dotted_line(drawn: list[Figure]) -> None:
    figures.security(PATH, POINTS[:6], title="title", x_label="linf", falling=False)
    (axes,) = drawn[0].axes
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--"]


def test_security_against_snr_runs_from_high_to_low(drawn: list[Figure]) -> None:
    figures.security(PATH, POINTS, title="title", x_label="SNR", falling=True)
    assert drawn[0].axes[0].xaxis_inverted()


def test_spectrograms_show_every_waveform_on_its_scale(drawn: list[Figure]) -> None:
    rate = 16000
    t = np.arange(rate) / rate
    panels = [("loud", 0.5 * np.sin(2 * np.pi * 1000 * t)), ("soft", 0.005 * np.sin(2 * np.pi * 3000 * t))]
    figures.spectrograms(PATH, panels, rate, note="SYNTHETIC SPEECH")
    axes = [a for a in drawn[0].axes if a.images]
    assert [a.get_title() for a in axes] == ["loud", "soft"]
    for a, hertz, level in zip(axes, (1000, 3000), (-6.0, -46.0), strict=True):
        (image,) = a.images
        assert list(image.get_extent()) == [0, 1.0, 0, 8.0]
        shown = np.asarray(image.get_array())
        row = shown[:, shown.shape[1] // 2].argmax()
        assert row / (len(shown) - 1) * 8000 == pytest.approx(hertz, abs=32)
        assert shown.max() == pytest.approx(level, abs=0.5), "a sine of amplitude 1 is at 0 dB"
        assert image.get_clim() == pytest.approx((shown.max() - 80, shown.max()))
        assert (a.get_xlabel(), a.get_ylabel()) == ("time (s)", "frequency (kHz)")
    assert [a.get_ylabel() for a in drawn[0].axes if not a.images] == ["level (dB of full scale)"] * 2
    assert [text.get_text() for text in drawn[0].texts] == ["SYNTHETIC SPEECH"]


def test_spectrogram_of_silence(drawn: list[Figure]) -> None:
    figures.spectrograms(PATH, [("silence", np.zeros(4000))], 8000)
    assert np.isfinite(np.asarray(drawn[0].axes[0].images[0].get_array())).all()
    assert not drawn[0].texts


def test_confusion_shows_counts_and_shares(drawn: list[Figure]) -> None:
    figures.confusion(PATH, [[8, 2, 0], [0, 0, 0], [1, 1, 2]], ["yes", "no", "up"], title="title")
    (axes,) = drawn[0].axes
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), [[0.8, 0.2, 0], [0, 0, 0], [0.25, 0.25, 0.5]])
    cells = {text.get_position(): (text.get_text(), text.get_color()) for text in axes.texts}
    assert cells == {
        (0, 0): ("8", "white"), (1, 0): ("2", "black"),
        (0, 2): ("1", "black"), (1, 2): ("1", "black"), (2, 2): ("2", "black"),
    }  # fmt: skip
    assert [label.get_text() for label in axes.get_xticklabels()] == ["yes", "no", "up"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["yes", "no", "up"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("predicted", "true", "title")


def test_confusion_of_many_classes_has_no_numbers(drawn: list[Figure]) -> None:
    figures.confusion(PATH, np.eye(41, dtype=int).tolist(), [str(i) for i in range(41)], title="title")
    assert not drawn[0].axes[0].texts


def test_training_draws_losses_accuracy_and_rate(drawn: list[Figure]) -> None:
    history = [
        {
            "epoch": epoch, "loss": 3.0 - epoch, "validation_loss": 3.5 - epoch, "validation_accuracy": 0.4 * epoch,
            "learning_rate": 0.01 / epoch,
        }
        for epoch in (1, 2)
    ]  # fmt: skip
    figures.training(PATH, history, title="model")
    loss, accuracy, rate = drawn[0].axes
    assert [axes.get_title() for axes in (loss, accuracy, rate)] == ["loss", "validation accuracy", "learning rate"]
    assert [axes.get_xlabel() for axes in (loss, accuracy, rate)] == ["epoch"] * 3
    assert list(lines(loss).values()) == [([1, 2], [2.0, 1.0]), ([1, 2], [2.5, 1.5])]
    training, validation = legend(loss)
    assert "training" in training
    assert "validation" in validation
    assert list(lines(accuracy).values()) == [([1, 2], [0.4, 0.8])]
    assert list(lines(rate).values()) == [([1, 2], [0.01, 0.005])]
    assert drawn[0].get_suptitle() == "model"


def golden_series() -> dict[str, tuple[list[float], list[float]]]:
    x = [float(i) for i in range(8)]
    return {f"model {k}": (x, [1 / (1 + k * v) for v in x]) for k in range(5)}


def golden_points() -> list[dict[str, Any]]:
    return [
        {"model": model, "attack": attack, "eps": eps, "accuracy": a, "low": a - 0.1, "high": min(a + 0.1, 1.0)}
        for model, slope in (("plain", 2.0), ("robust", 0.7))
        for attack, strength in (("pgd", 1.0), ("fgsm", 0.6), ("random_signs", 0.05))
        for eps in (0.0, 0.2, 0.4)
        for a in (max(0.1, 0.95 - slope * strength * eps),)
    ]


GOLDEN = {
    "curves": lambda path: figures.curves(path, golden_series(), x_label="x", y_label="y", title="five curves"),
    "curves_log": lambda path: figures.curves(
        path, {"a": ([1, 10, 100], [0, 1, 0.5])}, x_label="x", y_label="y", title="log", log_x=True,
        drawstyle="steps-post",
    ),
    "certified": lambda path: figures.certified(
        path, [0, 0.1, 0.2], {"sigma 0.1": [0.9, 0.5, 0], "sigma 0.5": [0.6, 0.6, 0.4]}, best=[0.9, 0.6, 0.4],
        x_label="radius", title="certified",
    ),
    "security": lambda path: figures.security(
        path, golden_points(), title="security", x_label="eps", falling=False, controls={"random_signs"}
    ),
    "security_falling": lambda path: figures.security(
        path, golden_points(), title="security", x_label="SNR", falling=True, controls=set()
    ),
    "det": lambda path: figures.det(path, DET, title="error rates"),
    "spectrograms": lambda path: figures.spectrograms(
        path, [("a chirp", 0.5 * np.sin(np.linspace(0, 60, 4000) ** 2)), ("silence", np.zeros(4000))], 8000, note="made"
    ),
    "confusion": lambda path: figures.confusion(path, [[5, 1, 0], [0, 2, 2], [1, 0, 9]], ["a", "bb", "c"], title="who"),
    "training": lambda path: figures.training(
        path,
        [{"epoch": e, "loss": 2 / e, "validation_loss": 2.2 / e, "validation_accuracy": 1 - 1 / e, "learning_rate": e}
         for e in range(1, 6)],
        title="training",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_every_figure_looks_as_it_did(name: str, tmp_path: Path) -> None:
    """Sizes, limits, colors and places: EARSHOT_WRITE_GOLDEN=1 draws the stored pictures anew; look at them then."""
    stored = Path(__file__).with_name("golden") / "figures" / f"{name}.png"
    GOLDEN[name](tmp_path / "figure.png")
    if os.environ.get("EARSHOT_WRITE_GOLDEN"):
        stored.parent.mkdir(exist_ok=True)
        stored.write_bytes((tmp_path / "figure.png").read_bytes())
    expected, actual = imread(stored), imread(tmp_path / "figure.png")
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).mean() < 5e-4


@pytest.mark.parametrize(("n_series", "outside"), [(1, False), (3, False), (4, True), (6, True)])
def test_a_long_legend_stands_below_the_curves(drawn: list[Figure], n_series: int, outside: bool) -> None:
    figures.curves(PATH, {str(i): ([0, 1], [0, i]) for i in range(n_series)}, x_label="x", y_label="y", title="title")
    (axes,) = drawn[0].axes
    drawn[0].canvas.draw()
    assert bool(axes.get_legend().get_window_extent().y1 < axes.get_window_extent().y0) is outside


def test_levels_are_those_of_full_scale(drawn: list[Figure]) -> None:
    """A sine of amplitude 1 whose frequency is that of a bin is at 0 dB, a fiftieth of a dB apart at most."""
    x = np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)
    figures.spectrograms(PATH, [("full scale", x)], 8000)
    shown = np.asarray(drawn[0].axes[0].images[0].get_array())
    assert np.abs(shown.max(0)[5:-5]).max() < 0.02
