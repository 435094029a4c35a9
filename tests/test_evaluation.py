"""The judge: feasibility, success at the stage, in audio and on the wav; rows whatever the batch size; their sums."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from src.attacks import core, registration
from src.attacks.model import narrow
from src.budget import Budget
from src.datasets.crafted import CraftedStore
from src.datasets.store import Clips
from src.evaluation import ATTACK_FIELDS, AttackSettings, Crafter, Judge, summary
from src.evaluation.call_counter import CallCounter
from src.evaluation.judge import succeeds
from src.evaluation.masks import sample_mask
from src.output import results
from src.registry import ATTACKS, INVERSIONS
from src.stages.front_ends import log_mel
from src.victims import checkpoint
from src.victims.victim import Victim
from tests.conftest import SAMPLE_RATE, WORDS


@pytest.fixture(scope="module")
def victim(clips: Clips) -> Victim:
    """A small net fitted to the clips themselves, so that it has something to lose."""
    torch.manual_seed(0)
    stages = log_mel(sample_rate=SAMPLE_RATE, n_samples=SAMPLE_RATE, hop_length=400, n_mels=20, normalize="clip_mean")
    net = nn.Sequential(
        nn.AvgPool1d(4, ceil_mode=True), nn.Flatten(), nn.Linear(20 * 11, 32), nn.Tanh(), nn.Linear(32, 4)
    )
    victim = Victim(stages, net, classes=WORDS, sample_rate=SAMPLE_RATE, n_samples=SAMPLE_RATE)
    head, tail = victim.split("normalize")
    with torch.no_grad():
        features = head(clips.waveforms())
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(30):
        noisy = features + 0.3 * torch.randn_like(features)
        loss = nn.functional.cross_entropy(tail(noisy), clips.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (victim.eval()(clips.waveforms()).argmax(1) == clips.labels).float().mean() > 0.8
    return victim


class Outcome(NamedTuple):
    """A row, and its clip before and after, [time] each."""

    row: dict[str, Any]
    x: np.ndarray
    x_adv: np.ndarray


def outcomes(
    victim: Victim, clips: Clips, folder: Path, name: str, eps: str | None, inversion: str = "gain_mask", **keys: object
) -> list[Outcome]:
    """Craft, store and judge on the victim itself."""
    settings = AttackSettings(**{"speech": False, **keys})
    crafter = Crafter(victim, settings, INVERSIONS[inversion], torch.device("cpu"))
    budget = None if eps is None else Budget.parse(eps)
    options = {"pgd": {"steps": 8}, "cw": {"steps": 60, "search_steps": 3}}.get(name, {})
    store = CraftedStore(Path(tempfile.mkdtemp(dir=folder)), clips, {})
    for clip in crafter.craft(clips, name, options, budget):
        store.append(clip.samples, clip.facts)
    crafted, facts = store.read(clips.ids)
    judge = Judge(victim, torch.device("cpu"), seed=settings.seed, batch_size=settings.batch_size)
    rows = judge.rows(crafted, facts, targeted=settings.targeted)
    return [
        Outcome(row, *x) for row, *x in zip(rows, clips.waveforms().numpy(), crafted.waveforms().numpy(), strict=True)
    ]


def padded(clips: Clips, length: int = 10000) -> Clips:
    samples = np.array(clips.samples)
    samples[:, length:] = 0
    lengths = torch.full((len(clips),), length)
    return Clips(samples, clips.labels, lengths, clips.ids, clips.classes, clips.sample_rate)


@pytest.mark.parametrize(
    ("stage", "eps"), [("waveform", "0.003"), ("waveform", "20 dB"), ("magnitude", "15 dB"), ("log_mel", "2")]
)
def test_rows_do_not_depend_on_the_batch(victim: Victim, clips: Clips, tmp_path: Path, stage: str, eps: str) -> None:
    batched, single = (
        [o.row for o in outcomes(victim, clips, tmp_path, "pgd", eps, stage=stage, batch_size=size)] for size in (16, 1)
    )
    assert set(batched[0]) == set(ATTACK_FIELDS) - {"model", "checkpoint", "judge", "wav"}
    for row_of_batch, row_of_single in zip(batched, single, strict=True):
        for column in set(row_of_batch) - {"seconds"}:
            if isinstance(row_of_batch[column], float):
                assert row_of_batch[column] == pytest.approx(row_of_single[column], rel=0.02, abs=1e-6, nan_ok=True), (
                    column
                )
            else:
                assert row_of_batch[column] == row_of_single[column], column


def test_what_the_columns_say(victim: Victim, clips: Clips, tmp_path: Path) -> None:
    crafted = outcomes(victim, clips, tmp_path, "pgd", "0.005")
    rows = [o.row for o in crafted]
    assert any(row["success_stage"] for row in rows)
    assert all(row["feasible"] for row in rows)
    for outcome, row in zip(crafted, rows, strict=True):
        delta = outcome.x_adv - outcome.x
        assert row["linf"] <= 0.005 * 1.0001
        assert np.abs(delta).max() <= 0.005 + 1 / 65536 + 1e-7
        assert (outcome.x_adv * 32768 == np.rint(outcome.x_adv * 32768)).all(), "what was judged is what a wav can hold"
        assert int(victim(torch.from_numpy(outcome.x_adv)[None]).argmax()) == row["prediction_wav"]
        assert row["success_wav"] == (row["correct"] and row["prediction_wav"] != row["label"])
        if row["correct"]:
            power = 10 * np.log10((outcome.x.astype(float) ** 2).sum() / (delta.astype(float) ** 2).sum())
            assert row["snr"] == pytest.approx(power, abs=1e-3)
            assert 1 <= row["backwards"] <= 8
            assert row["forwards"] in (row["backwards"], row["backwards"] + 1)
        else:
            assert not delta.any(), "a clip that is wrong already is left alone"
            assert row["snr"] == math.inf


@pytest.mark.parametrize("eps", ["30 dB", "15 dB"])
@pytest.mark.parametrize(("norm", "name"), [("linf", "random_signs"), ("l2", "random_gaussian")])
def test_snr_budget_is_met_on_the_wav(
    victim: Victim, clips: Clips, tmp_path: Path, eps: str, norm: str, name: str
) -> None:
    noise = np.random.default_rng(0).integers(-3000, 3000, clips.samples.shape)
    samples = (np.asarray(clips.samples) // 8 + noise).astype(np.int16)
    loud = Clips(samples, clips.labels, clips.lengths, clips.ids, clips.classes, clips.sample_rate)
    for outcome in outcomes(victim, loud, tmp_path, name, eps, norm=norm, targeted=True):
        # In linf the budget is rounded down to whole steps of 16 bits.
        steps = outcome.row["budget_lsb"]
        lost = 20 * math.log10((steps + 1) / steps) if norm == "linf" else 0
        assert 0 <= outcome.row["snr"] - float(eps.split()[0]) + 1e-6 <= 0.002 + lost
        assert outcome.row["feasible"]


GRID = 1 / 32768


@pytest.mark.parametrize(
    ("name", "norm", "eps", "mask"),
    [
        ("pgd", "linf", "0.0002", "none"), ("pgd", "linf", "0.0025", "silence"), ("pgd", "l2", "0.3", "none"),
        ("pgd", "l1", "10", "silence"), ("pgd", "l2", "15 dB", "silence"), ("apgd", "linf", "0.0002", "silence"),
        ("apgd", "l1", "10", "none"), ("fgsm", "l2", "45 dB", "none"), 
        ("band_limited", "linf", "0.05", "none"), ("gain_mask", "l2", "0.2", "none"), ("ddn", "l2", None, "none"),
        ("snr_pgd", "l2", "30 dB", "silence"), ("random_signs", "linf", "45 dB", "silence"),
        ("cw", "l2", None, "silence"),
        ("time_shuffled", "l1", "0.5", "none"), ("fmn", "l0", None, "silence"), ("ead", "l1", None, "none"),
        ("kenansville", "l2", None, "silence"),
    ],
)  # fmt: skip
def test_the_wav_is_what_was_attacked(
    victim: Victim, clips: Clips, tmp_path: Path, name: str, norm: str, eps: str | None, mask: str
) -> None:
    """At the waveform every success is one of the written samples, within the budget and the mask in integers."""
    part, successes = padded(clips.select(range(4))), 0
    for outcome in outcomes(victim, part, tmp_path, name, eps, norm=norm, mask=mask, names=(name,)):
        row, steps = outcome.row, np.rint((outcome.x_adv.astype(float) - outcome.x) / GRID)
        assert row["prediction_stage"] == row["prediction_audio"] == row["prediction_wav"]
        assert row["success_stage"] == row["success_wav"]
        successes += row["success_wav"]
        assert row["feasible"]
        sizes = {"linf": np.abs(steps).max(), "l2": np.sqrt((steps**2).sum()), "l1": np.abs(steps).sum()}
        if eps:
            assert sizes[norm] <= row["budget_lsb"] * (1 + 1e-9)
        if norm == "linf" and eps:
            assert row["budget_lsb"] == int(row["budget_lsb"])
        if eps == "0.0002":
            assert row["budget_lsb"] == 6, "0.0002 is 6.55 steps, and 7 would exceed it"
        if mask == "silence":
            assert not steps[10000:].any()
    assert successes or eps == "0.0002" or name in ("random_signs", "time_shuffled", "fgsm", "kenansville", "square")


@pytest.mark.parametrize("stage", ["magnitude", "mel", "log_mel", "normalize"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", "55 dB"), ("l2", "55 dB"), ("l1", "0.5")])
def test_what_an_attack_made_is_feasible(
    victim: Victim, clips: Clips, tmp_path: Path, stage: str, norm: str, eps: str
) -> None:
    """Small budgets at large values, where float32 rounds by more than a share of eps."""
    for name in ("pgd", "fgsm" if norm == "l1" else "square", "random_signs"):
        keys = {"stage": stage, "norm": norm, "names": (name,)}
        for outcome in outcomes(victim, clips.select(range(4)), tmp_path, name, eps, **keys):
            assert outcome.row["feasible"], name


@pytest.mark.parametrize("inversion", ["gain_mask", "griffin_lim"])
def test_through_audio_attacks_what_the_wav_gives(victim: Victim, clips: Clips, tmp_path: Path, inversion: str) -> None:
    """The attacked model is the victim on the wav, at every point and of every part of a batch."""
    part = padded(clips.select(range(4)))
    keys = {"stage": "log_mel", "through": "audio", "mask": "silence"}
    crafter = Crafter(victim, AttackSettings(**keys), INVERSIONS[inversion], torch.device("cpu"))
    x, valid, _, z = crafter.load(part)
    chosen = torch.tensor([2, 0])
    model = narrow(crafter.attacked_model(part.ids, x, valid), chosen)
    moved = z[chosen] + 0.3 * torch.randn(z[chosen].shape, generator=torch.Generator().manual_seed(0))
    ids = tuple(part.ids[i] for i in chosen)
    wav = (crafter._to_audio(moved, x[chosen], valid[chosen], ids) * 32768).round().clamp(-32768, 32767) / 32768
    with torch.no_grad():
        torch.testing.assert_close(model(moved), victim(wav), rtol=1e-4, atol=1e-4)
    rows = [o.row for o in outcomes(victim, part, tmp_path, "pgd", "1", inversion, **keys)]
    if inversion == "gain_mask":
        plain = [o.row for o in outcomes(victim, part, tmp_path, "pgd", "1", inversion, **keys | {"through": "stage"})]
        assert sum(row["success_wav"] for row in rows) >= sum(row["success_wav"] for row in plain)
        assert any(row["success_wav"] for row in rows)


def test_through_audio_needs_an_inversion(victim: Victim) -> None:
    noisy = checkpoint.defend(victim, [{"name": "noise_at_snr", "options": {}}])
    settings = AttackSettings(through="audio", stage="magnitude")
    with pytest.raises(ValueError, match="noise_at_snr is randomized and stands before the attacked magnitude"):
        Crafter(noisy, settings, INVERSIONS["gain_mask"], torch.device("cpu"))
    with pytest.raises(ValueError, match="stage = waveform has none"):
        AttackSettings(through="audio")


def test_a_linf_budget_below_one_step_of_16_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="eps = 3e-05 is below one step of 16-bit samples"):
        AttackSettings(eps=(Budget(0.00003),))
    AttackSettings(eps=(Budget(1 / 32768), Budget(0.0)))
    AttackSettings(eps=(Budget(0.00003),), stage="magnitude")


@pytest.mark.parametrize("stage", ["waveform", "magnitude", "mel", "log_mel"])
@pytest.mark.parametrize("mask", ["padding", "silence"])
def test_silence_stays_exactly_silent(victim: Victim, clips: Clips, tmp_path: Path, stage: str, mask: str) -> None:
    short = padded(clips.select(range(6)))
    changed = 0.0
    for outcome in outcomes(victim, short, tmp_path, "random_signs", "10 dB", stage=stage, mask=mask, targeted=True):
        assert not outcome.x_adv[10000:].any()
        changed += float(np.abs(outcome.x_adv - outcome.x).max())
        assert outcome.row["feasible"]
    assert changed > 0


def test_without_a_mask_the_padding_is_used(victim: Victim, clips: Clips, tmp_path: Path) -> None:
    short = padded(clips.select(range(3)))
    crafted = outcomes(victim, short, tmp_path, "random_signs", "10 dB", mask="none", targeted=True)
    assert all(o.x_adv[10000:].any() for o in crafted)


def test_minimum_norm_attack_and_its_curve(victim: Victim, clips: Clips, tmp_path: Path) -> None:
    rows = [o.row for o in outcomes(victim, clips, tmp_path, "cw", None)]
    assert {row["eps"] for row in rows} == {"inf"}
    assert {row["norm"] for row in rows} == {"l2"}
    right = [row for row in rows if row["correct"]]
    assert sum(row["success_stage"] for row in right) >= 0.9 * len(right)
    texts = [{k: results.cell(v) for k, v in {**row, "model": "m", "checkpoint": "c"}.items()} for row in rows]
    curve = summary.points(texts)
    accuracies = [point["accuracy"] for point in curve]
    assert accuracies[0] == len(right) / len(rows)
    assert accuracies == sorted(accuracies, reverse=True)
    assert all(p["low"] <= p["accuracy"] <= p["high"] for p in curve)


def test_targets_are_other_labels_and_judged_as_such(victim: Victim, clips: Clips, tmp_path: Path) -> None:
    rows = [o.row for o in outcomes(victim, clips, tmp_path, "pgd", "0.02", targeted=True)]
    assert all(row["target"] != row["label"] and 0 <= row["target"] < 4 for row in rows)
    assert len({row["target"] for row in rows}) > 1
    for row in rows:
        assert row["success_stage"] == (row["correct"] and row["prediction_stage"] == row["target"])


def test_the_judge_does_not_trust_the_attack(
    victim: Victim, clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attack that leaves the ball gets no success from it."""

    def cheat(model, x, y, threat, *, rng, targeted):
        return -x.flip(1)

    monkeypatch.setitem(
        ATTACKS._builders,
        "random_uniform",
        registration.RegisteredAttack(registration.spec_of("random_uniform"), cheat),
    )
    rows = [o.row for o in outcomes(victim, clips, tmp_path, "random_uniform", "0.001")]
    assert not any(row["feasible"] for row in rows if row["correct"])
    assert not any(row["success_stage"] or row["success_wav"] for row in rows)


