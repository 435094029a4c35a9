"""Certification against a loop in the manner of Cohen et al. (2019) and against the bare forward passes: the same
model, clip and number of draws, one thread."""

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


def counts_in_their_manner(model: nn.Module, x: Tensor, n: int, batch_size: int, classes: int) -> np.ndarray:
    """Noise for a repeated batch, argmax, and a loop on the host over the predictions."""
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
    """n forward passes and nothing else."""
    with torch.inference_mode():
        for start in range(0, n, len(batch)):
            model(batch[: n - start])


def reference(victim: Victim) -> Victim:
    """A plain CNN on the log-mel: three 3 x 3 convolutions of 32 channels with batch norm, at full resolution first.
    Its weights are random, which costs the same time."""
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
    """The peer runs the victim as it was trained, we its frozen copy; the bare passes are those of the frozen copy at
    the batch size where it is fastest."""
    rows = []
    frozen, classes = victim.frozen(), len(victim.classes)
    for stage in ("waveform", victim.representations[-1]):
        head, tail = frozen.split(stage)
        _, original = victim.split(stage)
        with torch.no_grad():
            z = head(x[None])[0]
        with torch.inference_mode():
            best = tune(tail, z + SIGMA * torch.randn(16, *z.shape))
            batch = z + SIGMA * torch.randn(best, *z.shape)
        smooth = Smooth(tail, SIGMA, n0=N0, n=N, batch_size=best)

        def theirs(original: nn.Module = original, z: Tensor = z) -> None:
            for n in (N0, N):
                counts_in_their_manner(original, z, n, 400, classes)

        def ours(smooth: Smooth = smooth, z: Tensor = z) -> None:
            smooth.certify(z, "clip")

        def limit(tail: nn.Module = tail, batch: Tensor = batch) -> None:
            bare(tail, batch, N0 + N)

        # One thread: by CPU time other work on the machine hardly counts.
        mine, peer, floor = in_turns([ours, theirs, limit], repeats, time.process_time)
        what = f"{name}, {N0 + N} draws at the {stage}"
        common = {"benchmark": "certify", "ours": mine, "unit": "CPU s"}
        rows += [
            {**common, "what": f"{what}, against Cohen's loop at batch 400", "peer": peer, "ratio": peer / mine},
            {**common, "what": f"{what}, against bare passes at batch {best}", "peer": floor, "ratio": floor / mine},
        ]
    order = ("benchmark", "what", "ours", "peer", "unit", "ratio")
    return [{key: row[key] for key in order} for row in rows]
