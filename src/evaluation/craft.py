"""Craft adversarial clips: run one attack on one victim at one representation and keep what it made: the 16-bit samples
that a wav would hold, and the facts of the run. How often it succeeds is for evaluation/judge.py to say."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src import perception
from src.attacks.model import Model, narrow
from src.attacks.registration import registered_attack, spec_of
from src.attacks.spec import Report
from src.attacks.substitutes import Substitutes, orders_of
from src.attacks.tap import Tap
from src.budget import Budget
from src.datasets.store import FULL_SCALE, Clips, to_int16
from src.evaluation.call_counter import CallCounter
from src.evaluation.masks import sample_mask
from src.evaluation.passing import Gradient, gradient_of, own_options
from src.evaluation.predict import ask, majority, predicted_labels, probability_of
from src.evaluation.settings import AttackSettings
from src.evaluation.through_audio import ThroughAudio
from src.random_streams import HEAD, RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel, norm_of
from src.victims.adaptive import Eot, adaptive, is_randomized, once
from src.victims.chain import Chain, head_with_lengths, with_lengths
from src.victims.stage import WAVEFORM, Defense
from src.victims.victim import Victim

Inversion = Callable[..., Tensor]
"""(head, z, x, *, rng) -> audio [batch, time]."""


@dataclass(frozen=True)
class CraftedClip:
    """What an attack made of one clip.

    Attributes:
        samples: int16 [time], as a wav would hold them.
        facts: plain values: the attack's own columns of a row, and id, label, length and tags of the clip.
    """

    samples: np.ndarray
    facts: dict[str, Any]


def with_options(
    name: str,
    options: Mapping[str, Any],
    sample_rate: int,
    fitted: Mapping[str, Tensor] | None = None,
    examples: tuple[Tensor, Tensor] | None = None,
    tap: Callable[[str], Tap] | None = None,
) -> Callable[..., Tensor]:
    """An attack with its config keys set, the sample rate (Hz) where it needs one, inputs with their labels where it
    can begin at them, and access to the layers of the model where it looks into it. The config keys of a fitted attack
    are those of its `fit`, whose result it takes as `fitted`. How it passes defenses is for the model to say.

    Raises:
        ValueError: a fitted attack without its fit.
    """
    supplied: dict[str, Any] = {"sample_rate": sample_rate} if spec_of(name).needs_sample_rate else {}
    if spec_of(name).takes_examples and examples is not None:
        supplied["examples"] = examples
    if spec_of(name).takes_tap:
        supplied["tap"] = tap
    if not spec_of(name).fitted:
        return functools.partial(ATTACKS[name], **own_options(options), **supplied)
    if fitted is None:
        raise ValueError(f"{name} is fitted to training clips before it attacks others; fit it first")
    return functools.partial(ATTACKS[name], fitted=fitted, **supplied)


def threat_norm(name: str, norm: str) -> str:
    """The norm an attack works in: the wanted one where it can, else its natural one."""
    norms = spec_of(name).norms
    return norm if norm in norms else norms[0]


def _batches(count: int, batch_size: int) -> tuple[Tensor, ...]:
    """Positions 0 to count - 1 in batches."""
    return torch.split(torch.arange(count), batch_size) if count else ()


class Crafter:
    """One victim under attack at one representation.

    Args:
        victim: the true one.
        settings: the section [ATTACK].
        inversion: back from the representation to audio; unused at the waveform.
        device: where everything runs.
        partners: other models that are attacked together with this one, each with a Crafter of its own.

    Raises:
        ValueError: the victim has no such representation, there is no way back from it to audio, or a partner has
            other classes.
    """

    def __init__(
        self,
        victim: Victim,
        settings: AttackSettings,
        inversion: Inversion,
        device: torch.device,
        partners: Sequence[Crafter] = (),
    ):
        self.partners: tuple[Crafter, ...] = tuple(partners)
        classes = [victim.classes, *(partner.victim.classes for partner in self.partners)]
        self.orders = [order.to(device) for order in orders_of(classes)]
        self.victim: Victim = victim.to(device).eval()
        self.settings, self.inversion, self.device = settings, inversion, device
        self.head, self.tail = self.victim.split(settings.stage)
        if merging := [stage.name for stage in self.head.stages if isinstance(stage, Defense) and stage.shortens]:
            raise ValueError(
                f"the attacked {settings.stage} stands behind the defense '{merging[0]}', which merges frames: "
                "there is no way back to audio"
            )
        self.frozen_tail = self.victim.frozen().split(settings.stage)[1]
        self.bounds = self.victim.bounds(settings.stage)
        self.grid: float | None = None
        if settings.stage == WAVEFORM:  # the legal clips are those that a wav can hold
            self.grid = 1 / FULL_SCALE
            self.bounds = -1.0, 1 - self.grid
        self.inverted: dict[str, int] = {}
        if settings.through == "audio" and is_randomized(self.head):
            names = ", ".join(str(stage.name) for stage in self.head.stages if stage.randomized)
            raise ValueError(f"through = audio: {names} is randomized and stands before the attacked {settings.stage}")

    def streams(self, ids: tuple[str, ...], purpose: str) -> RandomStreams:
        return RandomStreams(self.settings.seed, ids, purpose)

    @functools.cached_property
    def undefended_tail(self) -> Chain | None:
        """The fast copy without the defenses that an attack has to pass; None where there are none to pass, or where
        the attacked representation is itself that of a defense."""
        if not any(stage in self.victim.defenses for stage in self.tail.stages):
            return None
        undefended, stage = self.victim.undefended(), self.settings.stage
        return undefended.frozen().split(stage)[1] if stage in undefended.representations else None

    def attacked_model(
        self, ids: tuple[str, ...], x: Tensor, valid: Tensor, gradient: Gradient = "substitute"
    ) -> Model:
        """What an attack gets to see of these clips: the fast copy, through BPDA and EOT where a stage needs it.
        Without them a randomized stage is drawn once per call, from the streams of the clips, so that runs repeat.

        Args:
            gradient: how the attack passes the defenses. A model without any is undefended itself.
        """
        tail = self.frozen_tail
        if gradient == "undefended":
            tail = self.undefended_tail or tail
        chain = with_lengths(tail, valid, self.head)
        model: Model = chain
        if self.settings.adaptive:
            identity = gradient == "identity"
            model = adaptive(chain, rng=self.streams(ids, "eot"), draws=self.settings.eot_draws, identity=identity)
        elif is_randomized(chain):
            model = Eot(chain, 1, self.streams(ids, "eot")).eval()
        if self.partners:
            others = [partner.attacked_model(ids, x, valid, gradient) for partner in self.partners]
            model = Substitutes([model, *others], self.orders)
        return self.through(model, ids, x, valid)

    def tap(self, options: Mapping[str, Any]) -> Callable[[str], Tap]:
        """Access to a layer, by its name, of the copy that an attack with these options gets to see; that of this
        model, not of its partners."""
        tail = self.undefended_tail if gradient_of(options) == "undefended" else None
        chain = tail or self.frozen_tail
        assert chain.classifier is not None
        return functools.partial(Tap, chain, chain.classifier)

    def through(self, model: Model, ids: tuple[str, ...], x: Tensor, valid: Tensor) -> Model:
        """A model of the attacked representation, behind the inversion where the settings say so."""
        if self.settings.through == "stage":
            return model
        return ThroughAudio(
            model,
            lambda wav, lengths: once(self.representing(lengths), wav, self.streams(ids, HEAD)),
            self._to_audio,
            x,
            valid,
            ids,
        )

    def representing(self, valid: Tensor) -> Chain:
        """From waveforms with these valid samples to the attacked representation."""
        return head_with_lengths(self.head, self.tail, valid)

    def true_tail(self, valid: Tensor) -> Chain:
        """The true model from the attacked representation of clips with these valid samples to logits."""
        return with_lengths(self.tail, valid, self.head)

    def threat(self, x: Tensor, z: Tensor, valid: Tensor, name: str, eps: Budget | None) -> ThreatModel:
        """The threat model at the representation z of the clips x; `eps` None for a minimum-norm attack."""
        allowed = self._allowed(x, valid)
        mask = None if allowed is None else self.head.mask(allowed)
        norm = threat_norm(self.settings.registered(name), self.settings.norm)
        budget = eps.eps(z, norm, mask) if eps else float("inf")
        return ThreatModel(norm, budget, self.bounds, mask, self.grid).floored()

    def load(self, clips: Clips) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(waveforms, valid samples, labels, representation) on the device."""
        labels = clips.relabeled(self.victim.classes).labels
        x, valid, y = (part.to(self.device) for part in (clips.waveforms(), clips.valid(), labels))
        with torch.no_grad():
            return x, valid, y, once(self.representing(valid), x, self.streams(clips.ids, HEAD))

    def _load_in_batches(self, clips: Clips) -> tuple[Tensor, ...]:
        """As `load`, of many clips."""
        parts = [self.load(clips.select(part)) for part in _batches(len(clips), self.settings.batch_size)]
        return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))

    def fit(self, clips: Clips, name: str, options: Mapping[str, Any], eps: Budget | None) -> dict[str, Tensor]:
        """What a fitted attack learns from clips that it is not scored on; `craft` takes it as `fitted`.

        Args:
            options: config keys of the attack.
            eps: the budget; None for an attack without one.
        """
        x, valid, y, z = self._load_in_batches(clips)
        registered = self.settings.registered(name)
        supplied = {"sample_rate": self.victim.sample_rate} if spec_of(registered).needs_sample_rate else {}
        return registered_attack(registered).fit(
            self.attacked_model(clips.ids, x, valid, gradient_of(options)), z,
            self.targets(y, clips.ids) if self.settings.targeted else y,
            self.threat(x, z, valid, name, eps), rng=self.streams(clips.ids, f"fit {registered}"),
            targeted=self.settings.targeted, **own_options(options), **supplied,
        )  # fmt: skip

    def craft(
        self,
        clips: Clips,
        name: str,
        options: Mapping[str, Any],
        eps: Budget | None,
        fitted: Mapping[str, Tensor] | None = None,
        examples: Clips | None = None,
    ) -> Iterator[CraftedClip]:
        """Attack every clip; yields in their order.

        Args:
            name: of an attack or a variant; variants share the random numbers of their attack.
            options: config keys of the attack.
            eps: the budget; None for minimum-norm attacks.
            fitted: what `fit` returned, for a fitted attack.
            examples: clips that an attack towards a target may begin at.
        """
        known, registered = None, self.settings.registered(name)
        if examples is not None and spec_of(registered).takes_examples:
            _, _, labels, inputs = self._load_in_batches(examples)
            known = inputs, labels
        function = with_options(registered, options, self.victim.sample_rate, fitted, known, self.tap(options))
        for part in _batches(len(clips), self.settings.batch_size):
            yield from self._craft_batch(clips.select(part), name, function, gradient_of(options), eps)

    def _craft_batch(
        self, clips: Clips, name: str, function: Callable[..., Tensor], gradient: Gradient, eps: Budget | None
    ) -> Iterator[CraftedClip]:
        targeted, ids = self.settings.targeted, clips.ids
        x, valid, y, z = self.load(clips)
        threat = self.threat(x, z, valid, name, eps)
        asked, probabilities = ask(self.true_tail(valid), z, self.streams(ids, "judge"))
        clean = majority(asked)
        target = self.targets(y, ids)
        # A clip that is already wrong needs no attack, unless it shall become something particular.
        todo = torch.arange(len(y), device=y.device) if targeted else (clean == y).nonzero().flatten()
        counter = CallCounter.start(narrow(self.attacked_model(ids, x, valid, gradient), todo), len(todo))
        registered, report = self.settings.registered(name), Report()
        if spec_of(registered).reports:
            function = functools.partial(function, report=report)
        start = self._clock()
        x_adv = function(
            counter, z[todo], (target if targeted else y)[todo], threat.select(todo),
            rng=self.streams(ids, registered).select(todo), targeted=targeted,
        )  # fmt: skip
        seconds = (self._clock() - start) / max(1, len(todo))
        z_adv = z.clone()
        z_adv[todo] = x_adv.to(z.dtype)

        audio = self._to_audio(z_adv, x, valid, ids)
        samples = np.stack([to_int16(clip) for clip in audio.cpu().numpy()])
        wav = torch.from_numpy(samples.astype(np.float32) / FULL_SCALE).to(x)
        inverted = self._inversion_control(z, x, valid, ids, clean)
        # At the waveform the wav itself is judged, in integers: no rounding, hence no tolerance.
        feasible = threat.contains(z_adv, z) if self.grid is None else threat.contains(wav.double(), x.double(), 0)
        budget = threat.budgets(z)
        delta = z_adv - z
        forwards, backwards = torch.zeros(len(y), dtype=torch.long), torch.zeros(len(y), dtype=torch.long)
        forwards[todo.cpu()], backwards[todo.cpu()] = counter.forwards, counter.backwards
        columns: dict[str, Tensor] = {
            "budget": budget, "budget_lsb": budget / (self.grid or math.nan),
            "label": y, "target": target if targeted else torch.full_like(y, -1),
            "length": clips.lengths, "prediction": clean, "feasible": feasible,
            "prediction_stage": predicted_labels(self.true_tail(valid), z_adv, self.streams(ids, "judge")),
            "prediction_audio": predicted_labels(with_lengths(self.victim, valid), audio, self.streams(ids, "judge")),
            "prediction_inversion": inverted, "clean_probability": probability_of(clean, probabilities),
            "distance": norm_of(delta, threat.norm), "l2": norm_of(delta, "l2"), "linf": norm_of(delta, "linf"),
            **perception.measure(x, wav, clips.sample_rate, self.settings.speech and clips.speech),
            "forwards": forwards, "backwards": backwards,
        }  # fmt: skip
        lists = {column: values.tolist() for column, values in columns.items()}
        lists["stop"] = [""] * len(y)
        for column, said in report.items():
            for place, value in zip(todo.tolist(), said, strict=True):
                lists[column][place] = value
        shared = {"attack": name, "eps": str(eps) if eps else "inf", "stage": self.settings.stage, "norm": threat.norm}
        for i, example in enumerate(ids):
            values = {column: column_values[i] for column, column_values in lists.items()}
            tags = {tag: tag_values[i] for tag, tag_values in clips.tags.items()}
            yield CraftedClip(samples[i], {"id": example, **shared, "seconds": seconds, "tags": tags, **values})

    def targets(self, y: Tensor, ids: tuple[str, ...]) -> Tensor:
        """A random other label per clip, [batch]."""
        others = len(self.victim.classes) - 1
        draw = self.streams(ids, "target").uniform(torch.empty(len(y), 1)).flatten().to(y.device)
        return (y + 1 + (draw * others).long().clamp(max=others - 1)) % (others + 1)

    def _allowed(self, x: Tensor, valid: Tensor) -> Tensor | None:
        settings = self.settings
        return sample_mask(x, valid, settings.mask, self.victim.sample_rate, settings.silence_db)

    def _to_audio(self, z: Tensor, x: Tensor, valid: Tensor, ids: tuple[str, ...]) -> Tensor:
        """Audio for the representation z of clips near x; where the mask forbids a change there is none."""
        if self.settings.stage == WAVEFORM:
            return z
        audio = self.inversion(self.representing(valid), z, x, rng=self.streams(ids, "inversion"))
        allowed = self._allowed(x, valid)
        if allowed is not None:
            audio = torch.where(allowed, audio, x)
        return audio.nan_to_num().clamp(-1, 1)

    def _inversion_control(self, z: Tensor, x: Tensor, valid: Tensor, ids: tuple[str, ...], clean: Tensor) -> Tensor:
        """Predictions for the clean clip inverted and written: what the way back costs without any attack."""
        if self.settings.stage == WAVEFORM:
            return clean
        if not all(example in self.inverted for example in ids):
            audio = self._to_audio(z, x, valid, ids).cpu().numpy()
            wav = torch.from_numpy(to_int16(audio).astype(np.float32) / FULL_SCALE).to(x)
            labels = predicted_labels(with_lengths(self.victim, valid), wav, self.streams(ids, "judge"))
            self.inverted.update(zip(ids, labels.tolist(), strict=True))
        return torch.tensor([self.inverted[example] for example in ids])

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