def test_inversion_only_control_and_stage_error(victim: Victim, clips: Clips, tmp_path: Path) -> None:
    rows = [o.row for o in outcomes(victim, clips, tmp_path, "random_signs", "1e-6", stage="log_mel")]
    same = [row["prediction_inversion"] == row["prediction"] for row in rows]
    assert sum(same) >= 0.9 * len(same), "a gain mask of one is the identity"
    with pytest.raises(ValueError, match="no representation 'meld'"):
        Crafter(victim, AttackSettings(stage="meld"), INVERSIONS["gain_mask"], torch.device("cpu"))


def test_counter_counts_per_example() -> None:
    counter = CallCounter.start(lambda x: x * 2, 4)
    core.gradient(counter, torch.ones(4, 3), lambda z: z.sum(1))
    part = counter.select(torch.tensor([2, 3])).select(torch.tensor([1]))
    part(torch.ones(1, 3))
    core.gradient(part, torch.ones(1, 3), lambda z: z.sum(1))
    assert counter.forwards.tolist() == [1, 1, 1, 3]
    assert counter.backwards.tolist() == [1, 1, 1, 2]


def test_sample_mask() -> None:
    x = torch.zeros(2, 1600)
    x[0, 320:640], x[0, 640:960], x[0, 960:1280] = 0.5, 0.004, 0.006
    valid = (torch.arange(1600) < 1100).expand(2, -1)
    assert sample_mask(x, valid, "none", 16000, 40) is None
    assert torch.equal(sample_mask(x, valid, "padding", 16000, 40), valid)
    silence = sample_mask(x, valid, "silence", 16000, 40)
    assert silence[0].nonzero().flatten().tolist() == [*range(320, 640), *range(960, 1100)], "0.004 is 41.9 dB below"
    assert not silence[1].any(), "a silent clip may not change at all"


