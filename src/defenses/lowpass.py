"""Butterworth low-pass of the waveform (LPF of the speaker-recognition study)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from scipy import signal
from torch import Tensor

from src.registry import DEFENSES, Positive
from src.victims.stage import Defense


def check(options: Mapping[str, Any]) -> None:
    if options["pass_hz"] >= options["stop_hz"]:
        raise ValueError(f"need pass_hz < stop_hz, got {options['pass_hz']:g} and {options['stop_hz']:g}")


@DEFENSES.register("lowpass", check_options=check)
class Lowpass(Defense):
    """Causal Butterworth filter of the lowest order that meets both edges.

    Args:
        pass_hz: edge of the pass band, Hz; the loss is at most 3 dB below it.
        stop_hz: edge of the stop band, Hz; the loss is at least 40 dB above it.
    """

    response: Tensor

    def __init__(self, *, sample_rate: int, pass_hz: Positive = 4000.0, stop_hz: Positive = 4500.0):
        super().__init__("lowpass")
        if not pass_hz < stop_hz < sample_rate / 2:
            raise ValueError(f"need pass_hz < stop_hz < {sample_rate / 2:g} Hz, got {pass_hz:g} and {stop_hz:g}")
        order, edge = signal.buttord(pass_hz, stop_hz, 3, 40, fs=sample_rate)
        # Second-order sections: the direct form of this order is numerically broken.
        impulse = signal.sosfilt(
            signal.butter(order, edge, fs=sample_rate, output="sos"), [1.0] + [0.0] * (sample_rate // 4)
        )
        self.register_buffer("response", torch.from_numpy(impulse).float(), persistent=False)
        self.lipschitz = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time] -> [batch, time]; convolution with the filter's impulse response, by FFT."""
        n = x.shape[-1] + len(self.response) - 1
        return torch.fft.irfft(torch.fft.rfft(x, n) * torch.fft.rfft(self.response, n), n)[..., : x.shape[-1]]
