"""Timing of the benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

Work = Callable[[], Any]


def in_turns(works: Sequence[Work], repeats: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Median seconds of each after one warm-up, measured in turns, so that a slow phase of the machine affects
    all of them.

    Args:
        clock: wall time, or time.process_time for one thread on a machine with other work.
    """
    times: list[list[float]] = [[] for _ in works]
    for turn in range(repeats + 1):
        for work, measured in zip(works, times, strict=True):
            start = clock()
            work()
            if turn:  # the first one warms up
                measured.append(clock() - start)
    return [statistics.median(measured) for measured in times]


def seconds(work: Work, repeats: int) -> float:
    """Median seconds of a function, after a warm-up."""
    return in_turns([work], repeats)[0]
