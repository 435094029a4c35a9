"""Mel extraction and inversion (Hussain et al. 2021, "WaveGuard"): a mel spectrogram holds what is heard of speech, and
what it does not hold is lost."""

from __future__ import annotations

import torch
from torch import Tensor

from src.inversion.griffin_lim import griffin_lim
from src.random_streams import RandomStreams
from src.registry import DEFENSES, Count, Natural
from src.stages.magnitude import Magnitude
from src.stages.mel import Mel
from src.victims.chain import Chain
from src.victims.stage import Defense

TINY_POWER = 1e-8
"""Below it the root of a power has no useful slope."""


@DEFENSES.register("mel_inversion")
class MelInversion(Defense):
    """Waveform to mel spectrogram and back by Griffin-Lim, from a random phase.

    Attacks get the gradient of the mel spectrogram's magnitudes with the phase that Griffin-Lim has found.

    Args:
        n_fft: DFT and window length, samples.
        hop_length: samples between frames.
        n_mels: number of mel bands.
        iterations: of Griffin-Lim.
    """

    bounds = (-1.0, 1.0)
    differentiable = False
    randomized = True

    def __init__(
        self,
        *,
        sample_rate: int,
        n_fft: Count = 1024,
        hop_length: Count = 256,
        n_mels: Count = 80,
        iterations: Natural = 32,
    ):
        super().__init__("mel_inversion")
        self.magnitude = Magnitude(n_fft, n_fft, hop_length)
        self.mel = Mel(sample_rate, n_fft, n_mels, 0.0, 0.0, False, 2.0)
        self.iterations = iterations

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time] -> [batch, time], phases from torch's global stream."""
        seed = int(torch.randint(2**62, (1,)))
        return self.draw(x, RandomStreams(seed, [str(i) for i in range(len(x))], self.name, x.device))

    def draw(self, x: Tensor, rng: RandomStreams) -> Tensor:
        """The same with phases from the examples' own streams."""
        if x.numel() == 0:
            return x
        head = Chain([self.magnitude, self.mel])
        with torch.no_grad():
            return griffin_lim(head, head(x), x, rng=rng, iterations=self.iterations).clamp(-1, 1)

    def substitute(self, x: Tensor, value: Tensor) -> Tensor:
        """The magnitudes that the mel spectrogram of x leaves, with the phase of `value`."""
        power = (torch.linalg.pinv(self.mel.filters) @ self.mel(self.magnitude(x))).clamp_min(TINY_POWER)
        spectrum = self.magnitude.analyze(value)
        phase = torch.where(spectrum == 0, torch.ones_like(spectrum), spectrum.sgn())
        return self.magnitude.synthesize(power.sqrt().transpose(1, 2) * phase, x.shape[-1])
