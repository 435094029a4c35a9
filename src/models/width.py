"""Narrower copies of published networks, for the CPU."""

from __future__ import annotations

LEAST = 8
"""Fewest channels of a layer: convolutions of fewer gain no time on a CPU."""


def scaled(channels: int, width: float) -> int:
    """`width` times the published number of channels, at least 8, or the published number where that is less.

    >>> scaled(64, 1.0), scaled(64, 0.25), scaled(64, 0.01)
    (64, 16, 8)
    """
    return max(min(LEAST, channels), round(channels * width))
