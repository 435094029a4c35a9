"""Batches of a training: representations of the stored clips, augmentation and mixup.

Order and augmentation are drawn from generators seeded by (seed, epoch), so that a resumed training repeats an epoch
exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from src.datasets.store import Clips
from src.random_streams import derive_seed
from src.training import augment
from src.training.settings import TrainingSettings
from src.victims.chain import Chain, represent
from src.victims.stage import Stage

CACHE_BYTES = 2**30
"""Representations of a split are cached in memory up to this size."""
CHUNK = 64
"""Clips per pass when representations are cached; fixed, so that they are bit-identical in every run."""


@runtime_checkable
class Fitted(Protocol):
    """A stage that takes statistics from training features before training begins."""

    def fit(self, features: Tensor) -> None:
        """Store the statistics of features [n, freq, time]."""


class Source:
    """The representation of clips: computed once and cached if constant and small enough, else in each epoch.

    Args:
        clips: of one split.
        head: from waveform to the representation, or a whole model, whose logits are the representation.
        device: of the computation.
        augmented: the waveform is augmented, so that nothing can be cached.
        title: of the progress bar; None for none.
        uses_mask: padding must not change the representation of the clips.
    """

    def __init__(
        self,
        clips: Clips,
        head: Chain,
        device: torch.device,
        augmented: bool,
        title: str | None = None,
        uses_mask: bool = False,
    ):
        self.clips, self.head, self.device, self.uses_mask = clips, head, device, uses_mask
        self.trained = any(parameter.requires_grad for parameter in head.parameters())
        randomized = any(stage.randomized for stage in head.stages)
        self.cached: Tensor | None = None
        if not (augmented or self.trained or randomized):
            first = self._represent(clips.waveforms(slice(0, 1)).to(device), clips.valid(slice(0, 1)).to(device))
            if first.nbytes * len(clips) <= CACHE_BYTES:
                self.cached = first.new_empty(len(clips), *first.shape[1:])
                starts = range(0, len(clips), CHUNK)
                for start in tqdm(starts, title, unit="chunk", leave=False, disable=title is None):
                    part = slice(start, start + CHUNK)
                    waveforms, valid = clips.waveforms(part).to(device), clips.valid(part).to(device)
                    self.cached[part] = self._represent(waveforms, valid)

    def _represent(self, waveform: Tensor, valid: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            return represent(self.head, waveform, valid if self.uses_mask else None)

    def __call__(self, index: Tensor, augmentation: Augmentation | None = None) -> tuple[Tensor, Tensor]:
        """The representation [batch, ...] of the clips at `index`, whose waveforms are augmented first, and the valid
        samples [batch, time]."""
        (x,), valid = representations([self], index, augmentation)
        return x, valid

    def of(self, index: Tensor, waveform: Tensor | None, valid: Tensor) -> Tensor:
        """The representation of the clips at `index`, whose waveforms are these; None where all are cached."""
        if self.cached is not None:
            return self.cached[index.to(self.cached.device)]
        assert waveform is not None
        return self._represent(waveform, valid)


def representations(
    sources: Sequence[Source], index: Tensor, augmentation: Augmentation | None
) -> tuple[list[Tensor], Tensor]:
    """Several representations of the same clips, those at `index`, whose waveforms are augmented once; and the valid
    samples [batch, time]."""
    first = sources[0]
    valid = first.clips.valid(index).to(first.device)
    if all(source.cached is not None for source in sources):
        return [source.of(index, None, valid) for source in sources], valid
    x = first.clips.waveforms(index).to(first.device)
    if augmentation is not None:
        state = augmentation.generator.get_state()
        x, valid = augmentation.waveform(x), augmentation.moved(valid, state)
    return [source.of(index, x, valid) for source in sources], valid


class Augmentation:
    """The augmentations of one epoch.

    Args:
        training: the settings, with the size of each augmentation.
        epoch: counted from 0.
        noise: background recordings [k, samples], or None.
    """

    def __init__(
        self, training: TrainingSettings, epoch: int, sample_rate: int, noise: Tensor | None, device: torch.device | str
    ):
        self.training, self.sample_rate, self.noise = training, sample_rate, noise
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(derive_seed(training.seed, epoch, "augmentation"))

    def waveform(self, x: Tensor) -> Tensor:
        """[batch, time] -> [batch, time]."""
        t, generator = self.training, self.generator
        x = augment.warp(x, generator, shift=t.time_shift / 1000 * self.sample_rate, speed=t.speed)
        x = augment.reverberate(x, generator, probability=t.reverb, sample_rate=self.sample_rate)
        x = augment.equalize(x, generator, deviation=t.equalizer)
        x = augment.add_noise(x, generator, noise=self.noise, probability=t.noise, snr=t.noise_snr)
        return augment.level(x, generator, limit=t.level)

    def moved(self, valid: Tensor, state: Tensor) -> Tensor:
        """Where the samples `valid` [batch, time] are after `waveform`, which began at this state of the generator."""
        t, generator = self.training, torch.Generator(device=self.generator.device)
        generator.set_state(state)
        shift = t.time_shift / 1000 * self.sample_rate
        return augment.warp(valid.float(), generator, shift=shift, speed=t.speed) > 0

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

    def mix(self, x: Tensor, y: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, label probabilities and valid samples of mixed clips; those of both are valid."""
        state, alpha = self.generator.get_state(), self.training.mixup
        x, y = augment.mixup(x, y, self.generator, alpha=alpha)
        if alpha:
            generator = torch.Generator(device=self.generator.device)
            generator.set_state(state)
            valid = augment.mixup(valid.float(), y, generator, alpha=alpha)[0] > 0
        return x, y, valid


def augments_waveform(training: TrainingSettings) -> bool:
    """Whether any augmentation of the waveform is switched on."""
    t = training
    return any((t.time_shift, t.speed, t.reverb, t.equalizer, t.noise, t.level))


def batches(
    source: Source, training: TrainingSettings, epoch: int, augmentation: Augmentation, teacher: Source | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """One epoch in an order drawn by the seed: (representation [batch, ...], label probabilities [batch, classes],
    valid samples [batch, time], logits [batch, classes] of a teacher or None).

    Args:
        teacher: of the same clips; its representation is the logits of a whole model.
    """
    order = torch.Generator()
    order.manual_seed(derive_seed(training.seed, epoch, "order"))
    for index in torch.randperm(len(source.clips), generator=order).split(training.batch_size):  # type: ignore[no-untyped-call]
        labels = F.one_hot(source.clips.labels[index], len(source.clips.classes)).float().to(source.device)
        (x, *taught), valid = representations([source, teacher] if teacher else [source], index, augmentation)
        yield x, labels, valid, taught[0] if taught else None


def fit_stages(stages: list[Stage], clips: Clips, device: torch.device, seed: int, most: int = 4096) -> None:
    """Fit the stages that need statistics of their input to training features, of all clips or of `most` clips drawn
    by the seed."""
    generator = torch.Generator()
    generator.manual_seed(derive_seed(seed, "statistics"))
    index = torch.randperm(len(clips), generator=generator)[:most].sort().values
    for position, stage in enumerate(stages):
        if isinstance(stage, Fitted):
            head = Chain(stages[:position])
            with torch.no_grad():
                parts = index.split(CHUNK)  # type: ignore[no-untyped-call]
                stage.fit(torch.cat([head(clips.waveforms(part).to(device)) for part in parts]))
