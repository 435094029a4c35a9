"""Every benchmark in a tiny setting: each measures what it says."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import attacks as bench_attacks
from benchmarks import audio_attacks as bench_audio_attacks
from benchmarks import black_box as bench_black_box
from benchmarks import certify as bench_certify
from benchmarks import decisions as bench_decisions
from benchmarks import default_evaluation as bench_default_evaluation
from benchmarks import front_end as bench_front_end
from benchmarks import grid as bench_grid
from benchmarks import inversion as bench_inversion
from benchmarks import minimum_norm as bench_minimum_norm
from benchmarks import scale as bench_scale
from benchmarks import strength as bench_strength
from benchmarks import transfer as bench_transfer
from benchmarks.run import processor
from src.datasets.store import Clips
from src.threat import ThreatModel
from src.victims import checkpoint
from src.victims.victim import Victim


@pytest.fixture(scope="module")
def victim(clips: Clips) -> Victim:
    torch.manual_seed(0)
    return checkpoint.build(
        model="resnet", model_options={"widths": (4, 8)}, front_end_options={"hop_length": 320},
        classes=clips.classes, sample_rate=clips.sample_rate, n_samples=clips.n_samples,
    ).eval()  # fmt: skip


def ratios(rows: list[dict[str, object]]) -> list[float]:
    assert rows
    for row in rows:
        assert {"benchmark", "what", "ours", "peer", "unit", "ratio"} <= set(row)
    return [float(row["ratio"]) for row in rows]  # type: ignore[arg-type]


def test_benchmarks_measure_something(clips: Clips, victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_attacks, "STEPS", 2)
    monkeypatch.setattr(bench_attacks, "carlini_wagner", lambda *args: [])
    x = clips.waveforms(slice(2))
    assert all(ratio > 0 for ratio in ratios(bench_attacks.run(victim, x, 1, eps=(1e-3,))))
    assert all(ratio > 0 for ratio in ratios(bench_front_end.run(x, clips.sample_rate, 1)))
    assert processor()


def test_inversion_benchmark_measures_quality_too(clips: Clips) -> None:
    rows = bench_inversion.run(clips.waveforms(slice(1)), clips.sample_rate, 1)
    assert len(ratios(rows)) >= 2


def test_transfer_benchmark_runs_the_same_algorithm_twice(
    trained_net: tuple[Victim, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop and the batch hand out the same clips and stop for the same reasons, whichever rule ends them."""
    victim, x, _ = trained_net
    monkeypatch.setattr(bench_transfer, "REFERENCE_CLIPS", 3)
    for keys in ({}, {"confidence": 0.0}, {"min_snr": 45.0}):
        monkeypatch.setattr(bench_transfer, "KEYS", bench_transfer.KEYS | keys)
        (row,) = bench_transfer.run(victim, x[:3], steps=25)
        assert "3 of 3 stop for the same reason" in row["note"]
        assert float(row["note"].split("at most ")[1].split()[0]) < 0.01
        assert row["ratio"] > 0


def test_strength_benchmark_judges_both(clips: Clips, victim: Victim) -> None:
    x = clips.waveforms(slice(3))
    rows = bench_strength.run({"tiny": victim}, x, victim(x).argmax(1), eps=0.5, steps=3)
    assert len(ratios(rows)) == 2
    assert {row["unit"] for row in rows} == {"robust accuracy", "s"}


def test_default_evaluation_benchmark_counts_passes(clips: Clips, victim: Victim) -> None:
    x = clips.waveforms(slice(3))
    options = {
        "autoattack": {"steps": 3, "targets": 2, "queries": 5},
        "standard": {"steps": 3, "apgd_steps": 3},
    }
    rows = bench_default_evaluation.run({"tiny": victim}, x, victim(x).argmax(1), options)
    assert [row["unit"] for row in rows] == ["robust accuracy", "backward passes per clip", "s per clip"] * 2
    assert 0 < rows[1]["ours"] <= 3 + 3 + 6 + 3 * 4
    assert len(ratios(rows)) == 6


def test_grid_benchmark_compares_with_and_without(clips: Clips, victim: Victim) -> None:
    cases = (("pgd", "linf", 5e-4, {"steps": 2}), ("ddn", "l2", float("inf"), {"steps": 20}))
    rows = bench_grid.run(victim, clips.waveforms(slice(2)), 1, cases)
    assert [row["unit"] for row in rows] == ["s", "passes per clip", "s", "passes per clip", "median L2"]
    assert rows[1]["ours"] >= 3
    assert all(ratio > 0 for ratio in ratios(rows[:4]))
    assert rows[4]["ours"] > 0