@pytest.mark.parametrize("level", [2.0, 1e-3])
def test_silence_is_relative_to_the_clip(level: float) -> None:
    x = torch.zeros(1, 1600)
    x[0, 320:640], x[0, 640:960], x[0, 960:1280] = 0.5 * level, 0.004 * level, 0.006 * level
    allowed = sample_mask(x, torch.ones(1, 1600, dtype=torch.bool), "silence", 16000, 40)
    assert allowed[0].nonzero().flatten().tolist() == [*range(320, 640), *range(960, 1280)]


def test_the_last_frame_may_be_a_part_of_one() -> None:
    """Its energy is that of the samples that are there."""
    for length in (1601, 1700, 1919):
        x = torch.zeros(2, length)
        x[0, :320], x[0, 1600:], x[1, 320:640] = 0.5, 0.5, 0.5
        allowed = sample_mask(x, torch.ones(2, length, dtype=torch.bool), "silence", 16000, 40)
        assert torch.equal(allowed, x > 0), length
    short = torch.full((1, 100), 0.1)
    assert sample_mask(short, torch.ones(1, 100, dtype=torch.bool), "silence", 16000, 40).all()


def rows_of(decide: list[tuple[bool, bool]], eps: str = "0.1", attack: str = "pgd") -> Iterator[dict[str, str]]:
    """One row per (right on the clean clip, right under attack)."""
    for i, (clean, attacked) in enumerate(decide):
        row = dict.fromkeys(ATTACK_FIELDS, 0.0)
        row |= {
            "model": "m", "attack": attack, "eps": eps, "id": i, "norm": "linf", "label": 1, "prediction": int(clean),
            "correct": clean, "feasible": True, "prediction_stage": int(attacked), "prediction_wav": int(attacked),
            "prediction_inversion": 1, "success_stage": clean and not attacked, "success_wav": False,
        }  # fmt: skip
        yield {key: results.cell(value) for key, value in row.items()}


