"""From a data source to the clip store (work in progress)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from src.registry import DATASETS, Count, Listed, Natural, Positive


@dataclass(frozen=True, kw_only=True)
class Data:
    """What the clips are and where they lie.

    Args:
        source: data source.
        data_dir: folder of the prepared clips.
        include_dirs: classes to include, in this order.
        n_test: number of test clips for attacks and certificates, drawn with the seed.
        sample_rate: Hz; every recording is converted to it.
        seconds: length of a clip; longer ones are cropped, shorter ones padded with zeros.
        strict: stop at the first unreadable file instead of naming and skipping it.
        seed: of every random choice about the data.
    """

    source: DATASETS.Name = "synthetic"  # type: ignore[name-defined]
    data_dir: Path = Path("~/data/SPEECH")
    include_dirs: Listed[str] = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")
    n_test: Count = 1000
    sample_rate: Count = 16000
    seconds: Positive = 1.0
    strict: bool = False
    seed: Natural = 0
