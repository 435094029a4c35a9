"""FAKEBOB against an independent loop, its queries, its plateau per example, and what it may know of a threshold."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from src.attacks.scores.plateau import Plateau
from src.attacks.scores.threshold import RAISE, estimated_threshold
from src.evaluation.call_counter import CallCounter
from src.losses import fooled, margin
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel

ENTRIES, BATCH, SPEAKERS = 40, 5, 3
FAKEBOB = ATTACKS["fakebob"]
KEYS = {"pairs": 4, "sigma": 0.02, "learning_rate": 0.02, "least_rate": 1e-4, "iterations": 60}


class Recognizer:
    """Scores of speakers and a threshold, [s_1 .. s_N, theta], linear in the clip; sums per example.

    Args:
        theta: the threshold.
        coded: the last logit tells the decision and nothing more.
    """

    def __init__(self, theta: float = 0.5, coded: bool = False):
        generator = torch.Generator().manual_seed(1)
        self.w = torch.randn(SPEAKERS, ENTRIES, generator=generator)
        self.theta, self.coded, self.clips = theta, coded, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.clips += len(x)
        scores = torch.stack([(self.w * row).sum(1) for row in x])
        theta = torch.full((len(x), 1), self.theta)
        if self.coded:
            theta = torch.where(scores.amax(1, keepdim=True) > theta, -1e9, 1e9)
        return torch.cat([scores, theta], 1)


def clips(seed: int = 2, batch: int = BATCH) -> Tensor:
    return 0.1 * torch.randn(batch, ENTRIES, generator=torch.Generator().manual_seed(seed))


def streams(batch: int = BATCH) -> RandomStreams:
    return RandomStreams(0, [str(i) for i in range(batch)], "fakebob")


def run(model: object, x: Tensor, y: Tensor, eps: float = 0.2, targeted: bool = False, **keys: object) -> Tensor:
    threat = ThreatModel("linf", eps, (-1.0, 1.0))
    return FAKEBOB(model, x, y, threat, rng=streams(len(x)), targeted=targeted, **{**KEYS, **keys})


def reference(model: Recognizer, x: Tensor, y: int, eps: float, iterations: int) -> tuple[Tensor, list[float]]:
    """The published loop for one clip, written down once more: (result, learning rates)."""
    rng, label = RandomStreams(0, ["0"], "fakebob"), torch.tensor([y])
    x_adv, velocity, rate = x.clone(), torch.zeros_like(x), 0.02
    losses: list[float] = []
    rates = []
    for _ in range(iterations):
        if -margin(model(x_adv), label) < 0:
            break
        total, mean = torch.zeros_like(x), 0.0
        for _ in range(4):
            noise = rng.normal(x)
            for sign in (1, -1):
                loss = float(-margin(model((x_adv + sign * 0.02 * noise).clamp(-1, 1)), label))
                total += loss * sign * noise
                mean += loss / 8
        velocity = 0.9 * velocity + 0.1 * total
        x_adv = (x_adv - rate * velocity.sign()).clamp(x - eps, x + eps).clamp(-1, 1)
        losses = [*losses, mean][-5:]
        if len(losses) == 5 and losses[-1] > losses[0]:
            rate, losses = max(rate / 2, 1e-4), []
        rates.append(rate)
    return x_adv, rates


@pytest.mark.parametrize(("eps", "iterations"), [(0.2, 60), (0.01, 40)])
def test_it_is_the_published_loop(eps: float, iterations: int) -> None:
    model, x = Recognizer(theta=-1e9), clips(batch=1)
    y = model(x).argmax(1)
    expected, rates = reference(model, x, int(y), eps, iterations)
    x_adv = run(model, x, y, eps, iterations=iterations)
    if eps == 0.2:
        torch.testing.assert_close(x_adv, expected)
        assert fooled(model(x_adv), y).all()
    else:  # it fails, and returns the best iterate instead of the last
        assert rates[-1] < 0.02, "the plateau is reached, so that this compares the halving too"
        assert margin(model(x_adv), y) >= margin(model(expected), y)


def test_queries_are_counted_and_limited() -> None:
    model, x = Recognizer(theta=-1e9), clips()
    y = model(x).argmax(1)
    y[1] = (y[1] + 1) % SPEAKERS
    counter = CallCounter.start(model, BATCH)
    threat = ThreatModel("linf", 1e-4, (-1.0, 1.0))
    FAKEBOB(counter, x, y, threat, rng=streams(), targeted=False, **KEYS | {"iterations": 3})
    assert counter.forwards.tolist() == [1 + 3 * 9, 1, *[1 + 3 * 9] * 3], "a success costs its one clean query"
    assert counter.backwards.sum() == 0


def test_defaults_are_those_published() -> None:
    keys = {key.name: key.default for key in ATTACKS.keys("fakebob")}
    assert keys["pairs"] * 2 == 50
    assert [keys[name] for name in ("sigma", "momentum", "learning_rate", "least_rate", "patience")] == [
        0.001, 0.9, 0.001, 1e-6, 5
    ]  # fmt: skip


def test_confidence_goes_on_until_the_margin() -> None:
    model, x = Recognizer(theta=-1e9), clips()
    y = model(x).argmax(1)
    first, sure = run(model, x, y), run(model, x, y, confidence=2.0)
    assert (margin(model(first), y) > 0).all()
    assert (margin(model(sure), y) > 2.0).all()
    assert (margin(model(first), y) < 2.0).any()
    never = run(model, x, y, confidence=1e6)
    assert fooled(model(never), y).all(), "a success below the confidence is still returned"


@pytest.mark.parametrize("targeted", [False, True])
def test_threshold_as_a_logit_both_ways(targeted: bool) -> None:
    """An imposter gets in, an enrolled speaker gets out."""
    model, x = Recognizer(theta=1.5), clips(seed=4, batch=12)
    label = model(x).argmax(1)
    assert (label == SPEAKERS).any()
    assert (label != SPEAKERS).any()
    aim = torch.where(label == SPEAKERS, 0, SPEAKERS)
    x_adv = run(model, x, aim if targeted else label, eps=0.5, targeted=targeted)
    reached = model(x_adv).argmax(1)
    assert (reached == aim).all() if targeted else (reached != label).all()


def test_a_plateau_is_the_examples_own() -> None:
    state = Plateau.of(torch.zeros(3, 1), 0.8, 0.3, patience=3)
    rising, falling = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    flat, rates = [1.0] * 7, []
    for values in zip(rising, falling, flat, strict=True):
        state = state.observe(torch.tensor(values))
        rates.append(state.rate.tolist())
    rates_of = [[round(rate[i], 3) for rate in rates] for i in range(3)]
    assert rates_of[0] == [0.8] * 7
    assert rates_of[1] == [0.8, 0.8, 0.4, 0.4, 0.4, 0.3, 0.3], "after a halving the history starts anew"
    assert rates_of[2] == [0.8] * 7
    assert state.select(torch.tensor([1])).rate.tolist() == pytest.approx([0.3])


def test_the_batch_changes_nothing() -> None:
    model, x = Recognizer(theta=0.5), clips()
    y = model(x).argmax(1)
    together = run(model, x, y, eps=0.02, threshold="estimated")
    for i in range(BATCH):
        rng = RandomStreams(0, [str(i)], "fakebob")
        threat = ThreatModel("linf", 0.02, (-1.0, 1.0))
        keys = {**KEYS, "threshold": "estimated"}
        alone = FAKEBOB(model, x[i : i + 1], y[i : i + 1], threat, rng=rng, targeted=False, **keys)
        torch.testing.assert_close(alone, together[i : i + 1])


def estimate(model: Recognizer, x: Tensor, **keys: object) -> Tensor:
    return estimated_threshold(
        model, x, bounds=(-1.0, 1.0), rng=streams(len(x)), **{**KEYS, **keys}
    )  # fmt: skip


@pytest.mark.parametrize("theta", [-0.5, 0.5, 2.0, 6.0])
def test_the_estimate_is_just_above_the_threshold(theta: float) -> None:
    model, x = Recognizer(theta), clips() - 0.05 * Recognizer().w.sum(0).sign()
    start = model(x)[:, :-1].amax(1)
    assert (start < theta).any()
    found = estimate(model, x, iterations=300)
    assert (found >= theta).all(), "what was accepted scored above the threshold"
    rejected = start < theta
    climb = 0.02 * model.w.abs().sum(1).max()  # what one step can add to a score
    assert (found[rejected] <= theta + climb).all()
    torch.testing.assert_close(found[~rejected], start[~rejected])


def test_candidates_rise_where_nothing_is_accepted() -> None:
    model, x = Recognizer(theta=1e6), clips()
    start = model(x)[:, :-1].amax(1)
    found = estimate(model, x, iterations=20)
    steps = (found - start) / (RAISE * start.abs())
    assert (steps >= 1 - 1e-4).all()
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-2)
    assert estimate(Recognizer(theta=1e6), x, iterations=60).sum() > found.sum()


def test_only_scores_and_decisions_are_looked_at() -> None:
    """A last logit that tells no more than the decision gives the same estimate and the same attack."""
    x = clips()
    assert torch.equal(estimate(Recognizer(2.0), x), estimate(Recognizer(2.0, coded=True), x))
    y = Recognizer(2.0)(x).argmax(1)
    told = run(Recognizer(2.0), x, y, threshold="estimated")
    coded = run(Recognizer(2.0, coded=True), x, y, threshold="estimated")
    assert torch.equal(told, coded)
    assert fooled(Recognizer(2.0)(told), y).float().mean() >= 0.8, "and it still gets in or out"
    assert not torch.equal(run(Recognizer(2.0), x, y), run(Recognizer(2.0, coded=True), x, y)), "knowing it is more"


def test_the_queries_of_the_estimate_are_counted() -> None:
    x = clips()
    y = Recognizer(2.0)(x).argmax(1)
    counts = []
    for threshold in ("known", "estimated"):
        counter = CallCounter.start(Recognizer(2.0), BATCH)
        threat = ThreatModel("linf", 0.2, (-1.0, 1.0))
        FAKEBOB(counter, x, y, threat, rng=streams(), targeted=False, **KEYS, threshold=threshold)
        counts.append(int(counter.forwards.sum()))
    assert counts[1] > counts[0] + 2 * BATCH


def test_an_unbounded_search_stays_legal() -> None:
    asked: list[float] = []
    model = Recognizer(1e6)
    estimated_threshold(
        lambda x: asked.append(float(x.abs().max())) or model(x), clips(), bounds=(-0.3, 0.3), rng=streams(),
        iterations=10, pairs=2, sigma=0.2, learning_rate=0.2,
    )  # fmt: skip
    assert max(asked[1:]) <= 0.3 + 1e-6 or max(asked[1:]) <= float(clips().abs().max())
    assert math.isfinite(max(asked))
