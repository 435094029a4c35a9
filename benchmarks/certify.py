"""Certification against the loop of Cohen et al. (2019) and against the forward passes alone: the same model, clip and
number of draws, one thread."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.timing import in_turns
from src.registry import FRONTENDS
from src.smoothing import Smooth, tune
from src.victims.victim import Victim

N0, N, SIGMA = 96, 1008, 0.05


def cohen_counts(model: nn.Module, x: Tensor, n: int, batch_size: int, classes: int) -> np.ndarray:
    """Counts of predictions as in the published code: noise on a repeated batch, argmax, a Python loop over labels."""
    counts = np.zeros(classes, dtype=int)
    with torch.no_grad():
        while n > 0:
            size = min(batch_size, n)
            n -= size
            batch = x.repeat((size, *[1] * x.dim()))
            predictions = model(batch + torch.randn_like(batch) * SIGMA).argmax(1)
            for label in predictions.cpu().numpy():
                counts[label] += 1
    return counts


def bare(model: nn.Module, batch: Tensor, n: int) -> None:
    """n forward passes alone."""
    with torch.inference_mode():
        for start in range(0, n, len(batch)):
            model(batch[: n - start])


def reference(victim: Victim) -> Victim:
    """A plain CNN on the log-mel: three 3 x 3 convolutions of 32 channels with batch norm, at full resolution first.
    Its weights are random: they do not change the time."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 64))]
    for n_in in (1, 32, 32):
        layers += [nn.Conv2d(n_in, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, len(victim.classes))]
    shape = {"sample_rate": victim.sample_rate, "n_samples": victim.n_samples}
    stages = FRONTENDS["log_mel"](**shape, n_mels=64)
    return Victim(stages, nn.Sequential(*layers), classes=victim.classes, **shape).eval()


def run(victim: Victim, x: Tensor, repeats: int = 3) -> list[dict[str, Any]]:
    """Certify the clip x [time] of a victim, and of a plain CNN, at the waveform and at their features."""
    return [*compare("trained model", victim, x, repeats), *compare("3-convolution CNN", reference(victim), x, repeats)]


def compare(name: str, victim: Victim, x: Tensor, repeats: int) -> list[dict[str, Any]]:
    """The peer runs the victim as trained, ours its frozen copy; the bare passes are those of the frozen copy at its
    fastest batch size."""
    rows = []
    frozen, classes = victim.frozen(), len(victim.classes)
    for stage in ("waveform", victim.representations[-1]):
        head, tail = frozen.split(stage)
        _, original = victim.split(stage)
        with torch.no_grad():
            z = head(x[None])[0]
        with torch.inference_mode():
            batch_size = tune(tail, z + SIGMA * torch.randn(16, *z.shape))
            batch = z + SIGMA * torch.randn(batch_size, *z.shape)
        smooth = Smooth(tail, SIGMA, n0=N0, n=N, batch_size=batch_size)

        def theirs(original: nn.Module = original, z: Tensor = z) -> None:
            for n in (N0, N):
                cohen_counts(original, z, n, 400, classes)

        def ours(smooth: Smooth = smooth, z: Tensor = z) -> None:
            smooth.certify(z, "clip")

        def limit(tail: nn.Module = tail, batch: Tensor = batch) -> None:
            bare(tail, batch, N0 + N)

        # With one thread, CPU time hardly depends on other work of the machine.
        our_time, peer, floor = in_turns([ours, theirs, limit], repeats, time.process_time)
        task = f"{name}, {N0 + N} draws at the {stage}"
        common = {"benchmark": "certify", "ours": our_time, "unit": "CPU s"}
        rows += [
            {**common, "what": f"{task}, against Cohen's loop at batch 400", "peer": peer, "ratio": peer / our_time},
            {
                **common,
                "what": f"{task}, against bare passes at batch {batch_size}",
                "peer": floor,
                "ratio": floor / our_time,
            },
        ]
    order = ("benchmark", "what", "ours", "peer", "unit", "ratio")
    return [{key: row[key] for key in order} for row in rows]
