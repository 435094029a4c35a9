"""The data-path benchmark runs, compares equal features and fills its columns."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.data_path import run


def test_runs_in_a_tiny_setting() -> None:
    rows = run(None, repeats=1, per_class=4)
    assert len(rows) == 12
    for row in rows:
        assert list(row) == ["benchmark", "what", "ours", "peer", "unit", "ratio"]
        assert row["ours"] > 0
        assert row["peer"] > 0
        assert row["ratio"] > 0
