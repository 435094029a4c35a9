"""Certificates of clips for a model and the settings [CERTIFY]: noise at any representation, gain or time shift."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from src.smoothing import semantic
from src.smoothing.bounds import round_down
from src.smoothing.noise import ShapedNoise, hearing, speech
from src.smoothing.settings import CertifySettings
from src.smoothing.smooth import Certificate, Smooth
from src.victims.chain import Chain, head_with_lengths, with_lengths

UNITS = {"noise": "L2 norm", "gain": "dB of gain", "shift": "ms of circular shift"}


def spectrum(
    settings: CertifySettings, n_samples: int, sample_rate: int, training_clips: Callable[[], Tensor]
) -> ShapedNoise | None:
    """The spectrum of the noise, None for white: from the threshold in quiet or from training clips, never from a clip
    that is certified."""
    if settings.noise == "white":
        return None
    amplitude = hearing(n_samples, sample_rate) if settings.noise == "hearing" else speech(training_clips())
    return ShapedNoise(amplitude, n_samples)


def check_certifiable(chain: Chain) -> None:
    """Refuse a chain that draws random numbers of its own.

    Raises:
        ValueError: names the stage.
    """
    for stage in chain.stages:
        if stage.randomized:
            raise ValueError(
                f"the model draws fresh noise in every pass ('{stage.name}'), so that no certificate is sound: the "
                "theorem counts votes of one fixed function, under noise that does not depend on the clip; leave that "
                "defense out and smooth with [CERTIFY] sigma instead"
            )


class Certifier:
    """Certifies waveforms.

    Args:
        head: from waveform [batch, time] to the smoothed representation.
        tail: from there to logits, in evaluation mode.
        settings: the section [CERTIFY].
        sample_rate: Hz.
        shaped: spectrum of the noise, None for white.

    Raises:
        ValueError: a stage of the chain is randomized.
    """

    def __init__(
        self,
        head: Chain,
        tail: Chain,
        settings: CertifySettings,
        sample_rate: int,
        shaped: ShapedNoise | None = None,
    ):
        for part in (head, tail):
            if isinstance(part, Chain):
                check_certifiable(part)
        self.head, self.tail, self.settings, self.sample_rate, self.shaped = head, tail, settings, sample_rate, shaped
        self.batch_size = settings.batch_size

    def smoothed(self, x: Tensor, sigma: float, n: int = 0, valid: Tensor | None = None) -> tuple[Smooth, Tensor]:
        """The smoothed classifier g and its input for the waveform x [time].

        Args:
            valid: bool [time], the samples that are not padding; they belong to the classifier, which is certified for
                this clip length. A circular shift moves them: then the whole clip counts.
            n: noise draws that estimate; 0 for the n of the settings.
        """
        settings = self.settings
        tail = self.tail
        if valid is not None and settings.kind != "shift":
            tail = with_lengths(tail, valid[None], self.head)
        model: Callable[[Tensor], Tensor] = tail
        if settings.kind == "noise":
            with torch.no_grad():
                head = self.head if valid is None else head_with_lengths(self.head, tail, valid[None])
                z = head(x[None])[0]
        else:
            z = x.new_zeros(1)
            if settings.kind == "gain":
                model = semantic.along(tail, semantic.gain, x, 1.0)
            else:
                model = semantic.along(tail, semantic.shift, x, self.sample_rate / 1000)
        smooth = Smooth(
            model,
            sigma,
            n0=settings.n0,
            n=n or settings.n,
            alpha=settings.alpha,
            mode=settings.mode,
            radii=settings.radii,
            batch_size=self.batch_size,
            seed=settings.seed,
            noise_filter=self.shaped,
        )
        self.batch_size = smooth.tuned_batch_size(z)  # timed for the first clip, passed on to all others
        return smooth, z

    @torch.inference_mode()
    def __call__(self, x: Tensor, example: str, sigma: float, valid: Tensor | None = None) -> Certificate:
        """The certificate of one waveform [time]; its radius is an L2 norm at the stage (in the norm of the shaped
        noise: see noise.py), dB of gain or ms of shift."""
        smooth, z = self.smoothed(x, sigma, valid=valid)
        certificate = smooth.certify(z, example)
        if self.settings.kind == "gain" and certificate.radius > (limit := max(0.0, semantic.headroom(x))):
            return replace(certificate, radius=round_down(limit))
        return certificate


def certificate_notes(settings: CertifySettings) -> list[str]:
    """The notes of a run: what a certificate says, in one line, and the limits of the numbers."""
    changes = {
        "white": f"additive change of the representation {settings.stage} whose L2 norm is",
        "speech": "additive change of the waveform whose norm weighted by the inverse spectrum of the noise is",
    }
    changes["hearing"] = changes["speech"]
    if settings.kind != "noise":
        changes["white"] = f"change by {UNITS[settings.kind]}"
    source = settings.kind if settings.kind != "noise" else f"{settings.noise} noise"
    notes = [
        f"A certificate says: the majority vote of the model over Gaussian {source} of standard deviation sigma keeps "
        f"its label under every {changes[settings.noise]} below the radius. It is wrong with probability at most "
        f"{settings.alpha:g} per clip (over the draws), floating-point error aside, and says nothing about the model "
        f"alone."
    ]
    if settings.mode == "sequential":
        notes.append(
            "Sampling stops once these radii are decided: results at other radii, ACR and dB are underestimates."
        )
    if settings.kind == "gain":
        notes.append("A gain is certified up to the headroom of the clip, and without rounding to 16 bits.")
    return notes
