"""A certificate is a theorem: no radius above a known margin, no error above alpha, and each known mistake caught."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betaln
from scipy.stats import beta, binom, binomtest, norm
from torch import Tensor, nn

from src.datasets.store import Clips
from src.output.results import cell
from src.perception import threshold_in_quiet
from src.smoothing import (
    ABSTAIN,
    BettingTest,
    Certificate,
    CertifySettings,
    ShapedNoise,
    Smooth,
    lower_bound,
    noise,
    round_down,
    semantic,
    summary,
    tune,
)
from src.smoothing.bounds import log_wealth
from src.smoothing.certifier import spectrum
from src.smoothing.smooth import _fastest
from src.victims import checkpoint
from tests.conftest import ROOT


def linear(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Class 1 where weight . z > 0."""
    return lambda z: torch.stack([torch.zeros(len(z)), z @ weight], 1)


def constant(z: Tensor) -> Tensor:
    return torch.tensor([0.0, 1.0, 0.0]).expand(len(z), 3)


# --- bounds on a probability


@given(st.integers(1, 5000), st.data())
def test_lower_bound_is_the_beta_quantile(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    alpha = data.draw(st.sampled_from([0.05, 0.001]))
    bound = lower_bound(k, n, alpha)
    assert bound == pytest.approx(beta.ppf(alpha, k, n - k + 1) if k else 0.0, rel=1e-9)
    # The definition: at this p, k hits or more have probability alpha.
    if k:
        assert binomtest(k, n, bound, alternative="greater").pvalue == pytest.approx(alpha, rel=1e-6)


@pytest.mark.parametrize(("k", "n"), [(1, 10), (60, 100), (990, 1000), (10_000, 10_000)])
def test_lower_bound_is_statsmodels_at_twice_alpha(k: int, n: int) -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    expected = proportion.proportion_confint(k, n, alpha=2 * 0.001, method="beta")[0]
    assert lower_bound(k, n, 0.001) == pytest.approx(expected, rel=1e-9)


@given(st.floats(1e-6, 1e6))
def test_printed_radius_is_never_above_the_radius(radius: float) -> None:
    down = round_down(radius)
    assert float(cell(down)) == down
    assert radius * (1 - 1e-5) <= down <= radius


def stop(test: BettingTest, draws: np.ndarray, batch: int) -> BettingTest:
    for start in range(0, len(draws), batch):
        if test.observe(draws[start : start + batch]):
            break
    return test


@settings(max_examples=30, deadline=None)
@given(st.floats(0.4, 0.9999), st.integers(0, 10_000))
def test_betting_does_not_depend_on_batches(p: float, seed: int) -> None:
    draws = np.random.default_rng(seed).random(3000) < p
    tests = [stop(BettingTest([0.0, 0.5, 1.5], 3000, 0.01), draws, batch) for batch in (7, 16, 48, 3000)]
    assert len({(test.k, test.n, test.lower_z(), *test.won) for test in tests}) == 1


@pytest.mark.parametrize("p", [0.5, 0.84, 0.97])
def test_coverage_of_both_modes(p: float) -> None:
    """The bound exceeds the true p in at most alpha of the runs, even when stopped at will."""
    rng, alpha, runs = np.random.default_rng(0), 0.05, 400
    fixed = [lower_bound(int(k), 1000, alpha) > p for k in rng.binomial(1000, p, 4000)]
    assert binomtest(sum(fixed), len(fixed), alpha, alternative="greater").pvalue > 1e-3
    wrong = 0
    for _ in range(runs):
        # Targets just above p tempt the test to stop at a lucky moment.
        targets = norm.ppf([p + 0.003, min(p + 0.02, 0.999)])
        test = stop(BettingTest(targets, 1000, alpha), rng.random(1000) < p, 250)
        wrong += norm.cdf(test.lower_z()) > p or test.won.any()
    assert binomtest(wrong, runs, alpha, alternative="greater").pvalue > 1e-3


def test_peeking_at_a_fixed_bound_would_break_coverage() -> None:
    """Why the sequential mode needs its own bound."""
    rng, alpha, p, runs = np.random.default_rng(1), 0.05, 0.8, 300
    hits = (rng.random((runs, 1000)) < p).cumsum(1)[:, 19::20]
    n = np.arange(20, 1001, 20)
    peeked = (beta.ppf(alpha, hits, n - hits + 1) > p).any(1).mean()
    assert peeked > 2 * alpha


def test_sequential_saves_draws_and_agrees() -> None:
    """At least ten times fewer draws than 100,000, with the decisions that the true probabilities imply."""
    rng, targets, used = np.random.default_rng(2), [1.0, 2.0], []
    for p in (0.6, 0.9, 0.95, 0.99):
        test = stop(BettingTest(targets, 100_000, 0.001), rng.random(100_000) < p, 64)
        expected = tuple(p >= norm.cdf(z) for z in targets)
        assert tuple(test.won) == expected
        used.append(test.n)
    assert np.mean(used) < 10_000


# --- CERTIFY and PREDICT


def test_linear_classifier_in_1000_dimensions() -> None:
    """Its true radius is the margin: never exceeded, and nearly reached."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.functional.normalize(torch.randn(1000, generator=generator), dim=0)
    ratios = []
    for case, margin in enumerate((0.05, 0.3, 0.5, 0.6)):
        z = torch.randn(1000, generator=generator)
        z += (margin - z @ weight) * weight
        for mode in ("fixed", "sequential"):
            smooth = Smooth(
                linear(weight), 0.25, n=40_000, alpha=0.001, batch_size=4096, mode=mode, radii=[0.1, 0.25, 0.55]
            )
            certificate = smooth.certify(z, f"case {case}")
            assert certificate.radius <= margin
            ratios.append(certificate.radius / margin)
            if mode == "fixed":
                assert certificate.label == 1
    assert max(ratios) >= 0.95


def test_no_perturbation_inside_the_radius_changes_the_label() -> None:
    """Points at 0.95 of the certified radius in the worst direction keep the label."""
    weight = torch.nn.functional.normalize(torch.ones(50), dim=0)
    z = 0.4 * weight
    smooth = Smooth(linear(weight), 0.25, n=4000, batch_size=512)
    certificate = smooth.certify(z, "x")
    assert certificate.label == 1
    assert smooth.predict(z - 0.95 * certificate.radius * weight, "x") in (1, ABSTAIN)
    assert smooth.predict(z - 1.5 * weight, "x") == 0


@pytest.mark.parametrize(("n", "alpha"), [(100, 0.05), (1000, 0.001), (5000, 0.001)])
def test_constant_classifier_reaches_the_ceiling(n: int, alpha: float) -> None:
    certificate = Smooth(constant, 0.5, n=n, alpha=alpha, batch_size=512).certify(torch.zeros(3), "x")
    ceiling = 0.5 * norm.ppf(alpha ** (1 / n))
    assert certificate == Certificate(1, round_down(ceiling), 100 + n)


def test_sequential_stops_when_targets_are_decided() -> None:
    radii = [0.05, 0.5, 5.0]
    smooth = Smooth(constant, 0.5, n=100_000, batch_size=64, mode="sequential", radii=radii)
    certificate = smooth.certify(torch.zeros(3), "x")
    assert certificate.label == 1
    assert 0.5 <= certificate.radius < 5.0
    assert certificate.n_used < 300  # the third target is out of reach of 100,000 draws and this is known beforehand


def test_selection_and_estimation_draws_differ() -> None:
    """Every draw of a run is a new one: the label is not estimated on the draws that selected it."""
    seen: list[Tensor] = []

    def spy(z: Tensor) -> Tensor:
        seen.append(z.clone())
        return constant(z)

    Smooth(spy, 1.0, n0=64, n=64, batch_size=64).certify(torch.zeros(5), "x")
    select, estimate = seen
    assert not bool((select[:, None] == estimate[None]).all(-1).any())


def test_same_draws_for_both_would_miscover() -> None:
    """Ten equally likely classes: reusing the draws certifies p > 0.1 far more often than alpha."""
    rng, alpha = np.random.default_rng(0), 0.05
    counts = rng.multinomial(100, [0.1] * 10, 3000)
    reused = np.mean(beta.ppf(alpha, counts.max(1), 101 - counts.max(1)) > 0.1)
    fresh = rng.binomial(100, 0.1, 3000)
    separate = np.mean(beta.ppf(alpha, np.maximum(fresh, 1), 101 - fresh) > 0.1)
    assert reused > 5 * alpha
    assert separate < 1.3 * alpha


def test_nan_logits_vote_for_nobody() -> None:
    """f is NaN on four fifths of the draws: argmax alone would call that a class and certify it."""

    def broken(z: Tensor) -> Tensor:
        logits = torch.tensor([0.0, 1.0]).repeat(len(z), 1)
        logits[z[:, 0] > norm.ppf(0.2), 0] = math.nan
        return logits

    for mode in ("fixed", "sequential"):
        certificate = Smooth(broken, 1.0, n=500, batch_size=64, mode=mode, radii=[0.1]).certify(torch.zeros(2), "x")
        assert (certificate.label, certificate.radius) == (ABSTAIN, 0.0)
    assert Smooth(broken, 1.0, n=500, batch_size=64).predict(torch.zeros(2), "x") == ABSTAIN


def test_abstention_has_no_radius_and_is_never_correct() -> None:
    coin = Smooth(linear(torch.tensor([1.0, 0.0])), 1.0, n=300, batch_size=64)
    certificate = coin.certify(torch.zeros(2), "x")
    assert certificate == Certificate(ABSTAIN, 0.0, 400)
    assert coin.predict(torch.zeros(2), "x") == ABSTAIN
    assert not certificate.correct(0)
    assert not certificate.correct(ABSTAIN)


def test_training_mode_is_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Dropout())
    with pytest.raises(ValueError, match="training mode"):
        Smooth(net.eval().train(), 1.0)
    net.eval()
    net[1].train()
    with pytest.raises(ValueError, match="training mode"):
        Smooth(net, 1.0)
    Smooth(net.eval(), 1.0)


@pytest.mark.parametrize("mode", ["fixed", "sequential"])
def test_batch_size_changes_nothing(mode: str) -> None:
    """An odd dimension and odd numbers of draws: torch fills normals in groups of 16."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(37, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    z = torch.randn(37)

    def answers(batch: int) -> list[object]:
        smooth = Smooth(net, 0.7, n0=33, n=501, batch_size=batch, mode=mode, radii=[0.1, 0.3], seed=3)
        return [smooth.certify(z, "a"), smooth.certify(z, "b"), smooth.predict(z, "a")]

    assert answers(16) == answers(48) == answers(512)
    alone = Smooth(net, 0.7, n0=33, n=501, batch_size=64, mode=mode, radii=[0.1, 0.3], seed=3)
    assert alone.certify(z, "b") == answers(16)[1]  # whatever was certified before


def test_tuned_batch_gives_the_same_answers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(1, 8, 9), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 93, 4)).eval()
    z = torch.randn(1, 101)
    tuned = Smooth(net, 0.5, n=500)
    assert tuned.certify(z, "x") == Smooth(net, 0.5, n=500, batch_size=16).certify(z, "x")
    assert tuned.batch_size >= 16
    assert tuned.batch_size % 16 == 0


