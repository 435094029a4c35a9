"""The config section of training: the keys of the keyword study, then further ones, which are off by default."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from src.registry import METHODS, Count, Fraction, Natural, NonNegative, Positive
from src.victims.stage import WAVEFORM

NO_EFFECT = ("log_interval", "n_workers", "use_cuda", "gradient_penalty", "noise_dir", "suffix")
"""Keys that do not change the weights; the weight of the penalty and the noise are recorded by their values."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How models are trained.

    Args:
        log_interval: batches between updates of the progress bar.
        scheduler_steps: epochs at which the step schedule multiplies the learning rate by lr_decay.
        epochs: passes over the training clips.
        use_cuda: train on the GPU where there is one.
        learning_rate: of the optimizer, before any decay.
        weight_decay: of the optimizer; adamw decouples it from the gradient.
        gradient_penalty: weight of the L1 norm of the gradient of the loss at `stage`; one model is trained per value.
        lr_decay: factor of the step schedule.
        batch_size: clips per step.
        n_workers: accepted for old files, without effect: clips are read from a memory map, which needs no workers.
        optimizer: adam, adamw or sgd (Nesterov momentum).
        momentum: of sgd.
        beta2: second moment decay of adam and adamw.
        decay_all: weight decay of biases and normalization layers too, not only of convolutions and linear layers.
        gradient_clip: largest L2 norm of the parameters' gradient; 0 does not clip.
        schedule: step, or cosine from learning_rate to 0.
        warmup_epochs: epochs over which the rate rises linearly from 0.
        label_smoothing: probability distributed over all classes.
        time_shift: largest shift of a clip in either direction, ms.
        speed: largest change of speed, with pitch, as a factor exp(+-speed).
        level: largest random gain in either direction, dB.
        equalizer: standard deviation of a random smooth filter, dB.
        reverb: probability of synthetic reverberation.
        noise: probability of background noise.
        noise_snr: lowest and highest signal-to-noise ratio of background noise, dB.
        noise_dir: folder of noise recordings; empty for white noise only.
        vocal_tract: features are stretched along frequency by a factor of up to exp(vocal_tract); for mel bands.
        frequency_masks: SpecAugment bands of frequencies masked per clip.
        frequency_mask_size: largest share of the frequencies in a band.
        time_masks: SpecAugment bands of frames masked per clip.
        time_mask_size: largest share of the frames in a band.
        mixup: alpha of the Beta distribution by which features and labels of two clips are mixed; 0 does not mix.
        ema: decay per step of the moving average of the weights that is validated and saved; 0 for no average.
        keep: weights that are saved: of the best epoch by validation accuracy (then lower loss), or of the last one.
        method: training method.
        stage: representation at which the method works (penalty, noise, attack); auto for the input of the classifier.
        mixed_precision: bfloat16 in the classifier, on CUDA only.
        seed: of the initial weights, the order of clips, dropout and augmentation.
        suffix: text behind the names of the models, so that trainings of one architecture with other settings can stand
            side by side: cnn becomes cnn_SUFFIX.
    """

    log_interval: Count = 100
    scheduler_steps: tuple[Count, ...] = (20, 40)
    epochs: Count = 30
    use_cuda: bool = True
    learning_rate: Positive = 0.001
    weight_decay: NonNegative = 0.0
    gradient_penalty: tuple[NonNegative, ...] = (0.0,)
    lr_decay: NonNegative = 0.0001
    batch_size: Count = 64
    n_workers: Natural = 2
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: Fraction = 0.9
    beta2: Fraction = 0.999
    decay_all: bool = True
    gradient_clip: NonNegative = 0.0
    schedule: Literal["step", "cosine"] = "step"
    warmup_epochs: NonNegative = 0.0
    label_smoothing: Fraction = 0.0
    time_shift: NonNegative = 0.0
    speed: Fraction = 0.0
    level: NonNegative = 0.0
    equalizer: NonNegative = 0.0
    reverb: Fraction = 0.0
    noise: Fraction = 0.0
    noise_snr: tuple[float, float] = (5.0, 30.0)
    noise_dir: str = ""
    vocal_tract: Fraction = 0.0
    frequency_masks: Natural = 0
    frequency_mask_size: Fraction = 0.15
    time_masks: Natural = 0
    time_mask_size: Fraction = 0.12
    mixup: NonNegative = 0.0
    ema: Fraction = 0.0
    keep: Literal["best", "last"] = "best"
    method: METHODS.Name = "standard"  # type: ignore[name-defined]
    stage: str = "auto"
    mixed_precision: bool = False
    seed: Natural = 0
    suffix: str = ""

    def __post_init__(self) -> None:
        if not self.gradient_penalty:
            raise ValueError("gradient_penalty needs at least one value (0 for none)")
        if len(set(self.gradient_penalty)) < len(self.gradient_penalty):
            raise ValueError("gradient_penalty names a value twice")
        if any(self.gradient_penalty) and self.method != "standard":
            raise ValueError(f"gradient_penalty goes with method = standard, not {self.method}")
        if self.method == "gradient_penalty":
            raise ValueError(
                "method = gradient_penalty is selected by the weights in gradient_penalty; do not set method"
            )
        if self.method == "distillation" and self.mixup:
            raise ValueError(f"method = distillation goes with mixup = 0, not {self.mixup:g}: it learns whole clips")
        if not re.fullmatch(r"[\w.-]*", self.suffix):
            raise ValueError(f"suffix = {self.suffix}: it becomes part of a file name: letters, digits and . _ - only")
        if self.noise_snr[0] > self.noise_snr[1]:
            raise ValueError(f"noise_snr: the lowest ({self.noise_snr[0]:g}) is above the highest")
        for key in ("beta2", "ema", "momentum"):
            if getattr(self, key) == 1:
                raise ValueError(f"{key} must be below 1")

    def rate(self, epoch: float) -> float:
        """The learning rate after `epoch` epochs, which may be a fraction.

        >>> TrainingSettings(learning_rate=1.0, lr_decay=0.5, scheduler_steps=(2, 3)).rate(2.9)
        0.5
        """
        if epoch < self.warmup_epochs:
            return self.learning_rate * epoch / self.warmup_epochs
        if self.schedule == "step":
            return self.learning_rate * self.lr_decay ** sum(epoch >= step for step in self.scheduler_steps)
        progress = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-9)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def identity(self) -> dict[str, Any]:
        """The keys that change the weights, as plain values, except those at their default: so new keys do not change
        the identity of old models."""
        defaults = asdict(TrainingSettings())
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if key not in NO_EFFECT and value != defaults[key]
        }


def model_name(
    model: str,
    gradient_penalty: float,
    method: str = "standard",
    defenses: Sequence[Mapping[str, Any]] = (),
    teacher: str = "",
    suffix: str = "",
) -> str:
    """The name under which a model is saved.

    Args:
        defenses: name and place of each, as `checkpoint.defend` takes them.
        teacher: name of the model that it learns from.
        suffix: of the settings.

    >>> model_name("cnn", 0.0), model_name("cnn", 1e-6)
    ('cnn', 'cnn_penalty_1e-06')
    >>> model_name("cnn", 0.0, "pgd", [{"name": "mp3"}, {"name": "median", "at": "log_mel"}])
    'cnn_pgd_mp3_median_at_log_mel'
    >>> model_name("cnn", 0.0, "distillation", teacher="resnet", suffix="hot")
    'cnn_distillation_resnet_hot'
    """
    parts = [model]
    if method != "standard":
        parts += [method, teacher] if teacher else [method]
    elif gradient_penalty:
        parts.append(f"penalty_{gradient_penalty:g}")
    for defense in defenses:
        place = defense.get("at", WAVEFORM)
        parts.append(defense["name"] if place == WAVEFORM else f"{defense['name']}_at_{place}")
    return "_".join([*parts, suffix] if suffix else parts)
