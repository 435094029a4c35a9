"""The pieces of the search for failed attacks: what rows show, for budgets in units and in dB."""

from __future__ import annotations

from pathlib import Path

import pytest

from src import config
from src.budget import Budget
from src.commands import sanity
from src.evaluation import ATTACK_FIELDS
from src.output.results import cell


def rows(kept: dict[str, int], clips: int = 10) -> list[dict[str, str]]:
    """`clips` rows per eps, of which so many are still right under attack."""
    table = []
    for eps, right in kept.items():
        for i in range(clips):
            row = dict.fromkeys(ATTACK_FIELDS, 0) | {
                "model": "m", "attack": "pgd", "eps": eps, "id": f"clip{i}", "norm": "linf", "label": 1, "correct": 1,
                "feasible": True, "budget": 0.1, "prediction": 1, "prediction_stage": int(i < right),
                "success_stage": i >= right, "success_wav": i >= right,
            }  # fmt: skip
            table.append({key: cell(value) for key, value in row.items()})
    return table


def settings(folder: Path, eps: str) -> config.Config:
    (folder / "config.ini").write_text(f"[ATTACK]\nnames = pgd\neps = {eps}\n")
    return config.load(folder / "config.ini")


@pytest.mark.parametrize(
    ("eps", "kept", "failed"),
    [
        ("0.1, 0.2", {"0.1": 8, "0.2": 3}, False),
        ("0.1, 0.2", {"0.1": 3, "0.2": 8}, True),
        ("30 dB, 20 dB", {"30 dB": 8, "20 dB": 3}, False),
        ("30 dB, 20 dB", {"30 dB": 3, "20 dB": 8}, True),
    ],
)
def test_accuracy_must_not_rise_with_the_budget(tmp_path: Path, eps: str, kept: dict[str, int], failed: bool) -> None:
    loaded = settings(tmp_path, eps)
    lost, infeasible, empty, monotone = sanity.over_rows(loaded, rows(kept), loaded.attack.eps[0])
    assert (infeasible.name, infeasible.failed) == ("infeasible", False)
    assert (empty.name, empty.failed) == ("empty_budget", False)
    assert (lost.name, lost.failed) == ("lost_on_wav", False)
    assert (monotone.name, monotone.failed) == ("curve_not_monotone", failed)
    if failed:
        assert monotone.value == pytest.approx(0.5)


def test_a_curve_needs_two_budgets_of_one_kind(tmp_path: Path) -> None:
    without_curve = ["lost_on_wav", "infeasible", "empty_budget"]
    for eps in ("0.1", "0.1, 20 dB"):
        loaded = settings(tmp_path, eps)
        assert [sign.name for sign in sanity.over_rows(loaded, rows({"0.1": 5}), Budget(0.1))] == without_curve
    loaded = settings(tmp_path, "0.1, 0.2")
    assert [sign.name for sign in sanity.over_rows(loaded, rows({"inf": 5}), None)] == without_curve


def test_controls_are_told_by_what_they_are() -> None:
    assert sanity.is_control("random_signs")
    assert sanity.is_control("time_shuffled")
    assert not sanity.is_control("pgd")
