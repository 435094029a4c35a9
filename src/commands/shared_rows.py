"""Rows that the processes of one job compute together; what is there already is not computed again."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from src.distributed import Team
from src.output import results

Opening = tuple[Path, Sequence[str], Sequence[str], Mapping[str, Any]]
"""Path, fields, key and settings of results.Rows."""


def collect(
    members: Team, opening: Opening, compute: Callable[[results.RowFile], Sequence[Sequence[Any]]]
) -> list[dict[str, str]]:
    """The rows that were asked for, in their order.

    Args:
        compute: writes those of this process's share that are missing; returns the keys of all.
    """
    if members.leads:
        results.RowFile(*opening).close()  # takes in the parts that an interrupted run left
    members.wait()
    rows = results.RowFile(*opening, part=None if members.size == 1 else members.rank)
    keys = compute(rows)
    rows.close()
    members.wait()
    if members.leads:
        merged = results.RowFile(*opening)
        merged.sort(keys)
        merged.close()
    members.wait()
    path, _, key, _ = opening
    wanted = {tuple(map(results.cell, values)) for values in keys}
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if tuple(row[name] for name in key) in wanted]
