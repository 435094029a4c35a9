"""Defenses: the transformations of the waveform against scipy clip by clip, codecs in threads against one clip after
the other, FeCo against scikit-learn, and what BPDA and EOT add to an attack."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage, signal
from sklearn.cluster import KMeans
from torch import Tensor

from benchmarks.timing import in_turns
from src.defenses import clustering, codec
from src.defenses.codec import Codec, MissingLibraryError
from src.random_streams import RandomStreams
from src.registry import ATTACKS, DEFENSES, FRONTENDS
from src.threat import ThreatModel
from src.victims.adaptive import adaptive
from src.victims.chain import Chain
from src.victims.victim import Victim

CODECS = ("mp3", "mp3_vbr", "aac", "aac_vbr", "opus", "speex", "amr")
STEPS, DRAWS = 10, 10


def row(what: str, ours: float, peer: float, unit: str, note: str = "") -> dict[str, Any]:
    return {
        "benchmark": "transformations",
        "what": what,
        "ours": ours,
        "peer": peer,
        "unit": unit,
        "ratio": peer / ours,
        "note": note,
    }


def peers(sample_rate: int) -> dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]]:
    """name -> (what a person would write for one clip, that)."""
    sections = {name: DEFENSES[name](sample_rate=sample_rate).sections for name in ("lowpass", "bandpass")}
    rng = np.random.default_rng(0)
    return {
        "quantize": ("numpy", lambda x: np.round(x * 256) / 256),
        "noise_at_snr": (
            "numpy",
            lambda x: x + rng.standard_normal(x.shape, np.float32) * 10 ** (-16 / 20) * np.sqrt(np.mean(x**2)),
        ),
        "average": ("scipy.ndimage.uniform_filter1d", lambda x: ndimage.uniform_filter1d(x, 17, mode="constant")),
        "median": ("scipy.ndimage.median_filter", lambda x: ndimage.median_filter(x, 7, mode="constant")),
        "downsample": (
            "scipy.signal.resample_poly",
            lambda x: signal.resample_poly(signal.resample_poly(x, 9, 20), 20, 9),
        ),
        "lowpass": ("scipy.signal.sosfilt", lambda x: signal.sosfilt(sections["lowpass"], x)),
        "bandpass": ("scipy.signal.sosfilt", lambda x: signal.sosfilt(sections["bandpass"], x)),
    }


@torch.no_grad()
def filters(clips: Tensor, sample_rate: int, repeats: int) -> list[dict[str, Any]]:
    """Processor seconds per 1000 clips, one thread."""
    rows = []
    for name, (library, function) in peers(sample_rate).items():
        stage = DEFENSES[name](sample_rate=sample_rate)
        works = [lambda stage=stage: stage(clips), lambda function=function: [function(x) for x in clips.numpy()]]
        ours, peer = (1000 * s / len(clips) for s in in_turns(works, repeats, time.process_time))
        rows.append(row(f"{name} against {library} clip by clip", ours, peer, "s / 1000 clips"))
    return rows


def codecs(clips: Tensor, sample_rate: int, repeats: int) -> list[dict[str, Any]]:
    """Wall seconds per 1000 clips in the pool of threads, against one clip after the other."""
    rows = []
    samples = codec.to_samples(clips)
    for name in CODECS:
        try:
            stage: Codec = DEFENSES[name](sample_rate=sample_rate)
        except MissingLibraryError as error:
            print(f"left out: {error}")
            continue
        works = [lambda stage=stage: stage(clips), lambda stage=stage: [stage.round_trip(x) for x in samples]]
        ours, peer = (1000 * s / len(clips) for s in in_turns(works, repeats))
        note = f"{codec.processors()} processors"
        rows.append(row(f"{name} in threads against one clip after the other", ours, peer, "s / 1000 clips", note))
    return rows


@torch.no_grad()
def feco(clips: Tensor, sample_rate: int, repeats: int, seconds: Sequence[int] = (1, 5)) -> list[dict[str, Any]]:
    """k-means of the log-mel frames of clips of these lengths, processor time of one thread."""
    rows = []
    for length in seconds:
        x = clips[: len(clips) // length * length].reshape(-1, length * clips.shape[1])
        z = Chain(FRONTENDS["log_mel"](sample_rate=sample_rate, n_samples=x.shape[1]))(x)
        frames, stage = z.transpose(1, 2).contiguous(), DEFENSES["feco"](sample_rate=sample_rate)
        k, ids = stage.clusters(z.shape[2]), [str(i) for i in range(len(z))]

        def ours(stage: Any = stage, z: Tensor = z, ids: list[str] = ids) -> Tensor:
            return stage.draw(z, RandomStreams(0, ids, "feco"))

        def peer(frames: Tensor = frames, k: int = k) -> list[KMeans]:
            return [KMeans(k, n_init=1, random_state=i).fit(x) for i, x in enumerate(frames.numpy())]

        numbers = RandomStreams(0, ids, "feco").uniform(torch.empty(len(z), dtype=torch.float64))
        labels = stage._labels(frames, torch.ones(frames.shape[:2], dtype=torch.bool), numbers)
        errors = [float(clustering.squared_error(frames, labels).mean()), np.mean([model.inertia_ for model in peer()])]
        what = f"feco against scikit-learn's KMeans clip by clip, {z.shape[2]} frames to {k}"
        times = (1000 * s / len(z) for s in in_turns([ours, peer], repeats, time.process_time))
        note = f"squared error {errors[0]:.0f}, peer {errors[1]:.0f}"
        rows.append(row(what, *times, "s / 1000 clips", note))
    return rows


def attacks(victim: Victim, clips: Tensor, repeats: int) -> list[dict[str, Any]]:
    """PGD through each defense as an adaptive attacker runs it, against PGD on the model alone: wall time."""
    model, ids = victim.frozen(), [str(i) for i in range(len(clips))]
    with torch.no_grad():
        y = model(clips).argmax(1)

    def pgd(chain: Chain) -> Callable[[], Tensor]:
        def work() -> Tensor:
            attacked = adaptive(chain, rng=RandomStreams(0, ids, "eot"), draws=DRAWS)
            threat, rng = ThreatModel("linf", 1e-4, (-1.0, 1.0)), RandomStreams(0, ids, "pgd")
            options = {"steps": STEPS, "early_exit": False}
            return ATTACKS["pgd"](attacked, clips, y, threat, rng=rng, targeted=False, **options)

        return work

    rows = []
    for name, how in (
        ("bandpass", "exact gradient"),
        ("quantize", "BPDA, identity"),
        ("speex", "BPDA, STFT gain"),
        ("mp3", "BPDA, STFT gain"),
        ("noise_at_snr", f"EOT, {DRAWS} draws"),
    ):
        try:
            defended = victim.defended([DEFENSES[name](sample_rate=victim.sample_rate)]).frozen()
        except MissingLibraryError as error:
            print(f"left out: {error}")
            continue
        ours, plain = (1000 * s / len(clips) for s in in_turns([pgd(defended), pgd(model)], repeats))
        what = f"PGD-{STEPS} through {name} ({how}) against PGD-{STEPS} on the model alone"
        rows.append(row(what, ours, plain, "s / 1000 clips", f"{ours / plain:.1f} times the cost"))
    return rows


def run(victim: Victim, clips: Tensor, repeats: int = 5) -> list[dict[str, Any]]:
    """One row per comparison. clips: [n, time]."""
    rate = victim.sample_rate
    return [
        *filters(clips, rate, repeats),
        *codecs(clips, rate, repeats),
        *feco(clips, rate, repeats),
        *attacks(victim, clips[:16], repeats),
    ]
