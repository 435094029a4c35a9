"""The benchmark of the defenses runs in a tiny setting and fills its columns."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import transformations
from src.stages.front_ends import log_mel
from src.victims.victim import Victim


def test_runs_in_a_tiny_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformations, "STEPS", 1)
    monkeypatch.setattr(transformations, "DRAWS", 2)
    classifier = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(40, 3))
    stages = log_mel(sample_rate=16000, n_samples=1600)
    victim = Victim(stages, classifier, classes="abc", sample_rate=16000, n_samples=1600).eval()
    clips = torch.randn(5, 1600, generator=torch.Generator().manual_seed(0)) * 0.1
    rows = transformations.run(victim, clips, repeats=1)
    assert len(rows) >= 7 + 4 + 2 + 4
    for row in rows:
        assert list(row) == ["benchmark", "what", "ours", "peer", "unit", "ratio", "note"]
        assert row["ours"] > 0
        assert row["peer"] > 0
    feco = next(row for row in rows if row["what"].startswith("feco"))
    assert "11 frames to 2" in feco["what"]
    assert "squared error" in feco["note"]
