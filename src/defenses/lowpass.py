"""Butterworth low-pass of the waveform (LPF of the speaker-recognition study)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from src.defenses.butterworth import Butterworth
from src.registry import DEFENSES, Positive


def check(options: Mapping[str, Any]) -> None:
    if options["pass_hz"] >= options["stop_hz"]:
        raise ValueError(f"need pass_hz < stop_hz, got {options['pass_hz']:g} and {options['stop_hz']:g}")


@DEFENSES.register("lowpass", check_options=check)
class Lowpass(Butterworth):
    """Causal Butterworth low-pass of the lowest order that meets both edges.

    Args:
        pass_hz: edge of the pass band, Hz; the loss is at most 3 dB below it.
        stop_hz: edge of the stop band, Hz; the loss is at least 40 dB above it.
    """

    def __init__(self, *, sample_rate: int, pass_hz: Positive = 4000.0, stop_hz: Positive = 4500.0):
        if not pass_hz < stop_hz <= sample_rate / 2:
            raise ValueError(f"need pass_hz < stop_hz <= {sample_rate / 2:g} Hz, got {pass_hz:g} and {stop_hz:g}")
        super().__init__("lowpass", sample_rate, [pass_hz], [stop_hz])
