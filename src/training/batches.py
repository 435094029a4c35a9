"""From stored clips to the inputs of a training step: representation of a batch, augmentation, mixing.

Order and augmentation come from generators seeded by (seed, epoch), so an epoch repeats exactly after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from src.datasets.store import Clips
from src.random_streams import derive_seed
from src.training import augment
from src.training.settings import TrainingSettings
from src.victims.victim import Chain, Stage

CACHE_BYTES = 2**30
"""Representations of a split are kept in memory up to this size."""
CHUNK = 64
"""Clips whose representation is computed at a time when it is kept; fixed, so that it repeats to the last bit."""


@runtime_checkable
class Fitted(Protocol):
    """A stage that takes statistics from training features before training begins."""

    def fit(self, features: Tensor) -> None:
        """Store the statistics of features [n, freq, time]."""


class Source:
    """The representation of clips: computed once and kept where it cannot change and fits, else each time.

    Args:
        clips: of one split.
        head: from waveform to the representation.
        device: where it is computed.
        changing: the waveform is augmented, so nothing can be kept.
        title: of the progress bar; None shows none.
    """

    def __init__(self, clips: Clips, head: Chain, device: torch.device, changing: bool, title: str | None = None):
        self.clips, self.head, self.device = clips, head, device
        self.trained = any(parameter.requires_grad for parameter in head.parameters())
        randomized = any(stage.randomized for stage in head.stages)
        self.kept: Tensor | None = None
        if not (changing or self.trained or randomized):
            one = self._represent(clips.waveforms(slice(0, 1)).to(device))
            if one.nbytes * len(clips) <= CACHE_BYTES:
                self.kept = one.new_empty(len(clips), *one.shape[1:])
                starts = range(0, len(clips), CHUNK)
                for start in tqdm(starts, title, unit="chunk", leave=False, disable=title is None):
                    part = slice(start, start + CHUNK)
                    self.kept[part] = self._represent(clips.waveforms(part).to(device))

    def _represent(self, waveform: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            return self.head(waveform)

    def __call__(self, index: Tensor, change: Augmentation | None = None) -> Tensor:
        """The representation of the clips at `index`, through the augmentation of their waveform."""
        if self.kept is not None:
            return self.kept[index.to(self.kept.device)]
        x = self.clips.waveforms(index).to(self.device)
        return self._represent(x if change is None else change.waveform(x))


class Augmentation:
    """The augmentations of one epoch.

    Args:
        training: which, and how strong.
        epoch: counted from 0.
        noise: recordings [k, samples], or None.
    """

    def __init__(
        self, training: TrainingSettings, epoch: int, sample_rate: int, noise: Tensor | None, device: torch.device | str
    ):
        self.training, self.sample_rate, self.noise = training, sample_rate, noise
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(derive_seed(training.seed, epoch, "augmentation"))

    def waveform(self, x: Tensor) -> Tensor:
        """[batch, time] -> [batch, time]."""
        t, draw = self.training, self.generator
        x = augment.warp(x, draw, shift=t.time_shift / 1000 * self.sample_rate, speed=t.speed)
        x = augment.reverberate(x, draw, probability=t.reverb, sample_rate=self.sample_rate)
        x = augment.equalize(x, draw, deviation=t.equalizer)
        x = augment.add_noise(x, draw, noise=self.noise, probability=t.noise, snr=t.noise_snr)
        return augment.level(x, draw, limit=t.level)

    def features(self, x: Tensor) -> Tensor:
        """[batch, freq, time] -> [batch, freq, time]."""
        t = self.training
        x = augment.stretch_frequency(x, self.generator, limit=t.vocal_tract)
        return augment.mask_spectrogram(
            x,
            self.generator,
            frequency_masks=t.frequency_masks,
            frequency_size=t.frequency_mask_size,
            time_masks=t.time_masks,
            time_size=t.time_mask_size,
        )

    def mix(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return augment.mixup(x, y, self.generator, alpha=self.training.mixup)


def changes_waveform(training: TrainingSettings) -> bool:
    """Whether any augmentation of the waveform is on."""
    t = training
    return any((t.time_shift, t.speed, t.reverb, t.equalizer, t.noise, t.level))


def batches(
    source: Source, training: TrainingSettings, epoch: int, change: Augmentation
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in a seeded order: (representation [batch, ...], label probabilities [batch, classes])."""
    order = torch.Generator()
    order.manual_seed(derive_seed(training.seed, epoch, "order"))
    for index in torch.randperm(len(source.clips), generator=order).split(training.batch_size):  # type: ignore[no-untyped-call]
        labels = F.one_hot(source.clips.labels[index], len(source.clips.classes)).float().to(source.device)
        yield source(index, change), labels


def fit_stages(stages: list[Stage], clips: Clips, device: torch.device, seed: int, most: int = 4096) -> None:
    """Give the stages that learn statistics (those with a `fit` method) the training features before them, of all
    clips or of a seeded draw of `most`."""
    draw = torch.Generator()
    draw.manual_seed(derive_seed(seed, "statistics"))
    index = torch.randperm(len(clips), generator=draw)[:most].sort().values
    for place, stage in enumerate(stages):
        if isinstance(stage, Fitted):
            head = Chain(stages[:place])
            with torch.no_grad():
                parts = index.split(CHUNK)  # type: ignore[no-untyped-call]
                stage.fit(torch.cat([head(clips.waveforms(part).to(device)) for part in parts]))
