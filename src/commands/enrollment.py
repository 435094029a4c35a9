"""The pieces of enroll_speakers.py: clips to enroll, embeddings, recognizers and their thresholds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.commands import selection
from src.commands.enrollment_clips import drawn, usable
from src.config import Config
from src.datasets import store
from src.datasets.store import Clips
from src.distributed import choose_device
from src.evaluation.accuracy import logits_of
from src.registry import choose
from src.speaker import error_rates, trials
from src.training.settings import model_name
from src.victims import checkpoint
from src.victims.embedder import NOBODY
from src.victims.recognizer import Embedding, Enrollment, Recognizer, Task, check_embeds
from src.victims.victim import Victim


@dataclass(frozen=True)
class Plan:
    """One recognizer to make.

    Attributes:
        name: of its file in model_dir.
        victim: with empty tensors.
    """

    name: str
    victim: Victim

    @property
    def recognizer(self) -> Recognizer:
        assert isinstance(self.victim.classifier, Recognizer)
        return self.victim.classifier


class EnrollmentRun:
    """The clips of a store with roles, and every recognizer that [SPEAKER] asks for.

    Raises:
        ValueError: a store without roles, an unknown speaker or one without usable audio.
        FileNotFoundError: nothing prepared.
    """

    def __init__(self, config: Config):
        self.config, self.settings = config, config.speaker
        splits = store.description(config.data.data_dir)["splits"]
        if missing := [role for role in ("train", "enrollment", "calibration") if role not in splits]:
            raise ValueError(
                f"{config.data.data_dir}: to enroll speakers takes a store with roles, this one has no split "
                f"'{missing[0]}' (its splits: {', '.join(splits)})"
            )
        background, enrollment, calibration = (
            store.load(config.data.data_dir, split) for split in ("train", "enrollment", "calibration")
        )
        self.speakers = self.settings.speakers or enrollment.present
        for speaker in self.speakers:
            choose(speaker, enrollment.present, "speaker")
        self.background, self.calibration = usable(background), usable(calibration)
        self.enrollment = drawn(usable(enrollment), self.speakers, self.settings.utterances, config.data.seed)
        self.device = choose_device(config.training.use_cuda)

    def plans(self, network: selection.Trained) -> list[Plan]:
        """The recognizers of one network: every task, back end and score normalization.

        Raises:
            ValueError: options that contradict the data, such as more LDA dimensions than background speakers.
        """
        settings, made = self.settings, []
        suffix = model_name("", 0.0, defenses=selection.configured_defenses(self.config))
        stem = network.name.removesuffix(suffix) + suffix
        for task, back_end, score_norm in itertools.product(settings.tasks, settings.back_ends, settings.score_norms):
            cohort = len(self.background) if score_norm == "as_norm" else 0
            for speakers in self.sets_of_speakers(task):
                enrollment = Enrollment(
                    speakers=speakers,
                    thresholded=task != "csi",
                    back_end=back_end,
                    options=self.config.component("SPEAKER", back_end),
                    n_background=len(self.background.present),
                    cohort=cohort,
                    cohort_top=settings.cohort_top if cohort else 0,
                )
                parts = [stem, task, back_end, *(["as_norm"] if cohort else [])]
                parts += speakers if task == "sv" else []
                made.append(Plan("_".join(parts), checkpoint.enrolled(network.victim, enrollment)))
        for plan in made:
            self.labels_of(plan)
        return made

    def sets_of_speakers(self, task: Task) -> list[tuple[str, ...]]:
        """The enrolled speakers of each recognizer for a task."""
        if task == "sv":
            return [(speaker,) for speaker in self.speakers]
        if task == "csi" and len(self.speakers) < 2:
            raise ValueError("speakers: csi tells speakers apart, so it needs at least two of them")
        return [tuple(self.speakers)]

    def labels_of(self, plan: Plan) -> Tensor:
        """Labels of the calibration clips in the classes of the recognizer.

        Raises:
            ValueError: it rejects, and there are no trials of the enrolled or none of imposters.
        """
        if not plan.recognizer.enrollment.thresholded:
            return torch.empty(0)
        labels = self.calibration.relabeled(plan.victim.classes).labels
        imposters = int((labels == len(plan.victim.classes) - 1).sum())
        for who, count in (("imposters", imposters), ("the enrolled", len(labels) - imposters)):
            if not count:
                raise ValueError(
                    f"{plan.name}: the split calibration has no trials of {who}; no threshold can be chosen"
                )
        return labels

    def enroll(self, network: selection.Trained, plans: Sequence[Plan]) -> list[dict[str, Any]]:
        """Fill every recognizer of a network; the facts of each for `save`."""
        embedded = {
            "train": self.embeddings(network, self.background),
            "enrollment": self.embeddings(network, self.enrollment),
        }
        calibration = (
            self.embeddings(network, self.calibration) if any(NOBODY in p.victim.classes for p in plans) else None
        )
        filled = []
        for plan in plans:
            recognizer, enrollment = plan.recognizer.cpu(), plan.recognizer.enrollment
            back_end = recognizer.back_end
            with torch.no_grad():
                back_end.fit(embedded["train"], self.background.labels)
                if enrollment.cohort:
                    back_end.cohort.copy_(back_end.project(embedded["train"]))
                index = {name: i for i, name in enumerate(self.enrollment.classes)}
                mine = [embedded["enrollment"][self.enrollment.labels == index[name]] for name in enrollment.speakers]
                recognizer.enrolled.copy_(back_end.enroll(mine))
                line: dict[str, Any] = {"model": plan.name, "task": enrollment.task, "speakers": len(mine)}
                line["utterances"] = min(map(len, mine))
                if calibration is not None and enrollment.thresholded:
                    line |= self.threshold(recognizer, calibration, self.labels_of(plan))
            enrolled = {
                "network": network.name,
                "network_weights": network.weights,
                "utterances": {name: len(part) for name, part in zip(enrollment.speakers, mine, strict=True)},
                "background_clips": len(self.background),
                "false_accept_rate": self.settings.false_accept_rate,
                "calibration": line,
            }
            # How the network was trained stays known: certify.py, for one, compares the noise.
            filled.append({**network.facts, "classes": list(plan.victim.classes), "enrollment": enrolled})
        return filled

    def save(self, plan: Plan, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Write a filled recognizer; its line for the table."""
        checkpoint.save(self.path(plan), plan.victim.eval(), facts)
        line: dict[str, Any] = facts["enrollment"]["calibration"]
        return line

    def threshold(self, recognizer: Recognizer, embeddings: Tensor, labels: Tensor) -> dict[str, Any]:
        """Choose and set theta; what stands behind it."""
        calibration = trials.of_clips(recognizer.logits(embeddings), labels)
        recognizer.theta.fill_(error_rates.choose_threshold(calibration, self.settings.false_accept_rate))
        theta = recognizer.theta.item()
        eer, _ = error_rates.equal_error_rate(calibration)
        imposters = self.calibration.labels[labels == len(recognizer.enrollment.speakers)]
        counts = {"imposter_speakers": len(set(imposters.tolist()))}
        return {"theta": theta, "EER": eer, **error_rates.at_threshold(calibration, theta), **counts}

    def embeddings(self, network: selection.Trained, clips: Clips) -> Tensor:
        """[n, embedding_size], on the CPU."""
        victim = network.victim
        assert victim.classifier is not None
        embedder = Victim(
            list(victim.stages),  # type: ignore[arg-type]
            Embedding(victim.classifier),
            classes=victim.classes,
            sample_rate=victim.sample_rate,
            n_samples=victim.n_samples,
        )
        return logits_of(embedder.eval(), clips, device=self.device, seed=self.config.data.seed, title=network.name)

    def path(self, plan: Plan) -> Path:
        return self.config.results.model_dir / f"{plan.name}.pt"


def networks(config: Config, names: Sequence[str] | None, clips: Clips) -> list[selection.Trained]:
    """The networks that give embeddings: those named, or all in model_dir that do.

    Raises:
        OSError: no such model, or none at all.
        ValueError: one that was named gives no embeddings or has speakers enrolled, or no model is left.
    """
    return selection.models(config, names, clips, check=lambda victim: check_embeds(victim.classifier))


def note(settings_rate: float | str, line: Mapping[str, Any]) -> str:
    """What the threshold of one recognizer rests on, as a sentence."""
    aim = "equal error rates" if settings_rate == "eer" else f"a false accept rate of {settings_rate:g}"
    return (
        f"{line['model']}: theta = {line['theta']:.4g} for {aim}, on {line['false_rejects'].split()[-1]} trials of the "
        f"enrolled ({line['false_rejects']} rejected) and {line['false_accepts'].split()[-1]} of "
        f"{line['imposter_speakers']} imposter(s) ({line['false_accepts']} accepted; the true rate is up to "
        f"{line['FAR_high_95']:.3f})"
    )