def test_tuning_refuses_a_batch_size_that_changes_logits() -> None:
    def moody(z: Tensor) -> Tensor:
        return z + (1e-6 if len(z) > 16 else 0.0)

    with torch.inference_mode():
        assert tune(moody, torch.ones(16, 3), patience=0.5) == 16


def test_seed_and_example_choose_the_noise() -> None:
    seen: dict[tuple[int, str], Tensor] = {}
    for seed, example in ((0, "a"), (0, "b"), (1, "a")):

        def spy(z: Tensor, key: tuple[int, str] = (seed, example)) -> Tensor:
            seen.setdefault(key, z.clone())
            return constant(z)

        Smooth(spy, 1.0, n0=16, n=16, batch_size=16, seed=seed).certify(torch.zeros(4), example)
    draws = list(seen.values())
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.stack(draws).std() == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize(
    "wrong",
    [{"sigma": -1.0}, {"alpha": 0.7}, {"n": 0}, {"batch_size": 40}, {"mode": "sequential"}],
)
def test_bad_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)).replace("mode", "sequential")):
        Smooth(constant, **{"sigma": 1.0, **wrong})  # type: ignore[arg-type]


def test_presets() -> None:
    paper = CertifySettings(preset="paper")
    assert (paper.n0, paper.n, paper.alpha) == (500, 10_000, 0.001)
    assert CertifySettings(preset="cohen").n == 100_000
    with pytest.raises(ValueError, match="waveform"):
        CertifySettings(stage="mel", noise="speech")
    with pytest.raises(ValueError, match="twice"):
        CertifySettings(baselines=("median", "median"))


