"""Butterworth filters from their pass and stop edges, as causal convolutions in torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import fft, signal
from torch import Tensor

from src.victims.stage import Defense

PASS_LOSS, STOP_LOSS = 3.0, 40.0
"""dB: the most that is lost inside the pass edges, the least that is lost beyond the stop edges."""
NEGLIGIBLE = 1e-15
"""The impulse response is cut where the rest of it has less than this share of its norm."""
LONGEST = 2**21
"""Samples of an impulse response at most."""


class Butterworth(Defense):
    """The Butterworth filter of the lowest order that meets its edges.

    Designed and evaluated in second-order sections in float64 (a polynomial of this order is numerically broken, in
    float32 most of all), applied to a whole batch by FFT with the impulse response: differentiable, its output that of
    `scipy.signal.sosfilt` to rounding.

    Args:
        name: of the defense.
        sample_rate: Hz.
        pass_edges, stop_edges: Hz, one each for a low-pass and two each for a band-pass.

    Raises:
        ValueError: edges so close, or so low, that no filter in float64 meets them.
    """

    response: Tensor
    lipschitz = 1.0

    def __init__(self, name: str, sample_rate: int, pass_edges: Sequence[float], stop_edges: Sequence[float]):
        super().__init__(name)
        # A stop edge at half the sample rate is legal: there a digital Butterworth filter is zero.
        below = sample_rate / 2 * (1 - 1e-9)
        edges = [np.minimum(edge, below).squeeze() for edge in (pass_edges, stop_edges)]
        order, natural = signal.buttord(*edges, PASS_LOSS, STOP_LOSS, fs=sample_rate)
        kind = "lowpass" if len(pass_edges) == 1 else "bandpass"
        try:
            self.sections = signal.butter(order, natural, kind, fs=sample_rate, output="sos")
            response = impulse_response(self.sections)
        except (OverflowError, ValueError):  # scipy's, where the order is in the hundreds
            response = np.full(1, np.inf)
        # Such a filter never amplifies: one that does is broken by rounding.
        if not np.isfinite(response).all() or np.abs(fft.rfft(response, max(len(response), sample_rate))).max() > 1.001:
            raise ValueError(
                f"no {name} filter of order {order} is exact enough: set pass and stop edges farther apart, or higher"
            )
        self.register_buffer("response", torch.from_numpy(response), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time] -> [batch, time]."""
        if not len(x):
            return x
        n = fft.next_fast_len(x.shape[-1] + len(self.response) - 1, real=True)
        return torch.fft.irfft(torch.fft.rfft(x, n) * torch.fft.rfft(self.response.to(x), n), n)[..., : x.shape[-1]]


def impulse_response(sections: np.ndarray) -> np.ndarray:
    """The response of second-order sections to 1, 0, 0, ..., float64, as long as it is not negligible.

    Raises:
        ValueError: longer than `LONGEST`.
    """
    radius = max(np.abs(pole) for pole in signal.sos2zpk(sections)[1])
    if not radius ** (LONGEST / 2) < NEGLIGIBLE:
        raise ValueError(f"the impulse response exceeds {LONGEST} samples")
    impulse = np.zeros(math.ceil(2 * math.log(NEGLIGIBLE) / math.log(radius)) if radius > 0 else 1)
    impulse[0] = 1
    response = signal.sosfilt(sections, impulse)
    rest = np.sqrt(np.cumsum(response[::-1] ** 2)[::-1])
    return response[: np.count_nonzero(rest > NEGLIGIBLE * rest[0])].copy()
