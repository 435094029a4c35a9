"""How the benchmarks take time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

Work = Callable[[], Any]


def in_turns(works: Sequence[Work], repeats: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Median seconds of each after one warm-up, taken in turns: what slows the machine for a while slows all of them.

    Args:
        clock: wall time, or time.process_time where one thread works and other programs run.
    """
    times: list[list[float]] = [[] for _ in works]
    for turn in range(repeats + 1):
        for work, own in zip(works, times, strict=True):
            start = clock()
            work()
            if turn:  # the first one warms up
                own.append(clock() - start)
    return [statistics.median(own) for own in times]


def seconds(work: Work, repeats: int) -> float:
    """Median seconds of one, after a warm-up."""
    return in_turns([work], repeats)[0]
