"""MP3 compression at a constant bit rate (MP3-C of the speaker-recognition study), by FFmpeg through PyAV."""

from __future__ import annotations

import io

import av
import numpy as np
import torch
from torch import Tensor

from src.registry import DEFENSES, Count
from src.victims.stage import Defense


@DEFENSES.register("mp3")
class Mp3(Defense):
    """Encode and decode each clip. The codec is deterministic and has no gradient.

    Args:
        bit_rate: bits per second.
    """

    bounds = (-1.0, 1.0)
    differentiable = False

    def __init__(self, *, sample_rate: int, bit_rate: Count = 24000):
        super().__init__("mp3")
        self.sample_rate, self.bit_rate = sample_rate, bit_rate
        with av.open(io.BytesIO(), "w", format="mp3") as container:
            rates = container.add_stream("libmp3lame").codec.audio_rates or ()
        if sample_rate not in rates:
            raise ValueError(f"mp3 has no sample rate {sample_rate} (choices: {', '.join(map(str, sorted(rates)))})")

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time] -> [batch, time]."""
        decoded = [self._round_trip(clip) for clip in x.detach().cpu().numpy()]
        return torch.from_numpy(np.stack(decoded)).to(x)

    def _round_trip(self, clip: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        with av.open(file, "w", format="mp3") as container:
            stream = container.add_stream("libmp3lame", rate=self.sample_rate, layout="mono")
            stream.bit_rate = self.bit_rate
            samples = np.clip(np.rint(clip * 32768), -32768, 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16p", layout="mono")
            frame.sample_rate = self.sample_rate
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
        file.seek(0)
        with av.open(file, "r") as container:
            pieces = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
        decoded = np.concatenate(pieces)[: len(clip)].astype(np.float32)
        return np.pad(decoded, (0, len(clip) - len(decoded))).clip(-1, 1)