def test_table_and_points() -> None:
    decide = [(True, True)] * 6 + [(True, False)] * 3 + [(False, True)]
    (line,) = summary.table(list(rows_of(decide)))
    assert line["clean accuracy"] == 0.9
    assert line["robust accuracy"] == 0.6, "a clip that was wrong before does not count as robust"
    assert line["survival"] == 0.0
    assert line["success"] == pytest.approx(1 / 3)
    assert (line["low"], line["high"]) == summary.wilson(6, 10)
    zero, point = summary.points(list(rows_of(decide)))
    assert (zero["eps"], zero["accuracy"]) == (0.0, 0.9)
    assert (point["eps"], point["accuracy"], point["axis"]) == (0.1, 0.6, "linf")
    (in_db,) = summary.points(list(rows_of(decide, "20 dB")))
    assert (in_db["axis"], in_db["eps"]) == ("SNR", 20.0)


@pytest.mark.parametrize("prediction", [-1, 0, 1])
def test_a_prediction_that_is_no_number_counts_the_same_everywhere(prediction: int) -> None:
    """The share of clips that are right and the share of successes add up, whatever the prediction."""
    (row,) = rows_of([(True, True)])
    row |= {"prediction_stage": str(prediction), "prediction_wav": str(prediction)}
    facts = {"correct": True, "feasible": True, "label": 1, "target": -1, "prediction_stage": prediction}
    row["success_stage"] = row["success_wav"] = results.cell(succeeds(facts, "stage", targeted=False))
    (line,) = summary.table([row])
    assert line["robust accuracy"] == line["on wav"] == 1 - line["success"] == float(prediction != 0)


