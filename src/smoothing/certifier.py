"""From a config section and a victim to certificates of clips, whatever is smoothed over."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from src.smoothing import semantic
from src.smoothing.bounds import round_down
from src.smoothing.noise import ShapedNoise, hearing, speech
from src.smoothing.settings import CertifySettings
from src.smoothing.smooth import Certificate, Smooth

UNITS = {"noise": "L2 norm", "gain": "dB of gain", "shift": "ms of circular shift"}


def spectrum(
    settings: CertifySettings, n_samples: int, sample_rate: int, training_clips: Callable[[], Tensor]
) -> ShapedNoise | None:
    """The noise's spectrum, None for white: from the ear or the training clips, never from a clip to certify."""
    if settings.noise == "white":
        return None
    amplitude = hearing(n_samples, sample_rate) if settings.noise == "hearing" else speech(training_clips())
    return ShapedNoise(amplitude, n_samples)


class Certifier:
    """Certifies waveforms.

    Args:
        head: from waveform [batch, time] to the smoothed representation.
        tail: from there to logits, in evaluation mode.
        settings: what is smoothed and how.
        sample_rate: Hz.
        shaped: spectrum of the noise, None for white.
    """

    def __init__(
        self,
        head: Callable[[Tensor], Tensor],
        tail: Callable[[Tensor], Tensor],
        settings: CertifySettings,
        sample_rate: int,
        shaped: ShapedNoise | None = None,
    ):
        self.head, self.tail, self.settings, self.sample_rate, self.shaped = head, tail, settings, sample_rate, shaped
        self.batch_size = settings.batch_size

    def smoothed(self, x: Tensor, sigma: float, n: int = 0) -> tuple[Smooth, Tensor]:
        """The smoothed classifier g and where the waveform x [time] lies in its space.

        Args:
            n: draws that estimate; 0 for those of the settings.
        """
        own = self.settings
        if own.kind == "noise":
            with torch.no_grad():
                model, z = self.tail, self.head(x[None])[0]
        else:
            z = x.new_zeros(1)
            if own.kind == "gain":
                model = semantic.along(self.tail, semantic.gain, x, 1.0)
            else:
                model = semantic.along(self.tail, semantic.shift, x, self.sample_rate / 1000)
        smooth = Smooth(
            model,
            sigma,
            n0=own.n0,
            n=n or own.n,
            alpha=own.alpha,
            mode=own.mode,
            radii=own.radii,
            batch_size=self.batch_size,
            seed=own.seed,
            noise_filter=self.shaped,
        )
        return smooth, z

    @torch.inference_mode()
    def __call__(self, x: Tensor, example: str, sigma: float) -> Certificate:
        """The certificate of one waveform [time]; its radius is an L2 norm at the stage (in the norm of the shaped
        noise: see noise.py), dB of gain or ms of shift."""
        own = self.settings
        smooth, z = self.smoothed(x, sigma)
        found = smooth.certify(z, example)
        self.batch_size = smooth.batch_size  # tuned once, on the first clip
        if own.kind == "gain" and found.radius > (limit := max(0.0, semantic.headroom(x))):
            return Certificate(found.label, round_down(limit), found.n_used)
        return found


def statements(settings: CertifySettings) -> list[str]:
    """What a certificate of this run says, in one line, and what limits the numbers."""
    change = {
        "white": f"additive change of the representation {settings.stage} whose L2 norm is",
        "speech": "additive change of the waveform whose norm weighted by the inverse spectrum of the noise is",
    }
    change["hearing"] = change["speech"]
    if settings.kind != "noise":
        change["white"] = f"change by {UNITS[settings.kind]}"
    source = settings.kind if settings.kind != "noise" else f"{settings.noise} noise"
    notes = [
        f"A certificate says: the majority vote of the model over Gaussian {source} of standard deviation sigma keeps "
        f"its label under every {change[settings.noise]} below the radius. It is wrong with probability at most "
        f"{settings.alpha:g} per clip (over the draws), floating-point error aside, and says nothing about the model "
        f"alone."
    ]
    if settings.mode == "sequential":
        notes.append("Draws stop once these radii are decided: at other radii, in ACR and in dB the results are low.")
    if settings.kind == "gain":
        notes.append("A gain is certified up to the clip's headroom, and not across rounding to 16 bits.")
    return notes
