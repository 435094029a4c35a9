"""Certificates for a gain and for a circular time shift (Fischer, Baader and Vechev 2020), by smoothing over the
parameter instead of the samples.

Both transformations compose additively, T_a(T_b(x)) = T_{a+b}(x), so f(T_u(x)) is a function of one number u, and
Cohen's theorem for noise on u says: g gives T_a(x) the same label for every |a| below the radius. This requires that
nothing clips or quantizes between transformation and classifier, hence `headroom`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def gain(x: Tensor, u: Tensor) -> Tensor:
    """x [time] amplified by u [batch, 1] dB -> [batch, time]."""
    return x * 10 ** (u / 20)


def headroom(x: Tensor) -> float:
    """dB by which x [time] can be amplified before a sample leaves [-1, 1]: the limit of every gain certificate."""
    peak = float(x.abs().max())
    return -20 * math.log10(peak) if peak > 0 else math.inf


def shift(x: Tensor, u: Tensor) -> Tensor:
    """x [time] delayed by u [batch, 1] samples, circularly and with fractions -> [batch, time].

    For an even length, the bin at half the sample rate has no phase that could be shifted and is set to zero, at
    u = 0 too; otherwise shifts would not compose additively.
    """
    n = x.shape[-1]
    spectrum = torch.fft.rfft(x)
    if n % 2 == 0:
        spectrum[-1] = 0
    turns = u * torch.fft.rfftfreq(n, device=x.device, dtype=x.dtype)
    return torch.fft.irfft(torch.polar(torch.ones_like(turns), -2 * math.pi * turns) * spectrum, n=n)


def along(
    model: Callable[[Tensor], Tensor], transform: Callable[[Tensor, Tensor], Tensor], x: Tensor, unit: float
) -> Callable[[Tensor], Tensor]:
    """f as a function of the parameter alone, as `Smooth` needs it: u [batch, 1] -> logits of T_{u * unit}(x)."""
    return lambda u: model(transform(x, u * unit))