def test_audio_attacks_benchmark_compares_at_the_same_budget(clips: Clips, victim: Victim) -> None:
    x = clips.waveforms(slice(1))
    undecided = copy.deepcopy(victim)
    last = [layer for layer in undecided.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():  # the first class is ahead of all others by very little, so that every attack succeeds
        last.bias -= undecided(x)[0]
        last.bias[0] += 1e-3
        assert undecided(x).argmax(1).tolist() == [0]
    rows = bench_audio_attacks.run({"tiny": undecided}, x, torch.tensor([0]), eps=0.02, steps=3, rooms=4)
    over_the_air, psychoacoustic = rows
    assert len(ratios(rows)) == 2
    assert 0 < over_the_air["ours"] <= 1
    assert 0 < psychoacoustic["ours"] <= 1
    assert "1 clips that both fool" in psychoacoustic["note"]


def test_black_box_benchmark_counts_the_queries_of_both(clips: Clips, victim: Victim) -> None:
    x = clips.waveforms(slice(1))
    rows = bench_black_box.run({"tiny": victim}, x, victim(x).argmax(1), "5 dB", "5 dB", queries=8)
    assert {row["unit"] for row in rows} == {"success share", "mean queries"}
    assert len(rows) == 2 * sum(len(names) for names in (*bench_black_box.OURS.values(), bench_black_box.TARGETED))
    assert all(ratio >= 0 for ratio in ratios(rows))
    for row in rows:
        assert 0 <= row["ours"] <= (1 if row["unit"] == "success share" else 8)


def test_decisions_benchmark_compares_at_equal_queries(trained_net: tuple[Victim, Tensor, Tensor]) -> None:
    """The nearest example is a start of all, so that every distance is at most the way to it."""
    victim, x, y = trained_net
    rows = bench_decisions.run({"tiny": victim}, x[:2], y[:2], (x, y), queries=40)
    assert [row["what"].split()[0] for row in rows] == list(bench_decisions.OURS)
    starts, found = bench_decisions.nearest_starts(victim, x[:2], (y[:2] + 1 + torch.arange(2) % 3) % 4, (x, y))
    assert found.all()
    furthest = float((starts - x[:2]).norm(dim=1).max())
    for row in rows:
        assert 0 < row["ours"] <= furthest * 1.01
        assert 0 < row["peer"] <= furthest * 1.01


def test_decisions_benchmark_counts_every_row_and_keeps_the_smallest_success() -> None:
    x, target = torch.zeros(2, 4), torch.tensor([1, 1])
    smallest = bench_decisions.Smallest(lambda x: torch.stack([0.5 - x[:, 0], x[:, 0] - 0.5], 1), x, target)
    point = lambda *values: torch.tensor([[value, 0, 0, 0] for value in values])  # noqa: E731
    smallest(point(0.9, 0.1))
    smallest.select(torch.zeros(3, dtype=torch.long))(point(0.6, 0.4, 0.8))
    assert smallest.count.tolist() == [4, 1]
    assert smallest.distance.tolist() == pytest.approx([0.6, math.inf], abs=1e-4)
    images = bench_decisions.AsImages(smallest.select(torch.tensor([0])), 5)
    with pytest.raises(bench_black_box.FoundError):
        images((point(0.55, 0.51).reshape(2, 1, 1, 4) + 1) / 2)
    assert smallest.count.tolist() == [5, 1]
    assert smallest.distance.tolist() == pytest.approx([0.55, math.inf], abs=1e-4)


def test_black_box_benchmark_counts_only_what_is_legal_and_survives_rounding() -> None:
    """Class 1 from the first sample on 0.6 of a 16-bit step; budget linf of 2 steps."""
    step = 1 / 32768

    def model(x: Tensor) -> Tensor:
        return torch.stack([0.6 * step - x[:, 0], x[:, 0] - 0.6 * step], 1)

    x = torch.zeros(1, 4)
    threat = ThreatModel("linf", 2 * step, (-1.0, 1.0))
    watched = bench_black_box.Watched(model, x, torch.tensor([0]), threat, targeted=False)
    for value in (0.0, 5 * step, 1.2 * step):
        watched(torch.full_like(x, value))
    assert (watched.count.item(), watched.first.item()) == (3, 3), "the second query is beyond the budget"
    lower = bench_black_box.Watched(lambda x: model(x + 0.2 * step), x, torch.tensor([0]), threat, targeted=False)
    for value in (0.45 * step, 0.7 * step):
        lower(torch.full_like(x, value))
    assert lower.first.item() == 2, "0.45 of a step fools the model and is rounded to 0"


def test_minimum_norm_and_certify_benchmarks_measure_something(
    clips: Clips, victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_certify, "N0", 16)
    monkeypatch.setattr(bench_certify, "N", 48)
    monkeypatch.setattr(bench_certify, "tune", lambda model, rows: 16)
    x = clips.waveforms(slice(2))
    assert all(ratio > 0 for ratio in ratios(bench_certify.run(victim, x[0], 1)))
    assert callable(bench_minimum_norm.run), "its 200 passes of eight attacks are too slow for a test of its own"


def test_scale_benchmark_counts_memory_and_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[int, int]] = []

    def fake(config: Path, out: Path, clips: int, processes: int, *overrides: str) -> tuple[float, float]:
        runs.append((clips, processes))
        return 5.0 + clips / processes, 100.0

    monkeypatch.setattr(bench_scale, "attack", fake)
    memory, throughput = bench_scale.run(Path("none.ini"), few=10, many=50)
    assert memory["ratio"] == 1
    assert throughput["ratio"] == pytest.approx(2)
    assert runs == [(10, 1), (50, 1), (10, 2), (50, 2)]
