"""Judge crafted clips on any model: whether the clip is feasible, and whether the model errs at the attacked stage, in
audio, and on the wav as read back. It reads what was crafted, needs no gradients and never trusts the attack. A
randomized model is asked many times: the majority decides, and the share of the draws stands beside it. One row per
example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from src.datasets.resample import resample
from src.datasets.store import Clips
from src.evaluation.predict import ask, majority, probability_of
from src.random_streams import RandomStreams
from src.victims.chain import with_lengths
from src.victims.victim import Victim

ATTACK_KEY = ("model", "checkpoint", "attack", "eps", "id", "judge")
"""What identifies a row."""
ATTACK_FIELDS = (
    *ATTACK_KEY[:-1], "stage", "norm", "budget", "budget_lsb", "label", "target", "prediction", "correct",
    "prediction_stage", "prediction_audio", "prediction_wav", "prediction_inversion",
    "success_stage", "success_audio", "success_wav", "feasible", "distance", "l2", "linf",
    "snr", "db_x", "seg_snr", "lsd", "pesq", "stoi", "forwards", "backwards", "seconds", "judge", "wav", "share_wav",
    "clean_probability", "probability", "target_probability", "stop",
)  # fmt: skip
OF_THE_CRAFTED_MODEL = (
    "prediction_stage", "prediction_audio", "prediction_inversion", "success_stage", "success_audio"
)  # fmt: skip
PROBABILITIES = ("clean_probability", "probability", "target_probability")
"""By the judging model: of what it hears in the original, of what it hears in the written wav, and there of the target
(NaN without one)."""
UNDEFINED = "none"
"""What these columns hold when another model judges: it was not attacked at a stage of its own."""


class Judge:
    """One model as the judge of crafted clips.

    Args:
        victim: the true model, its defenses included.
        device: where it runs.
        seed: of the draws of a randomized model; an example has the same draws whoever crafted it.
        batch_size: clips per forward pass; the rows do not depend on it.
    """

    def __init__(self, victim: Victim, device: torch.device, *, seed: int = 0, batch_size: int = 64):
        self.victim, self.device, self.seed, self.batch_size = victim.to(device).eval(), device, seed, batch_size

    def labels(self, clips: Clips, classes: Sequence[str]) -> list[int]:
        """The majority of `ballots` for each clip."""
        return majority(self.ballots(clips, classes)).tolist()

    def ballots(self, clips: Clips, classes: Sequence[str]) -> Tensor:
        """The model's labels of clips, [draws, clips], one draw unless it is randomized. They are positions in
        `classes`, those of another model perhaps: -1 where its logits are not finite numbers, len(classes) and more
        for a class that is not among them."""
        return self._positions(classes)[self._asked(clips)[0]]

    def _positions(self, classes: Sequence[str]) -> Tensor:
        """Where the model's own classes, and then -1, stand in `classes`, as `ballots` says."""
        order, own = list(classes), self.victim.classes
        return torch.tensor([*(order.index(c) if c in order else len(order) + k for k, c in enumerate(own)), -1])

    def _asked(self, clips: Clips) -> tuple[Tensor, Tensor]:
        """`ballots` in the model's own classes, and its probabilities [clips, classes]."""
        if not len(clips):
            return torch.empty(1, 0, dtype=torch.long), torch.empty(0, len(self.victim.classes))
        parts = []
        for part in torch.split(torch.arange(len(clips)), self.batch_size):
            batch = clips.select(part)
            rng = RandomStreams(self.seed, batch.ids, "judge")
            chain = with_lengths(self.victim, batch.valid().to(self.device))
            labels, probabilities = ask(chain, batch.waveforms().to(self.device), rng)
            parts.append((labels.cpu(), probabilities.cpu()))
        return torch.cat([labels for labels, _ in parts], 1), torch.cat([part for _, part in parts])

    def heard(self, clips: Clips, original: Clips | None = None) -> Clips:
        """The clips at the model's own sample rate and length; one that uses a mask takes clips of any length.

        Args:
            original: the clips that these were made from, which say what part of them is heard.
        """
        n_samples = None if self.victim.uses_mask else self.victim.n_samples
        return resample(clips, self.victim.sample_rate, n_samples, original)

    def _as_crafted(self, asked: Tensor, crafted: Clips, truth: Tensor) -> Tensor:
        """Labels in the classes of `crafted`, [draws, clips], in which a label equals that of the crafted clip
        if and only if the model is right. Two recognizers may have another speaker each: whom one of them enrolled is
        "nobody" to the other, so that equal names are not the same answer.

        Args:
            asked: labels in the model's own classes, [draws, clips].
            truth: the true labels in the model's own classes, [clips].
        """
        named = self._positions(crafted.classes)[asked]
        wrong = torch.where(named == crafted.labels, len(crafted.classes) + asked, named)
        return torch.where(asked == truth, crafted.labels, wrong)

    def _own_class(self, classes: Sequence[str], position: int) -> int:
        """Where the model has the class at a position of `classes`; -1 for none, and for one that it does not have."""
        own = self.victim.classes
        return own.index(classes[position]) if position >= 0 and classes[position] in own else -1

    def rows(
        self,
        crafted: Clips,
        facts: Sequence[Mapping[str, Any]],
        *,
        targeted: bool,
        clean: Clips | None = None,
    ) -> Iterator[dict[str, Any]]:
        """One row per crafted clip, without the columns model, checkpoint, judge and wav. A model of another sample
        rate or length than that of the clips hears them converted (see `heard`).

        Args:
            crafted: as read from a store of crafted clips; labels count in its classes, those of the attacked model.
            facts: of each of them.
            targeted: whether a success is the target instead of any error.
            clean: the original clips in the same order where this model is not the one they were crafted on; its
                stage and audio columns are then undefined. Their labels count in the classes of the data, from which
                the true answers of this model follow.

        Raises:
            ValueError: a clip of a class that this model does not know.
        """
        asked, probabilities = self._asked(crafted if clean is None else self.heard(crafted, clean))
        if clean is None:
            predictions, drawn = [fact["prediction"] for fact in facts], self._positions(crafted.classes)[asked]
            sure = [fact["clean_probability"] for fact in facts]
        else:
            truth = clean.relabeled(self.victim.classes).labels
            asked_clean, of_clean = self._asked(self.heard(clean))
            predictions = majority(self._as_crafted(asked_clean, crafted, truth)).tolist()
            drawn = self._as_crafted(asked, crafted, truth)
            sure = probability_of(majority(asked_clean), of_clean).tolist()
        targets = torch.tensor([self._own_class(crafted.classes, fact["target"]) for fact in facts], dtype=torch.long)
        chances = zip(
            sure, probability_of(majority(asked), probabilities).tolist(),
            probability_of(targets, probabilities).tolist(), strict=True,
        )  # fmt: skip
        draws = zip(facts, predictions, majority(drawn).tolist(), drawn.T.tolist(), chances, strict=True)
        for fact, prediction, on_wav, labels, chance in draws:
            row = {**fact, "prediction": prediction, "correct": prediction == fact["label"], "prediction_wav": on_wav}
            row |= dict(zip(PROBABILITIES, chance, strict=True))
            wrong = [row["correct"] and row["feasible"] and errs(label, row["label"]) for label in labels]
            row["share_wav"] = sum(wrong) / len(wrong)
            del row["length"], row["tags"]
            for place in ("stage", "audio", "wav"):
                row[f"success_{place}"] = succeeds(row, place, targeted)
            if clean is not None:
                row.update(dict.fromkeys(OF_THE_CRAFTED_MODEL, UNDEFINED))
            yield row


def succeeds(row: Mapping[str, Any], place: str, targeted: bool) -> bool:
    """Whether a feasible change of a clip that was classified rightly gave the target, or (untargeted) another label.
    Logits that are not finite numbers are no success."""
    label = row[f"prediction_{place}"]
    hit = label == row["target"] if targeted else errs(label, row["label"])
    return bool(row["correct"] and row["feasible"] and label >= 0 and hit)


def errs(prediction: int, label: int) -> bool:
    """Whether a prediction is another label. That of logits that are not finite numbers, -1, is none: a clean clip with
    it is not correct, and an attack that reaches it has not succeeded.

    >>> errs(2, 1), errs(1, 1), errs(-1, 1)
    (True, False, False)
    """
    return prediction >= 0 and prediction != label
