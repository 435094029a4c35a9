"""The state of one training: weights, their moving average, optimizer, history and best epoch."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from src.datasets.store import Clips
from src.random_streams import RandomStreams, derive_seed
from src.registry import ATTACKS, METHODS, keys_of
from src.threat import ThreatModel
from src.training.batches import Augmentation, Source, augments_waveform, batches
from src.training.methods.learner import Learner
from src.training.optimizer import faster_in_channels_last, make_optimizer
from src.training.settings import TrainingSettings
from src.victims.adaptive import Bpda
from src.victims.chain import Chain, represent
from src.victims.stage import WAVEFORM, Stage
from src.victims.victim import Victim


@runtime_checkable
class Estimated(Protocol):
    """A classifier whose parameters are estimated from all training features at once, not learned by gradients."""

    def estimate(self, features: Tensor, labels: Tensor, mask: Tensor, seed: int) -> list[float]:
        """Set the parameters from features [n, freq, time], labels [n] and the mask of valid frames [n, time]; returns
        the log-likelihood after each step."""


def check_estimated(classifier: nn.Module | None, training: TrainingSettings, gradient_penalty: float = 0.0) -> None:
    """Raises ValueError where settings of a training by gradients are set for a model that is estimated."""
    if isinstance(classifier, Estimated) and (gradient_penalty or training.method != "standard" or training.mixup):
        raise ValueError(
            "a model that is estimated, not trained by gradients, takes no method, gradient_penalty or mixup"
        )


def rows_for(mask: Tensor, n: int) -> Tensor:
    """The mask of a batch for n examples of it. Where the numbers differ, a method has taken the first n examples, or
    several noisy copies of each in a row."""
    return mask[:n] if n <= len(mask) else mask.repeat_interleave(n // len(mask), 0)


def logits_of(victim: Victim, features: Tensor, mask: Tensor | None) -> Tensor:
    """The logits of features [n, ...] with the mask of a batch."""
    assert victim.classifier is not None
    if mask is None:
        return victim.classifier(features)
    return victim.classifier(features, rows_for(mask, len(features)))


def warn_of_collapse(name: str, history: Sequence[Mapping[str, float]], accuracy: float) -> None:
    """Print a warning if `accuracy`, that under PGD after the epochs of `history`, has collapsed: catastrophic
    overfitting (Wong et al. 2020)."""
    best = max((entry["validation_pgd_accuracy"] for entry in history), default=0.0)
    if best > 0.2 and accuracy < best / 2:
        tqdm.write(
            f"{name}: accuracy under PGD fell from {best:.2f} to {accuracy:.2f} in epoch {len(history) + 1}: "
            "catastrophic overfitting; use method = pgd, a smaller eps, or keep an earlier epoch"
        )


class TrainingRun:
    """One training, epoch by epoch.

    Args:
        stage: representation that is the input of the objective; the chain before it is not trained.
        method: name of the training method.
        options: keys of the method that are not at their default.
        name: of the model, for the progress bar and messages.
        teacher: a frozen model whose logits the method learns, or None.
    """

    def __init__(
        self,
        victim: Victim,
        train: Clips,
        valid: Clips,
        stage: str,
        method: str,
        options: Mapping[str, Any],
        training: TrainingSettings,
        noise: Tensor | None,
        device: torch.device,
        name: str,
        progress: bool,
        teacher: Victim | None = None,
    ):
        self.victim, self.training, self.device, self.name, self.progress = victim, training, device, name, progress
        self.noise, self.sample_rate = noise, train.sample_rate
        classifier = victim.classifier
        assert classifier is not None
        if faster_in_channels_last(classifier):
            classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.features = stage == victim.representations[-1] and stage != WAVEFORM
        self.method, self.bounds = method, victim.bounds(stage)
        self.options = {key.name: key.default for key in keys_of(METHODS[method])} | dict(options)
        head, self.tail = victim.split(stage)
        # Stages before the split without parameters to train can use the frozen copy, which is faster.
        fixed = not any(parameter.requires_grad for parameter in head.parameters())
        head = victim.frozen().split(stage)[0] if fixed else head
        title = f"{name}: features" if progress else None
        # The fast backwards of the frozen copy have no second derivatives.
        tail = self.tail if method == "gradient_penalty" or not fixed else victim.frozen().split(stage)[1]
        # A defense without a gradient: what the method crafts goes through its substitute.
        stages: list[Stage] = [stage if stage.differentiable else Bpda(stage) for stage in tail.stages]  # type: ignore[arg-type, misc]
        self.between = Chain(stages).to(device)
        self.source = Source(train, head, device, augments_waveform(training), title, victim.uses_mask)
        self.valid = Source(valid, head, device, False, title, victim.uses_mask)
        self.teacher: Source | None = None
        if teacher is not None:
            title = f"{name}: teacher" if progress else None
            # The classes, sample rate and clip length are the same, the front end may be another one.
            augmented = augments_waveform(training)
            self.teacher = Source(train, teacher.to(device), device, augmented, title, teacher.uses_mask)
        self.optimizer = make_optimizer(victim, training)
        self.average = copy.deepcopy(victim).requires_grad_(False) if training.ema else None
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {}
        self.statistics: dict[str, Tensor] = {}  # Learner.statistics

    def bar(self, done: int) -> tqdm[Any]:
        return tqdm(total=self.training.epochs, initial=done, desc=self.name, unit="epoch", disable=not self.progress)

    def mask_of(self, valid: Tensor) -> Tensor | None:
        """The mask of valid frames of clips with these valid samples, where the classifier uses one."""
        return self.victim.frame_mask(valid) if self.victim.uses_mask else None

    def features_of(self, x: Tensor, valid: Tensor) -> Tensor:
        """The input of the classifier from that of the objective, for examples of a batch with these valid samples."""
        at_stage = rows_for(self.source.head.valid_output(valid), len(x)) if self.victim.uses_mask else None
        return represent(self.between, x, at_stage)

    def classify(self, x: Tensor, mask: Tensor | None) -> Tensor:
        enabled = self.training.mixed_precision and self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            return logits_of(self.victim, x, mask).float()

    def epoch(self, epoch: int, bar: tqdm[Any]) -> None:
        """One pass over the training clips, then validation; appends an entry to the history."""
        t = self.training
        augmentation = Augmentation(t, epoch, self.sample_rate, self.noise, self.device)
        n_batches = math.ceil(len(self.source.clips) / t.batch_size)
        total, seen, rate = 0.0, 0, 0.0
        self.victim.train()
        for number, (x, y, valid, taught) in enumerate(batches(self.source, t, epoch, augmentation, self.teacher)):
            # The rate at the middle of the step, so that a warm-up starts above 0.
            rate = t.rate(epoch if t.schedule == "step" and not t.warmup_epochs else epoch + (number + 0.5) / n_batches)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            x, y, valid = augmentation.mix(augmentation.features(x) if self.features else x, y, valid)
            learner = self.learner(augmentation, valid, taught)
            loss = METHODS[self.method](learner, x, y, **self.options)
            value = loss.item()
            if not math.isfinite(value):
                raise ValueError(
                    f"{self.name}: the loss became {value} in epoch {epoch + 1}, batch {number + 1}; "
                    "lower learning_rate or gradient_penalty, or set gradient_clip"
                )
            self.optimizer.zero_grad()
            loss.backward()
            if t.gradient_clip:
                nn.utils.clip_grad_norm_(self.victim.parameters(), t.gradient_clip)
            self.optimizer.step()
            self.step += 1
            self._update_average()
            total, seen = total + value * len(x), seen + len(x)
            if (number + 1) % t.log_interval == 0:
                bar.set_postfix(loss=f"{total / seen:.3f}", lr=f"{rate:.2g}", batch=f"{number + 1}/{n_batches}")
        loss_valid, accuracy = self.validate()
        entry = {
            "epoch": epoch + 1,
            "loss": total / seen,
            "learning_rate": rate,
            "validation_loss": loss_valid,
            "validation_accuracy": accuracy,
        }
        if "eps" in self.options:
            entry["validation_pgd_accuracy"] = self.validate_under_attack()
            warn_of_collapse(self.name, self.history, entry["validation_pgd_accuracy"])
        self.history.append(entry)
        if t.keep == "last" or not self.best or (accuracy, -loss_valid) > (self.best["accuracy"], -self.best["loss"]):
            state = {key: value.detach().clone() for key, value in (self.average or self.victim).state_dict().items()}
            self.best = {"epoch": epoch + 1, "accuracy": accuracy, "loss": loss_valid, "state": state}
        bar.update()
        bar.set_postfix(loss=f"{total / seen:.3f}", lr=f"{rate:.2g}", acc=f"{accuracy:.3f}")

    def estimate(self) -> None:
        """The place of all epochs for a model whose parameters are estimated: one pass over the training clips, whose
        features are augmented once and are all in memory at a time, then validation."""
        classifier, t = self.victim.classifier, self.training
        assert isinstance(classifier, Estimated)
        augmentation = Augmentation(t, 0, self.sample_rate, self.noise, self.device)
        self.average = None
        parts = []
        with torch.no_grad():
            for x, y, valid, _ in batches(self.source, t, 0, augmentation):
                x = self.features_of(x, valid)
                mask = torch.ones(len(x), x.shape[-1], dtype=torch.bool, device=x.device)
                mask = mask if not self.victim.uses_mask else self.victim.frame_mask(valid)
                parts.append((augmentation.features(x), y.argmax(1), mask))
            features, labels, mask = (torch.cat(part) for part in zip(*parts, strict=True))
            likelihoods = classifier.estimate(features, labels, mask, derive_seed(t.seed, "estimate"))
            logits = [logits_of(self.victim, x, m) for x, m in zip(features.split(64), mask.split(64), strict=True)]
            loss = F.cross_entropy(torch.cat(logits), labels).item()
        loss_valid, accuracy = self.validate()
        self.history.append(
            {
                "epoch": 1,
                "loss": loss,
                "learning_rate": 0.0,
                "validation_loss": loss_valid,
                "validation_accuracy": accuracy,
                "log_likelihood": likelihoods[-1],
            }
        )
        state = {key: value.detach().clone() for key, value in self.victim.state_dict().items()}
        self.best = {"epoch": 1, "accuracy": accuracy, "loss": loss_valid, "state": state}

    def learner(self, augmentation: Augmentation, valid: Tensor, taught: Tensor | None = None) -> Learner:
        """The part of the victim that the method trains on a batch with these valid samples: everything after its
        stage.

        Args:
            taught: logits of the teacher for the batch.
        """
        mask = self.mask_of(valid)

        def augmented(x: Tensor, first: int = 0) -> Tensor:
            features = self.features_of(x, valid[first:])
            features = features if self.features or features.dim() != 3 else augmentation.features(features)
            return self.classify(features, mask if mask is None else mask[first:])

        def plain(x: Tensor) -> Tensor:
            return self.classify(self.features_of(x, valid), mask)

        smoothing = self.training.label_smoothing
        return Learner(
            augmented, plain, self.victim, self.bounds, augmentation.generator, smoothing, self.statistics, taught
        )

    def _update_average(self) -> None:
        """Move the average towards the weights; with a smaller decay in the first steps."""
        if self.average is None:
            return
        share = 1 - min(self.training.ema, self.step / (self.step + 10))
        with torch.no_grad():
            pairs = zip(self.average.state_dict().values(), self.victim.state_dict().values(), strict=True)
            for mean, value in pairs:
                mean.lerp_(value, share) if mean.is_floating_point() else mean.copy_(value)

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """(mean cross-entropy, accuracy) on the validation clips."""
        model = (self.average or self.victim).eval()
        tail = Chain(list(model.stages)[len(self.source.head.stages) :])  # type: ignore[arg-type]
        total, correct = 0.0, 0
        for index in torch.arange(len(self.valid.clips)).split(self.training.batch_size):  # type: ignore[no-untyped-call]
            (x, valid), y = self.valid(index), self.valid.clips.labels[index].to(self.device)
            at_stage = self.source.head.valid_output(valid)
            for stage in tail.informed(at_stage) if model.uses_mask else tail.stages:
                x = stage(x)
            logits = logits_of(model, x, self.mask_of(valid))
            total += F.cross_entropy(logits, y, reduction="sum").item()
            correct += int((logits.argmax(1) == y).sum())
        return total / len(self.valid.clips), correct / len(self.valid.clips)

    def validate_under_attack(self, steps: int = 10, most: int = 64) -> float:
        """Accuracy of the first validation clips under PGD with the budget of the training."""
        model = (self.average or self.victim).eval()
        clips = self.valid.clips.select(range(min(most, len(self.valid.clips))))
        (x, valid), y = self.valid(torch.arange(len(clips))), clips.labels.to(self.device)
        mask = self.mask_of(valid)

        def logits(x: Tensor) -> Tensor:
            return logits_of(model, self.features_of(x, valid), mask)

        threat = ThreatModel(self.options.get("norm", "l2"), self.options["eps"], self.bounds)
        streams = RandomStreams(self.training.seed, clips.ids, "validation")
        # The mask is that of the whole batch, so that no example may leave it early.
        options = {"steps": steps} if mask is None else {"steps": steps, "early_exit": False}
        x_adv = ATTACKS["pgd"](logits, x, y, threat, rng=streams, targeted=False, **options)
        with torch.no_grad():
            return float((logits(x_adv).argmax(1) == y).float().mean())

    def state(self) -> dict[str, Any]:
        """Everything that the next epoch depends on, as tensors and plain values."""
        return {
            "weights": self.victim.state_dict(),
            "average": self.average.state_dict() if self.average else {},
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "history": self.history,
            "best": self.best,
            "statistics": self.statistics,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.victim.load_state_dict(state["weights"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.history, self.best = state["step"], list(state["history"]), dict(state["best"])
        self.statistics = {name: value.to(self.device) for name, value in state.get("statistics", {}).items()}