# --- shaped noise


def test_shaped_noise_has_its_spectrum_and_its_norm() -> None:
    n = 240
    shaped = ShapedNoise(noise.hearing(n, 16000), n)
    generator = torch.Generator().manual_seed(0)
    draws = shaped(torch.randn(4000, n, generator=generator))
    assert float(draws.square().mean()) == pytest.approx(1.0, rel=0.02)
    measured = torch.fft.rfft(draws, norm="ortho").abs().square().mean(0).sqrt()
    torch.testing.assert_close(measured, shaped.amplitude, rtol=0.08, atol=0.0)
    # The norm is that of the unit noise behind a perturbation.
    e = torch.randn(3, n, generator=generator)
    torch.testing.assert_close(shaped.norm(shaped(e)), e.norm(dim=1), rtol=1e-4, atol=0.0)
    assert bool((shaped.norm(e) * shaped.l2() <= e.norm(dim=1) * 1.0001).all())


def test_shaped_linear_classifier() -> None:
    """In the norm of the noise the distance of z to the plane w . z = 0 is w . z / ||Sigma^(1/2) w||."""
    n = 101
    shaped = ShapedNoise(noise.speech(torch.randn(50, n, generator=torch.Generator().manual_seed(1))), n)
    weight = torch.nn.functional.normalize(torch.sin(torch.arange(n) * 0.3), dim=0)
    z = 0.4 * weight
    distance = float(z @ weight / shaped(weight).norm())
    certificate = Smooth(linear(weight), 0.3, n=20_000, batch_size=1024, noise_filter=shaped).certify(z, "x")
    assert certificate.label == 1
    assert 0.9 * distance <= certificate.radius <= distance


def test_band_budgets_are_bounds() -> None:
    n, rate = 16000, 16000
    shaped = ShapedNoise(noise.hearing(n, rate), n)
    t = torch.arange(n) / rate
    for hertz, band in ((1000, "1000 Hz"), (4000, "4000 Hz")):
        tone = torch.sin(2 * math.pi * hertz * t)
        assert float(shaped.norm(tone)) <= float(tone.norm()) / shaped.bands(rate)[band] * 1.0001
    assert min(shaped.bands(rate).values()) == pytest.approx(shaped.l2(), rel=0.5)


