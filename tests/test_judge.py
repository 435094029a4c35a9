"""The judge: it reads what was crafted, on any model, and believes nothing that it can compute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from src.datasets.store import Clips
from src.evaluation import Judge, summary
from src.evaluation.judge import succeeds
from src.output import results
from src.victims import checkpoint
from src.victims.victim import Victim


@pytest.fixture
def victim(trained_net: tuple[Victim, Tensor, Tensor]) -> Victim:
    return trained_net[0]


@pytest.fixture
def right(trained_net: tuple[Victim, Tensor, Tensor], clips: Clips) -> Clips:
    """Clips that the model has right."""
    _, x, y = trained_net
    samples = (x * 32768).round().to(torch.int16).numpy()
    return replace(
        clips.select([0] * len(x)), samples=samples, labels=y, ids=tuple(map(str, range(len(x)))),
        lengths=torch.full((len(x),), x.shape[1]),
    )  # fmt: skip


def fact(**changes: Any) -> dict[str, Any]:
    base = {
        "id": "0", "label": 1, "target": -1, "prediction": 1, "feasible": True, "prediction_stage": 0,
        "prediction_audio": 1, "prediction_inversion": 1, "length": 5, "tags": {}, "clean_probability": 0.5,
    }  # fmt: skip
    return {**base, **changes}


@pytest.mark.parametrize(
    ("changes", "targeted", "expected"),
    [
        ({"prediction_wav": 0}, False, True),
        ({"prediction_wav": 1}, False, False),
        ({"prediction_wav": -1}, False, False),
        ({"prediction_wav": 0, "feasible": False}, False, False),
        ({"prediction_wav": 0, "correct": False}, False, False),
        ({"prediction_wav": 0, "target": 2}, True, False),
        ({"prediction_wav": 2, "target": 2}, True, True),
        ({"prediction_wav": -1, "target": -1}, True, False),
    ],
)
def test_what_counts_as_a_success(changes: dict[str, Any], targeted: bool, expected: bool) -> None:
    assert succeeds({**fact(correct=True), **changes}, "wav", targeted) is expected


def test_the_crafted_model_keeps_its_stage_and_gets_its_wav_anew(victim: Victim, right: Clips) -> None:
    swapped = replace(right, samples=np.roll(right.samples, 1, axis=0))
    facts = [fact(id=i, label=int(y), prediction=int(y)) for i, y in zip(right.ids, right.labels, strict=True)]
    rows = list(Judge(victim, torch.device("cpu"), batch_size=3).rows(swapped, facts, targeted=False))
    assert [row["prediction_wav"] for row in rows] == right.labels.roll(1).tolist()
    assert all(row["prediction_stage"] == 0 for row in rows)
    assert all(row["correct"] for row in rows)
    assert [row["success_wav"] for row in rows] == (right.labels.roll(1) != right.labels).tolist()
    assert [row["success_audio"] for row in rows] == [int(y) != 1 for y in right.labels]
    assert all("length" not in row and "tags" not in row for row in rows)


def test_another_model_is_asked_about_the_clean_clips_too(victim: Victim, right: Clips) -> None:
    deaf = checkpoint.defend(victim, [{"name": "quantize", "options": {"step": 60000}}])
    facts = [fact(id=i, label=int(y), prediction=int(y)) for i, y in zip(right.ids, right.labels, strict=True)]
    rows = list(Judge(deaf, torch.device("cpu")).rows(right, facts, targeted=False, clean=right))
    with torch.no_grad():
        labels = deaf(right.waveforms()).argmax(1).tolist()
    assert [row["prediction"] for row in rows] == labels
    assert [row["correct"] for row in rows] == [a == b for a, b in zip(labels, right.labels.tolist(), strict=True)]
    assert not any(row["success_wav"] for row in rows), "nothing changed, so nothing succeeded"
    for column in ("prediction_stage", "prediction_audio", "prediction_inversion", "success_stage", "success_audio"):
        assert {row[column] for row in rows} == {"none"}


def test_probabilities_are_the_judges_own(victim: Victim, right: Clips) -> None:
    """Of what it hears in the original and on the wav, and of the target; for classes in another order, by their
    names."""
    swapped = replace(right, samples=np.roll(right.samples, 1, axis=0))
    targets = (right.labels + 1) % 4
    facts = [
        fact(id=i, label=int(y), prediction=int(y), target=int(t))
        for i, y, t in zip(right.ids, right.labels, targets, strict=True)
    ]
    judge = Judge(victim, torch.device("cpu"), batch_size=5)
    own = list(judge.rows(swapped, facts, targeted=True))
    other = list(judge.rows(swapped, facts, targeted=True, clean=right))
    with torch.no_grad():
        on_wav, on_clean = (victim(clips.waveforms()).softmax(1) for clips in (swapped, right))
    for rows in (own, other):
        assert [row["probability"] for row in rows] == pytest.approx(on_wav.amax(1).tolist(), abs=1e-5)
        chance = on_wav.gather(1, targets[:, None])[:, 0]
        assert [row["target_probability"] for row in rows] == pytest.approx(chance.tolist(), abs=1e-5)
    assert {row["clean_probability"] for row in own} == {0.5}, "as crafting found it"
    assert [row["clean_probability"] for row in other] == pytest.approx(on_clean.amax(1).tolist(), abs=1e-5)
    order = [3, 1, 0, 2]
    place = torch.tensor([order.index(k) for k in range(4)])
    named = replace(swapped, classes=tuple(right.classes[k] for k in order), labels=place[right.labels])
    renamed = [{**f, "label": int(place[f["label"]]), "target": int(place[f["target"]])} for f in facts]
    again = list(judge.rows(named, renamed, targeted=True, clean=right))
    assert [row["target_probability"] for row in again] == [row["target_probability"] for row in other]
    assert list(judge.rows(right.select([]), [], targeted=True)) == []


def test_a_random_model_repeats_under_its_seed_whatever_the_batch(victim: Victim, right: Clips) -> None:
    noisy = checkpoint.defend(victim, [{"name": "noise_at_snr", "options": {"snr_db": -10.0}}])
    device = torch.device("cpu")
    labels = {
        (seed, size): Judge(noisy, device, seed=seed, batch_size=size).labels(right, right.classes)
        for seed in (0, 1)
        for size in (1, 7)
    }
    assert labels[0, 1] == labels[0, 7]
    assert labels[0, 1] != labels[1, 1]


def test_a_random_model_is_asked_at_least_twenty_times(victim: Victim, right: Clips) -> None:
    """One draw would decide by chance: loud noise leaves shares between 0 and 1, and the majority rules."""
    defended = checkpoint.defend(victim, [{"name": "noise_at_snr", "options": {"snr_db": -5.0}}])
    judge = Judge(defended, torch.device("cpu"))
    drawn = judge.ballots(right, right.classes)
    assert drawn.shape == (20, len(right))
    crafted = [fact(label=int(label), prediction=int(label)) for label in right.labels]
    judged = list(judge.rows(right, crafted, targeted=False))
    shares = (drawn != right.labels).float().mean(0)
    assert [row["share_wav"] for row in judged] == pytest.approx(shares.tolist())
    assert any(0 < share < 1 for share in shares.tolist())
    majority = drawn.mode(0).values
    assert [row["success_wav"] for row in judged] == (majority != right.labels).tolist()


def test_table_of_judges() -> None:
    def row(judge: str, correct: bool, success: bool, **changes: Any) -> dict[str, str]:
        values = {
            "model": "a", "attack": "pgd", "eps": "0.1", "judge": judge, "correct": correct, "feasible": True,
            "success_wav": success, "prediction_wav": 0 if success else 1, "label": 1, **changes,
        }  # fmt: skip
        return {key: results.cell(value) for key, value in values.items()}

    rows = [
        row("b", True, True),
        row("b", True, False),
        row("b", True, False),
        row("b", False, False),
        row("c", False, False),
    ]
    first, second = summary.judged(rows)
    assert [first[key] for key in ("model", "attack", "eps", "judge", "clips")] == ["a", "pgd", "0.1", "b", 4]
    assert first["clean accuracy"] == 0.75
    assert first["accuracy on wav"] == 0.5
    assert first["success on wav"] == pytest.approx(1 / 3)
    assert first["low"] < 1 / 3 < first["high"]
    assert np.isnan(second["success on wav"])
    assert second["clean accuracy"] == 0
