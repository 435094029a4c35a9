"""Inversion: a batch of log-mel spectrograms back to audio, against librosa.feature.inverse.mel_to_audio clip by
clip with the same transform and number of iterations."""

from __future__ import annotations

import librosa
import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import seconds
from src.random_streams import RandomStreams
from src.registry import FRONTENDS, INVERSIONS
from src.victims.chain import Chain

ITERATIONS = 32
PEER_CLIPS = 4
"""The peer takes about a second per clip."""


@torch.no_grad()
def run(clips: Tensor, sample_rate: int, repeats: int = 5) -> list[dict]:
    """One row per inversion. clips: [n, time]."""
    head = Chain(FRONTENDS["log_mel"](sample_rate=sample_rate, n_samples=clips.shape[1]))
    magnitude, _, log = head.stages
    z = head(clips)
    mel = log.inverse(z, z).numpy()[:PEER_CLIPS]

    def peer() -> Tensor:
        audio = [
            librosa.feature.inverse.mel_to_audio(
                target,
                sr=sample_rate,
                n_fft=magnitude.n_fft,
                win_length=magnitude.win_length,
                hop_length=magnitude.hop_length,
                n_iter=ITERATIONS,
                length=clips.shape[1],
            )
            for target in mel
        ]
        return torch.from_numpy(np.stack(audio)).float()

    def error(audio: Tensor) -> float:
        return float((head(audio) - z[: len(audio)]).abs().mean())

    np.random.seed(0)
    peer_error, peer_seconds = error(peer()), seconds(peer, repeats) / len(mel)
    rows = []
    for name in ("nnls", "griffin_lim"):

        def ours(name: str = name) -> Tensor:
            streams = RandomStreams(0, [str(i) for i in range(len(clips))], "inversion")
            return INVERSIONS[name](head, z, clips, rng=streams, iterations=ITERATIONS)

        ours_error, ours_seconds = error(ours()[: len(mel)]), seconds(ours, repeats) / len(clips)
        rows.append(
            {
                "benchmark": "inversion",
                "what": f"{name} against librosa.feature.inverse.mel_to_audio, {ITERATIONS} iterations",
                "ours": 1 / ours_seconds,
                "peer": 1 / peer_seconds,
                "unit": "clips/s",
                "ratio": peer_seconds / ours_seconds,
                "note": f"log-mel error {ours_error:.3f}, peer {peer_error:.3f}",
            }
        )
    return rows
