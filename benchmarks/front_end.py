"""Front end: clips per second from waveforms to features, as one batch, against librosa clip by clip."""

from __future__ import annotations

import librosa
import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import in_turns
from src.registry import FRONTENDS
from src.victims.chain import Chain


@torch.no_grad()
def run(clips: Tensor, sample_rate: int, repeats: int = 5) -> list[dict]:
    """One row per front end. clips: [n, time]."""
    rows = []
    for name in ("log_mel", "linear_mel"):
        stages = FRONTENDS[name](sample_rate=sample_rate, n_samples=clips.shape[1])
        chain = Chain(stages)
        mel = next(i for i, stage in enumerate(chain.stages) if stage.name == "mel")
        magnitude = chain.stages[mel - 1]
        padded = stages[0](clips).numpy() if name == "linear_mel" else clips.numpy()
        settings = {
            "sr": sample_rate,
            "n_fft": magnitude.n_fft,
            "win_length": magnitude.win_length,
            "hop_length": magnitude.hop_length,
            "n_mels": len(chain.stages[mel].filters),
        }

        def ours(chain: Chain = chain) -> Tensor:
            return chain(clips)

        def peer(padded: np.ndarray = padded, settings: dict = settings) -> list[np.ndarray]:
            return [librosa.feature.melspectrogram(y=clip, **settings) for clip in padded]

        ours_mel = Chain(list(chain.stages)[: mel + 1])(clips).numpy()
        peer_mel = np.stack(peer())
        difference = np.abs(ours_mel - peer_mel).max() / peer_mel.max()
        rate_ours, rate_peer = (len(clips) / taken for taken in in_turns([ours, peer], repeats))
        rows.append(
            {
                "benchmark": "front end",
                "what": f"{name} against librosa.feature.melspectrogram",
                "ours": rate_ours,
                "peer": rate_peer,
                "unit": "clips/s",
                "ratio": rate_ours / rate_peer,
                "note": f"largest relative difference of the mel values {difference:.1e}",
            }
        )
    return rows
