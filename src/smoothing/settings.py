"""The config section of certification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

from src.registry import DEFENSES, Count, Listed, Natural, NonNegative, Positive

PRESETS = {"paper": (500, 10_000, 0.001), "cohen": (100, 100_000, 0.001)}
"""(n0, n, alpha) of O'Reilly's study and of Cohen, Rosenfeld and Kolter (2019)."""

ATTACKING = ("attack_clips", "attack_steps", "attack_draws", "attack_n", "baselines")


@dataclass(frozen=True, kw_only=True)
class CertifySettings:
    """Certification by randomized smoothing.

    Args:
        stage: representation where the noise enters: waveform, magnitude, mel, log_mel ...
        sigma: standard deviations of the noise, in units of that representation (dB for gain, ms for shift).
        kind: noise at the stage (an L2 radius there), or gain in dB or circular shift in ms of the waveform.
        noise: spectrum of the noise at the waveform: white, speech (mean spectrum of the training clips) or hearing
            (threshold in quiet).
        n0: noise draws that select the class.
        n: noise draws that estimate its probability; the maximum in mode = sequential.
        alpha: probability that the certificate of a clip is wrong.
        preset: replaces n0, n and alpha: paper (500, 10000, 0.001), cohen (100, 100000, 0.001) or none.
        mode: fixed (always n draws, for whole curves) or sequential (stop once the radii are decided).
        radii: columns of the table, and what mode = sequential decides.
        batch_size: noise draws per forward pass, a multiple of 16; 0 finds the fastest by timing. Results do not
            depend on it.
        seed: of the noise.
        attack_clips: clips on which the smoothed classifier is attacked at every radius; 0 attacks one clip per sigma,
            inside its certified radius only, as a check.
        attack_steps: PGD steps per attack.
        attack_draws: noise draws per step; the attack maximizes the log of their mean probability.
        attack_n: noise draws of the vote that judges an attack.
        baselines: defenses; the model without a defense and behind each one is attacked at the same radii, for
            comparison (white noise at the waveform only). Empty for no comparison.
    """

    stage: str = "waveform"
    sigma: Listed[Positive] = (0.01, 0.05, 0.1)
    kind: Literal["noise", "gain", "shift"] = "noise"
    noise: Literal["white", "speech", "hearing"] = "white"
    n0: Count = 100
    n: Count = 1000
    alpha: Annotated[float, Gt(0), Lt(0.5)] = 0.001
    preset: Literal["none", "paper", "cohen"] = "none"
    mode: Literal["fixed", "sequential"] = "fixed"
    radii: Listed[NonNegative] = (0.01, 0.05, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    batch_size: Natural = 0
    seed: Natural = 0
    attack_clips: Natural = 0
    attack_steps: Count = 20
    attack_draws: Annotated[int, Ge(64)] = 64
    attack_n: Annotated[int, Ge(100)] = 1000
    baselines: tuple[DEFENSES.Name, ...] = ("quantize", "noise_at_snr", "median", "lowpass", "mp3", "pagn")  # type: ignore[name-defined]

    def __post_init__(self) -> None:
        if self.preset in PRESETS:
            for name, value in zip(("n0", "n", "alpha"), PRESETS[self.preset], strict=True):
                object.__setattr__(self, name, value)
        if len(set(self.baselines)) < len(self.baselines):
            raise ValueError("baselines names a defense twice")
        if self.batch_size % 16:
            raise ValueError(f"batch_size = {self.batch_size}: must be 0 or a multiple of 16")
        if self.stage != "waveform" and (self.kind != "noise" or self.noise != "white"):
            raise ValueError(f"kind = {self.kind} with noise = {self.noise} needs stage = waveform, not {self.stage}")
        if self.kind != "noise" and self.noise != "white":
            raise ValueError(f"noise = {self.noise} needs kind = noise, not {self.kind}")

    @property
    def space(self) -> str:
        """The smoothed space, as named in files and titles."""
        if self.kind != "noise":
            return self.kind
        return self.stage if self.noise == "white" else f"{self.stage}.{self.noise}"

    def identity(self) -> dict[str, Any]:
        """The settings that a row depends on, except the sigmas."""
        excluded = {"sigma", "preset", "batch_size", *ATTACKING} | ({"radii"} if self.mode == "fixed" else set())
        return {key: value for key, value in vars(self).items() if key not in excluded}