def test_wilson() -> None:
    assert summary.wilson(0, 20)[0] == 0
    assert summary.wilson(20, 20)[1] == 1
    low, high = summary.wilson(50, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)


def test_attack_section_refuses_what_cannot_work() -> None:
    with pytest.raises(ValueError, match="dB"):
        AttackSettings(names=("pgd",), norm="l1", eps=(Budget(20, True),))
    with pytest.raises(ValueError, match="choices: linf, l2, l1"):
        AttackSettings(names=("pgd",), norm="l0")
    assert AttackSettings(names=("cw",), norm="linf").norm == "linf"


def test_streams_of_an_evaluation_are_seeded(victim: Victim, clips: Clips, tmp_path: Path) -> None:
    few = clips.select(range(4))
    first, same, other = (
        [o.x_adv for o in outcomes(victim, few, tmp_path, "random_signs", "0.01", seed=seed, targeted=True)]
        for seed in (0, 0, 1)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_threat_uses_the_mask_of_its_stage(victim: Victim, clips: Clips) -> None:
    crafter = Crafter(victim, AttackSettings(stage="log_mel"), INVERSIONS["gain_mask"], torch.device("cpu"))
    x, valid, _, z = crafter.load(padded(clips))
    threat = crafter.threat(x, z, valid, "pgd", Budget(0.1))
    assert threat.mask.shape == (16, 1, z.shape[-1])
    assert 0.5 < float(threat.mask.float().mean()) < 0.75


def test_a_judge_with_classes_in_another_order_gives_the_labels_of_the_attacked_model(
    victim: Victim, clips: Clips
) -> None:
    class Reordered(torch.nn.Module):
        def __init__(self, classifier: torch.nn.Module):
            super().__init__()
            self.classifier = classifier

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = self.classifier(x)
            impossible = torch.full_like(logits[:, :1], -1e9)
            return torch.cat([logits[:, [2]], impossible, logits[:, [0, 3, 1]]], 1)

    names = [clips.classes[k] for k in (2, 0, 3, 1)]
    other = Victim(
        list(victim.stages),  # type: ignore[arg-type]
        Reordered(victim.classifier),  # type: ignore[arg-type]
        classes=[names[0], "extra", *names[1:]], sample_rate=victim.sample_rate, n_samples=victim.n_samples,
    )  # fmt: skip
    expected = Judge(victim, torch.device("cpu")).labels(clips, clips.classes)
    assert Judge(other, torch.device("cpu")).labels(clips, clips.classes) == expected
    # A class that the attacked model does not know is a label of its own, no label of another class and no NaN.
    few = clips.classes[:2]
    labels = Judge(victim, torch.device("cpu")).labels(clips, few)
    assert [k if k < 2 else len(few) + k for k in expected] == labels