# --- gain and time shift


@pytest.mark.parametrize("n", [160, 161])
@given(a=st.floats(-20, 20), b=st.floats(-20, 20))
@settings(max_examples=20, deadline=None)
def test_shifts_and_gains_add_up(n: int, a: float, b: float) -> None:
    x = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    for transform in (semantic.shift, semantic.gain):
        once = transform(transform(x, torch.tensor([[a]], dtype=x.dtype))[0], torch.tensor([[b]], dtype=x.dtype))
        torch.testing.assert_close(once, transform(x, torch.tensor([[a + b]], dtype=x.dtype)), rtol=1e-9, atol=1e-9)


def test_whole_shift_is_a_roll() -> None:
    x = torch.randn(161, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(semantic.shift(x, torch.tensor([[7.0]], dtype=x.dtype))[0], x.roll(7))


def test_gain_certificate_is_the_true_margin() -> None:
    """f says 1 where the level is above a threshold 6 dB below the clip's: the certified gain is 6 dB."""
    x = 0.1 * torch.sin(torch.arange(400) * 0.2)
    level = 20 * torch.log10(x.norm()) - 6

    def loud(y: Tensor) -> Tensor:
        return torch.stack([level.expand(len(y)), 20 * torch.log10(y.norm(dim=1))], 1)

    certificate = Smooth(semantic.along(loud, semantic.gain, x, 1.0), 3.0, n=20_000, batch_size=256).certify(
        torch.zeros(1), "x"
    )
    assert certificate.label == 1
    assert 0.95 * 6 <= certificate.radius <= 6
    assert semantic.headroom(x) == pytest.approx(20, abs=0.1)


# --- summaries of rows


def test_summary() -> None:
    rows = [
        {"id": "a", "predict": "1", "radius": "0.5", "correct": "1", "n_used": "100"},
        {"id": "b", "predict": "2", "radius": "0.9", "correct": "0", "n_used": "100"},
        {"id": "c", "predict": "-1", "radius": "0", "correct": "0", "n_used": "100"},
        {"id": "d", "predict": "1", "radius": "0.1", "correct": "1", "n_used": "100"},
    ]
    assert summary.certified_accuracy(rows, [0, 0.1, 0.11, 0.5, 0.51]) == [0.5, 0.5, 0.25, 0.25, 0]
    line = summary.summarize(rows, dict.fromkeys("abcd", 10.0), 35.0)
    assert line["ACR"] == pytest.approx(0.15)
    assert line["accuracy"] == 0.5
    assert line["abstained"] == 0.25
    assert line["median waveform L2 radius"] == pytest.approx(0.05 / 35)
    assert summary.summarize(rows, dict.fromkeys("abcd", 10.0), None)["median certified SNR dB"] == "none"
    assert summary.certified_snr(10.0, 0.1) == pytest.approx(40)
    assert summary.table({0.25: rows}, [0.1, 0.5]) == [{"sigma": "0.25", "r = 0.1": "0.50", "r = 0.5": "0.25"}]
    assert summary.envelope([[0.9, 0.0], [0.5, 0.4]]) == [0.9, 0.4]


def test_certified_accuracy_of_the_enrolled_and_of_imposters() -> None:
    assert summary.speaker_groups(("yes", "no")) == {}
    groups = summary.speaker_groups(("ann", "bob", "nobody"))
    accepted, rejected = "enrolled, accepted as themselves", "imposters, rejected"
    assert groups == {accepted: {0, 1}, rejected: {2}}
    cases = ((0, 0.5, 1), (1, 0.2, 1), (1, 0.9, 0), (0, 0.0, 0), (2, 0.3, 1), (2, 0.6, 0))
    rows = [{"label": str(label), "radius": radius, "correct": correct} for label, radius, correct in cases]
    assert summary.by_group({0.25: rows}, [0, 0.3], groups) == [
        {"sigma": "0.25", "speakers": accepted, "clips": "4", "r = 0": "0.50", "r = 0.3": "0.25"},
        {"sigma": "0.25", "speakers": rejected, "clips": "2", "r = 0": "0.50", "r = 0.3": "0.50"},
    ]
    assert [line["speakers"] for line in summary.by_group({0.25: rows[:4]}, [0], groups)] == [accepted]


# --- the script


@pytest.fixture
def workspace(tmp_path: Path, clips: Clips, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store, a small trained-looking victim and a config."""
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        np.save(data / f"{split}.npy", clips.samples)
        index = {"labels": clips.labels.tolist(), "lengths": clips.lengths.tolist(), "ids": list(clips.ids)}
        (data / f"{split}.json").write_text(json.dumps(index))
    facts = {"classes": clips.classes, "sample_rate": 16000, "synthetic": True, "source": "synthetic", "counts": {}}
    (data / "dataset.json").write_text(json.dumps(facts))
    torch.manual_seed(0)
    victim = checkpoint.build(
        model="bc_resnet",
        front_end="log_mel",
        front_end_options={"hop_length": 320},
        classes=clips.classes,
        sample_rate=16000,
        n_samples=clips.n_samples,
    ).eval()
    checkpoint.save(tmp_path / "models/tiny.pt", victim, {})
    (tmp_path / "config.ini").write_text(
        f"[DATA]\ndata_dir = {data}\nn_test = 4\n[CERTIFY]\nsigma = 0.01, 0.05\nn0 = 16\nn = 64\nbatch_size = 16\n"
        "attack_steps = 2\nattack_n = 100\n"
        f"[RESULTS]\nmodel_dir = {tmp_path}/models\nplot_dir = {tmp_path}/plots\nresults_dir = {tmp_path}/results\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> int:
    arguments = [part for override in overrides for part in ("--set", override)]
    monkeypatch.setattr(sys, "argv", ["certify.py", *arguments])
    try:
        runpy.run_path(str(ROOT / "certify.py"), run_name="__main__")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def timeless(path: Path) -> list[list[str]]:
    return [row[:-1] for row in csv.reader(io.StringIO(path.read_text()))]


def test_script_resumes_to_the_same_file(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch) == 0
    output = capsys.readouterr().out
    assert "SYNTHETIC" in output
    assert "A certificate says" in output
    folder = workspace / "results/certify"
    rows = folder / "tiny.waveform.0.05.rows.csv"
    assert rows.read_text().splitlines()[0] == "idx,id,label,predict,radius,correct,n_used,time"
    assert {path.suffix for path in folder.iterdir()} == {".csv", ".md", ".json"}
    assert list((workspace / "plots").glob("*.png"))
    table = (folder / "tiny.waveform.certified_accuracy.md").read_text()
    assert "| sigma | r = 0.01 | r = 0.05 |" in table
    complete, lines = timeless(rows), rows.read_text().splitlines(keepends=True)
    # A kill in the middle of the third row.
    rows.write_text("".join(lines[:3]) + lines[3][:7])
    assert run(monkeypatch) == 0
    assert timeless(rows) == complete
    assert rows.read_text().splitlines(keepends=True)[:3] == lines[:3]  # finished rows are not computed again
    # Another batch size, and rows made in another order.
    rows.write_text(lines[0] + lines[-1])
    assert run(monkeypatch, "CERTIFY.batch_size=48") == 0
    assert timeless(rows) == complete


def test_processes_share_the_clips(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows from one process and from two."""
    short = ["CERTIFY.sigma=0.05", "DATA.n_test=3"]
    assert run(monkeypatch, *short) == 0
    alone = timeless(workspace / "results/certify/tiny.waveform.0.05.rows.csv")
    job = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(ROOT / "certify.py")]
    overrides = [part for override in [*short, "RESULTS.results_dir=two"] for part in ("--set", override)]
    subprocess.run(
        [sys.executable, *job, *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        timeout=200,
    )
    assert timeless(workspace / "two/certify/tiny.waveform.0.05.rows.csv") == alone
    assert not list((workspace / "two").rglob("*.part*"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["CERTIFY.stage=log_mel", "CERTIFY.mode=sequential"],
        ["CERTIFY.noise=speech"],
        ["CERTIFY.kind=gain", "CERTIFY.sigma=3", "CERTIFY.radii=1,3"],
        ["CERTIFY.kind=shift", "CERTIFY.sigma=20", "CERTIFY.radii=10,50"],
    ],
)
def test_script_variants(workspace: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]) -> None:
    assert run(monkeypatch, "DATA.n_test=2", "CERTIFY.n=32", *overrides) == 0
    assert list((workspace / "results/certify").glob("*certified_accuracy.csv"))


def test_script_refuses_mistakes(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for override, message in (
        ("CERTIFY.stage=meld", "no representation 'meld'"),
        ("RESULTS.model_dir=nowhere", "no trained models"),
        ("CERTIFY.batch_size=10", "multiple of 16"),
    ):
        assert run(monkeypatch, override) == 2
        assert message in capsys.readouterr().err
    assert not (workspace / "results").exists()


def test_script_catches_a_wrong_certificate(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Certificates that claim a hundred times the whole clip are planted: the check sees them, in the same run."""
    short = ["DATA.n_test=2", "CERTIFY.sigma=0.01", "CERTIFY.attack_steps=4"]
    assert run(monkeypatch, *short) == 0
    folder = workspace / "results/certify"
    path = folder / "tiny.waveform.0.01.rows.csv"
    head, *rows = [line.split(",") for line in path.read_text().splitlines()]
    for row in rows:
        row[2] = row[3] = "1"  # label and certified label
        row[4], row[5] = "1000", "1"
    path.write_text("\n".join(",".join(line) for line in [head, *rows]) + "\n")
    (folder / "tiny.waveform.attacks.csv").unlink()
    capsys.readouterr()
    assert run(monkeypatch, *short) == 1
    output = capsys.readouterr()
    assert "CERTIFICATE CONTRADICTED" in output.out
    assert "inside a certified radius" in output.err
    assert "CERTIFICATE CONTRADICTED" in (folder / "tiny.waveform.certified_accuracy.md").read_text()


def test_script_attacks_the_smoothed_model_and_the_defenses(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [
        "DATA.n_test=2", "CERTIFY.sigma=0.01", "CERTIFY.radii=0.5", "CERTIFY.attack_clips=1",
        "CERTIFY.baselines=quantize, pagn",
    ]  # fmt: skip
    assert run(monkeypatch, *short) == 0
    output = capsys.readouterr().out
    folder = workspace / "results/certify"
    with (folder / "tiny.waveform.attacked_accuracy.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["classifier"], line["accuracy"]) for line in lines[:2]] == [
        ("smoothed, sigma 0.01", "certified"), ("smoothed, sigma 0.01", "under attack"),
    ]  # fmt: skip
    assert {line["classifier"] for line in lines[2:]} == {"undefended", "quantize", "pagn"}
    assert set(lines[0]) == {"classifier", "accuracy", "r = 0", "r = 0.5"}
    assert "noise that depends on the clip (pagn" in output
    rows = folder / "tiny.waveform.attacks.csv"
    complete, lines = timeless(rows), rows.read_text().splitlines(keepends=True)
    rows.write_text("".join(lines[:3]) + lines[3][:9])
    assert run(monkeypatch, *short) == 0
    assert timeless(rows) == complete
    # Another baseline is added to the rows; without any, the model behind defenses is not attacked.
    assert run(monkeypatch, *short, "CERTIFY.baselines=median, quantize, pagn") == 0
    assert [row for row in timeless(rows) if row[0] != "median"] == complete
    assert run(monkeypatch, *short, "CERTIFY.baselines=") == 0
    with (folder / "tiny.waveform.attacked_accuracy.csv").open() as file:
        assert [line["classifier"] for line in csv.DictReader(file)] == ["smoothed, sigma 0.01"] * 2
    with (folder / "tiny.waveform.curves.csv").open() as file:
        curve = list(csv.DictReader(file))
    assert set(curve[0]) == {"radius", "SNR dB", "sigma 0.01", "best"}
    assert (workspace / "plots/certified_snr.tiny.png").exists()


def test_script_warns_of_another_noise_than_in_training(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = workspace / "models/tiny.pt"
    victim, _ = checkpoint.load(path)
    checkpoint.save(path, victim, {"sigma": 0.05, "stage": "waveform"})
    assert run(monkeypatch, "DATA.n_test=1") == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert warnings == [
        "warning: tiny was trained with noise of sigma 0.05 at waveform, and is certified with 0.01 at waveform"
    ]


def test_a_spectrum_spans_40_db_and_is_told_by_octaves() -> None:
    n, rate = 16000, 16000
    amplitude = torch.full((n // 2 + 1,), 1e-9)
    amplitude[1000] = 1.0
    shaped = ShapedNoise(amplitude, n)
    assert float(shaped.amplitude.max() / shaped.amplitude.min()) == pytest.approx(100, rel=1e-4)
    bands = shaped.bands(rate)
    assert list(bands) == [f"{hertz} Hz" for hertz in (125, 250, 500, 1000, 2000, 4000, 8000)]
    weakest = shaped.l2()
    assert all(value == pytest.approx(weakest) for value in bands.values()), "a band counts by its weakest bin"
    edges = torch.ones(n // 2 + 1)
    edges[708:1415] = 2.0  # exactly the octave around 1 kHz
    around = ShapedNoise(edges, n)
    assert around.bands(rate)["1000 Hz"] == pytest.approx(2 * around.bands(rate)["500 Hz"], rel=1e-4)
    assert around.bands(rate)["2000 Hz"] == pytest.approx(around.bands(rate)["500 Hz"])
    for hertz in (800, 1300):  # below and above the middle of the octave
        weak = torch.ones(n // 2 + 1)
        weak[hertz] = 0.5
        dipped = ShapedNoise(weak, n).bands(rate)
        assert dipped["1000 Hz"] == pytest.approx(0.5 * dipped["2000 Hz"], rel=1e-4)


def test_the_speech_spectrum_is_the_smoothed_mean_power() -> None:
    x = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    power = np.abs(np.fft.rfft(x.numpy())) ** 2
    mean = power.mean(0)
    expected = [mean[max(0, i - 50) : i + 51].mean() for i in range(len(mean))]
    np.testing.assert_allclose(noise.speech(x).numpy() ** 2, expected, rtol=1e-4)
    short = torch.randn(2, 100, generator=torch.Generator().manual_seed(1))
    plain = (np.abs(np.fft.rfft(short.numpy())) ** 2).mean(0)
    np.testing.assert_allclose(noise.speech(short).numpy() ** 2, plain, rtol=1e-4)


@pytest.mark.parametrize(("n_samples", "smoothed"), [(402, False), (404, True)])
def test_the_speech_spectrum_is_smoothed_from_203_bins(n_samples: int, smoothed: bool) -> None:
    x = torch.randn(2, n_samples, generator=torch.Generator().manual_seed(1))
    plain = torch.fft.rfft(x).abs().square().mean(0)
    assert torch.allclose(noise.speech(x).square(), plain, rtol=1e-4) is not smoothed


def test_a_contradiction_names_five_clips_at_most() -> None:
    rows = [{"id": f"clip{i}", "sigma": 0.5, "radius": 1.0, "contradicts": "1"} for i in range(7)]
    said, contradicted = summary.certificate_verdict(rows, 0.001)
    assert contradicted
    assert "7 of 7" in said
    assert said.endswith("clip3 (sigma 0.5), clip4 (sigma 0.5)")


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="0 <= k <= n"):
        lower_bound(k, n, 0.001)


@pytest.mark.parametrize("keys", [{"alpha": 0.0}, {"alpha": -0.1}, {"alpha": 0.5}, {"n": 0}, {"n0": 0}])
def test_smoothing_settings_out_of_range_are_refused(keys: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="need sigma > 0"):
        Smooth(lambda z: z, 0.1, **keys)  # type: ignore[arg-type]


# --- the betting bound


@pytest.mark.parametrize("p", [0.5, 0.8, 0.99])
def test_the_wealth_against_the_true_probability_is_a_martingale_of_mean_one(p: float) -> None:
    """What makes the test sound: at the true p a further draw changes the wealth by nothing on average."""
    n, log_p, log_q = 50, math.log(p), math.log1p(-p)
    wealth, later = (np.exp(log_wealth(np.arange(draws + 1), draws, log_p, log_q)) for draws in (n, n + 1))
    assert (binom.pmf(np.arange(n + 1), n, p) * wealth).sum() == pytest.approx(1, rel=1e-9)
    np.testing.assert_allclose(p * later[1:] + (1 - p) * later[:-1], wealth, rtol=1e-9)


def lower_z(k: int, n: int, alpha: float) -> float:
    test = BettingTest([1.0], n, alpha)
    test.k, test.n = k, n
    return test.lower_z()


@pytest.mark.parametrize("n", [20, 1000, 100_000])
def test_the_betting_bound_of_hits_alone_in_closed_form(n: int) -> None:
    """The wealth B(n + 1/2, 1/2) / (pi p^n) is 1 / alpha at p = (alpha B(n + 1/2, 1/2) / pi)^(1 / n)."""
    p = np.exp((math.log(0.001) + betaln(n + 0.5, 0.5) - math.log(math.pi)) / n)
    assert norm.ppf(p) - 1e-8 <= lower_z(n, n, 0.001) <= norm.ppf(p)


def test_the_betting_bound_is_where_the_wealth_is_one_over_alpha() -> None:
    """For more hits than misses that rule out a fair coin; else nothing is proven, whatever the misses prove."""
    n, alpha = 500, 0.001
    proven = [k for k in range(n + 1) if lower_z(k, n, alpha) > -math.inf]
    fair = math.log(0.5)
    assert proven == [k for k in range(n + 1) if k > n / 2 and log_wealth(k, n, fair, fair) >= -math.log(alpha)]
    for k in proven[::10]:
        z = lower_z(k, n, alpha)
        assert log_wealth(k, n, norm.logcdf(z), norm.logsf(z)) >= -math.log(alpha)
        assert log_wealth(k, n, norm.logcdf(z + 1e-8), norm.logsf(z + 1e-8)) < -math.log(alpha)


# --- what is configured


def test_presets_are_the_numbers_of_the_papers() -> None:
    presets = [CertifySettings(preset=name) for name in ("paper", "cohen")]  # type: ignore[arg-type]
    assert [(s.n0, s.n, s.alpha) for s in presets] == [(500, 10_000, 0.001), (100, 100_000, 0.001)]


def test_smoothing_alone_draws_as_the_config_does_by_default() -> None:
    smooth, configured = Smooth(constant, 1.0), CertifySettings()
    for name in ("n0", "n", "alpha", "mode", "batch_size", "seed"):
        assert getattr(smooth, name) == getattr(configured, name), name


def test_the_spectrum_is_the_configured_one() -> None:
    n, rate, clips = 480, 16000, torch.randn(3, 480, generator=torch.Generator().manual_seed(0))

    def amplitudes(name: str, training_clips: Callable[[], Tensor]) -> Tensor:
        shaped = spectrum(CertifySettings(noise=name), n, rate, training_clips)  # type: ignore[arg-type]
        assert shaped is not None
        return shaped.amplitude

    def no_clips() -> Tensor:
        raise AssertionError("this spectrum needs no clips")

    assert spectrum(CertifySettings(noise="white"), n, rate, no_clips) is None
    assert torch.equal(amplitudes("hearing", no_clips), ShapedNoise(noise.hearing(n, rate), n).amplitude)
    assert torch.equal(amplitudes("speech", lambda: clips), ShapedNoise(noise.speech(clips), n).amplitude)


def test_the_hearing_spectrum_is_the_threshold_in_quiet() -> None:
    n, rate = 1600, 16000
    hertz = torch.fft.rfftfreq(n, 1 / rate)
    level = 20 * noise.hearing(n, rate).log10()
    quiet = threshold_in_quiet(hertz.clamp_min(50), lowest=1)  # in dB; constant below 50 Hz
    torch.testing.assert_close(level, quiet.to(level), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("n", [8, 9])
def test_a_flat_spectrum_is_white_noise(n: int) -> None:
    """Parseval: an even length has one bin that occurs once at either end of the spectrum, an odd one only the mean."""
    white = ShapedNoise(torch.full((n // 2 + 1,), 3.0), n)
    delta = torch.randn(5, n, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(white(delta), delta)
    torch.testing.assert_close(white.norm(delta), delta.norm(dim=1))
    assert white.l2() == pytest.approx(1)


# --- what a pass costs


@pytest.mark.parametrize("answer", ["certify", "predict", "tuned_batch_size"])
def test_votes_are_counted_without_autograd(answer: str) -> None:
    modes: list[bool] = []

    def spy(z: Tensor) -> Tensor:
        modes.append(torch.is_inference_mode_enabled())
        return constant(z)

    smooth = Smooth(spy, 1.0, n0=16, n=16, batch_size=0 if answer == "tuned_batch_size" else 16)
    getattr(smooth, answer)(*([torch.zeros(4)] if answer == "tuned_batch_size" else [torch.zeros(4), "x"]))
    assert modes
    assert all(modes)


def test_noisy_copies_use_the_same_memory_until_the_shape_changes() -> None:
    places: list[int] = []
    seen: list[tuple[torch.Size, torch.dtype]] = []

    def spy(z: Tensor) -> Tensor:
        places.append(z.data_ptr())
        seen.append((z.shape, z.dtype))
        return constant(z)

    smooth = Smooth(spy, 1.0, n0=32, n=96, batch_size=32)
    smooth.certify(torch.zeros(5), "a")
    smooth.certify(torch.zeros(5), "b")
    assert len(places) == 2 * (1 + 3)
    assert len(set(places)) == 1
    for z in (torch.zeros(7), torch.zeros(2, 7), torch.zeros(2, 7, dtype=torch.float64)):
        smooth.predict(z, "c")
        assert seen[-1] == ((32, *z.shape), z.dtype)


@pytest.mark.parametrize(
    ("durations", "calls"), [([1.0, 0.5], 2), ([0.06, 0.05, 0.06, 0.06], 4), ([0.002, *[0.001] * 9], 10)]
)
def test_a_pass_is_timed_twice_and_a_quick_one_up_to_ten_times(
    monkeypatch: pytest.MonkeyPatch, durations: list[float], calls: int
) -> None:
    clock, remaining = [0.0], [*durations, *[9.0] * 5]

    def call() -> Tensor:
        clock[0] += remaining.pop(0)
        return torch.zeros(1)

    monkeypatch.setattr("src.smoothing.smooth.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert _fastest(call, torch.device("cpu")) == pytest.approx(min(durations))
    assert len(remaining) == len(durations) + 5 - calls


def test_two_labels_of_several_digits_are_compared_by_value() -> None:
    """As read from a file: equal texts that are two objects."""
    row = {
        "classifier": "smoothed", "sigma": "0.1", "id": "a", "label": "".join("12"), "certified": "".join("12"),
        "radius": "0.3", "broken_at": "0.5",
    }  # fmt: skip
    assert row["label"] is not row["certified"]
    certified, attacked = summary.side_by_side([row], [0.2])
    assert (certified["r = 0.2"], attacked["r = 0.2"]) == ("1.00", "1.00")


def tuned(monkeypatch: pytest.MonkeyPatch, cost: Callable[[int], float], memory: int = 10**9) -> int:
    """What tuning finds for a model whose passes take `cost(rows)` seconds and fit into memory up to so many rows."""
    clock, refused = [0.0], list[int]()

    def model(z: Tensor) -> Tensor:
        clock[0] += cost(len(z))
        if len(z) > memory:
            refused.append(len(z))
            raise torch.cuda.OutOfMemoryError
        return z

    monkeypatch.setattr("src.smoothing.smooth.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    best = tune(model, torch.ones(16, 3))
    assert len(refused) <= 1, "what did not fit once is not tried again"
    return best


@pytest.mark.parametrize(
    ("cost", "best"),
    [
        (lambda rows: 0.03, 4096),
        (lambda rows: 0.001 * rows, 16),
        (lambda rows: 0.001 * max(rows, 128), 128),
        (lambda rows: 0.001 * rows * (1 + rows / 64), 16),
        (lambda rows: 1.0, 64),  # 3 passes of each size: after 10 seconds the search ends
    ],
)
def test_the_smallest_of_the_fastest_batch_sizes_is_found(
    monkeypatch: pytest.MonkeyPatch, cost: Callable[[int], float], best: int
) -> None:
    assert tuned(monkeypatch, cost) == best


def test_a_batch_that_does_not_fit_into_memory_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuned(monkeypatch, lambda rows: 0.03, memory=100) == 64
