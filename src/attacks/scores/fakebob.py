"""FAKEBOB (Chen et al. 2021), the black-box attack on speaker recognition, with its published parameters in units of
the waveform: natural evolution strategies with antithetic probes, momentum, signed steps, and a step size that is
halved per example on a plateau. `nes` is the same search in units of eps."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.model import Model, succeeds
from src.attacks.registration import attack
from src.attacks.scores.estimated_gradient import estimate
from src.attacks.scores.plateau import Plateau
from src.attacks.scores.threshold import estimated_threshold, with_threshold
from src.losses import margin
from src.random_streams import RandomStreams
from src.registry import Count, Fraction, NonNegative, Positive
from src.threat import ThreatModel, column


@attack("fakebob", kind="budget", norms=("linf",), access="scores", stages="waveform")
def fakebob(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    iterations: Count = 200,
    pairs: Count = 25,
    sigma: Positive = 0.001,
    learning_rate: Positive = 0.001,
    least_rate: Positive = 1e-6,
    momentum: Fraction = 0.9,
    patience: Count = 5,
    confidence: NonNegative = 0.0,
    threshold: Literal["known", "estimated"] = "known",
) -> Tensor:
    """Signed steps along a gradient estimated from scores, in units of the waveform.

    Args:
        iterations: largest number of steps, each of 2 * pairs + 1 queries; published 1000, in the tables 200.
        pairs: antithetic pairs of probes per step (the 50 samples of the paper).
        sigma: standard deviation of the probes.
        learning_rate: initial step size.
        least_rate: smallest step size.
        momentum: weight of the previous direction.
        patience: values of the mean objective of which the first and the last decide whether the step size is halved.
        confidence: margin at which an example stops.
        threshold: estimated: the last logit is a recogniser's threshold, which the attacker is not told; it is
            estimated from the clip where that is rejected, else from noise as loud as it, by up to as many steps again.
    """
    theta = None
    if threshold == "estimated":
        theta = _estimated(
            model, x, threat, rng, sigma=sigma, pairs=pairs, learning_rate=learning_rate, least_rate=least_rate,
            momentum=momentum, patience=patience, iterations=iterations,
        )  # fmt: skip
    batch = ActiveBatch(model, x, y, threat, rng, targeted)
    x_adv, velocity = x.clone(), torch.zeros_like(x)
    plateau = Plateau.of(x, learning_rate, least_rate, patience)

    def value(logits: Tensor) -> Tensor:
        seen = logits if theta is None else with_threshold(logits, theta)
        return margin(seen, batch.y, targeted).nan_to_num(nan=-torch.inf)

    for iteration in range(iterations + 1):
        logits = batch.model(x_adv)
        success = succeeds(batch.model, x_adv, logits, batch.y, targeted)
        objective = value(logits)
        batch.best.update(x_adv, objective, success, first=not confidence)
        done = success & (objective > confidence) if confidence else success
        x_adv, velocity, plateau, theta = batch.keep(~done, x_adv, velocity, plateau, theta)
        if not len(batch) or iteration == iterations:
            break
        size = x_adv.new_full((len(batch),), sigma)
        grad, level = estimate(
            batch, x_adv, RandomStreams.normal, size, pairs, lambda probe: value(batch.model(probe))
        )  # fmt: skip
        velocity = momentum * velocity + (1 - momentum) * grad
        x_adv = batch.threat.project(x_adv + column(plateau.rate, x_adv) * velocity.sign(), batch.x)
        plateau = plateau.observe(level)
    return batch.finish()


def _estimated(model: Model, x: Tensor, threat: ThreatModel, rng: RandomStreams, **options: float) -> Tensor:
    """`estimated_threshold` from each clip of x that is rejected, and else from white noise as loud as the clip."""
    noise = rng.normal(x) * column(x.flatten(1).square().mean(1).sqrt(), x)
    logits = model(x)
    rejected = logits.argmax(1) == logits.shape[1] - 1
    start = torch.where(column(rejected, x), x, noise.clamp(*threat.bounds))
    return estimated_threshold(model, start, bounds=threat.bounds, rng=rng, **options)  # type: ignore[arg-type]
