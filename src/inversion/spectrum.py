"""Inversion of a chain of stages: each stage is undone by its own `inverse`, except that an inversion may replace the
steps from mel values to magnitudes and from magnitudes to a signal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from src.random_streams import HEAD, RandomStreams
from src.victims.chain import Chain
from src.victims.stage import Stage


@runtime_checkable
class FilterBank(Protocol):
    """The interface of the mel stage: filters [bands, freq] on magnitude ** power."""

    filters: Tensor
    power: float

    def inverse(self, y: Tensor, x: Tensor) -> Tensor: ...


@runtime_checkable
class Transform(Protocol):
    """The interface of the magnitude stage: the complex STFT, frames first, and its least-squares inverse."""

    def analyze(self, x: Tensor) -> Tensor: ...

    def overlap(self, n_frames: int) -> Tensor: ...

    def synthesize(self, spectrum: Tensor, n_samples: int, overlap: Tensor | None = None) -> Tensor: ...

    def inverse(self, y: Tensor, x: Tensor) -> Tensor: ...


ToMagnitude = Callable[[FilterBank], Callable[[Tensor], Tensor]]
"""Prepares, once per batch, the map from mel values [batch, bands, frames] to magnitudes [batch, freq, frames]."""
ToSignal = Callable[[Transform, Tensor, int, RandomStreams], Tensor]
"""Magnitudes [batch, freq, frames], samples, random streams -> [batch, samples]."""
Undo = Callable[[Tensor, Tensor, RandomStreams], Tensor]
"""Output of a stage, the clean input of that stage, random streams -> an input."""


@torch.no_grad()
def invert(
    head: Chain,
    z: Tensor,
    x: Tensor,
    rng: RandomStreams,
    to_magnitude: ToMagnitude | None = None,
    to_signal: ToSignal | None = None,
) -> Tensor:
    """Audio [batch, time] for the representation z of `head`, near the clean waveform x [batch, time].

    A CPU inverts one clip at a time: its spectra fit the cache, and the result cannot depend on the batch. Randomized
    stages are drawn again as they were for z, from the examples' streams for the head.
    """
    inverses = [_undo(stage, to_magnitude, to_signal) for stage in head.stages]

    def back(stages: Sequence[Stage], z: Tensor, x: Tensor, streams: RandomStreams) -> Tensor:
        inputs, drawn = [x], RandomStreams(streams.seed, streams.ids, HEAD)
        for stage in stages[:-1]:
            inputs.append(stage.draw(inputs[-1], drawn))
        for stage, undo, clean in reversed(list(zip(stages, inverses, inputs, strict=False))):
            z = undo(z, clean, streams) if undo else stage.inverse(z, clean)
        return z

    stages: list[Stage] = list(head.stages)  # type: ignore[arg-type]
    if x.device.type != "cpu":
        return back(stages, z, x, rng)
    clips = [torch.tensor([i]) for i in range(len(x))]
    return torch.cat([back([_of_clip(stage, i) for stage in stages], z[i], x[i], rng.select(i)) for i in clips])


def _of_clip(stage: Stage, index: Tensor) -> Stage:
    """The stage for one clip of a batch whose true lengths it may know."""
    shared = stage.valid is None or len(stage.valid) == 1
    return stage if shared else stage.with_valid(stage.valid[index])  # type: ignore[index]


def _undo(stage: torch.nn.Module, to_magnitude: ToMagnitude | None, to_signal: ToSignal | None) -> Undo | None:
    """What replaces the stage's own inverse, if anything does."""
    if to_magnitude and isinstance(stage, FilterBank):
        solve = to_magnitude(stage)
        return lambda z, clean, streams: solve(z)
    if to_signal and isinstance(stage, Transform):
        return lambda z, clean, streams: to_signal(stage, z, clean.shape[-1], streams)
    return None
