"""Butterworth band-pass of the waveform (BPF of the speaker-recognition study)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from src.defenses.butterworth import Butterworth
from src.registry import DEFENSES, Positive

EDGES = ("low_stop_hz", "low_pass_hz", "high_pass_hz", "high_stop_hz")


def check(options: Mapping[str, Any]) -> None:
    edges = [options[name] for name in EDGES]
    if sorted(set(edges)) != edges:
        raise ValueError(f"need {' < '.join(EDGES)}, got {', '.join(f'{edge:g}' for edge in edges)}")


@DEFENSES.register("bandpass", check_options=check)
class Bandpass(Butterworth):
    """Causal Butterworth band-pass of the lowest order that meets all edges.

    Args:
        low_stop_hz: the loss is at least 40 dB below it, Hz.
        low_pass_hz: lower edge of the pass band, Hz; the loss is at most 3 dB above it.
        high_pass_hz: upper edge of the pass band, Hz; the loss is at most 3 dB below it.
        high_stop_hz: the loss is at least 40 dB above it, Hz.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        low_stop_hz: Positive = 150.0,
        low_pass_hz: Positive = 300.0,
        high_pass_hz: Positive = 4000.0,
        high_stop_hz: Positive = 6000.0,
    ):
        edges = dict(zip(EDGES, (low_stop_hz, low_pass_hz, high_pass_hz, high_stop_hz), strict=True))
        check(edges)
        if high_stop_hz > sample_rate / 2:
            raise ValueError(f"need high_stop_hz <= {sample_rate / 2:g} Hz, got {high_stop_hz:g}")
        super().__init__("bandpass", sample_rate, [low_pass_hz, high_pass_hz], [low_stop_hz, high_stop_hz])
