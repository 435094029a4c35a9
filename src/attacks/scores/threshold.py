"""What an attacker who is not told a recogniser's threshold can learn about it: FAKEBOB's estimate (Chen et al. 2021).
A recogniser that rejects has the logits [s_1 .. s_N, theta]; the attacker sees the scores s and whether one is
accepted, never theta."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.core import Best
from src.attacks.model import Model
from src.attacks.scores.estimated_gradient import estimate
from src.attacks.scores.plateau import Plateau
from src.random_streams import RandomStreams
from src.threat import ThreatModel, column

RAISE = 0.1
"""A candidate is this share of the first score above the last one."""


def with_threshold(logits: Tensor, theta: Tensor) -> Tensor:
    """The logits [batch, N + 1] with another threshold [batch] in the last column."""
    return torch.cat([logits[:, :-1], theta[:, None].to(logits)], 1)


def estimated_threshold(
    model: Model,
    x: Tensor,
    *,
    bounds: tuple[float, float],
    rng: RandomStreams,
    sigma: float = 0.001,
    pairs: int = 25,
    learning_rate: float = 0.001,
    least_rate: float = 1e-6,
    momentum: float = 0.9,
    patience: int = 5,
    iterations: int = 200,
) -> Tensor:
    """An estimate of the threshold from each clip, [batch]: the score at which an attack without a budget got the clip
    accepted. It begins with the candidate max(s) + 0.1 |max(s)|, climbs until the clip is accepted, and raises the
    candidate by the same step wherever that is passed without acceptance. The estimate is at least the threshold where
    a clip was accepted, at once perhaps; elsewhere it is the highest candidate that was looked at.

    Args:
        x: clips that should be rejected (imposters), [batch, ...].
        bounds: lowest and highest legal value.
        iterations: largest number of steps per clip, of 2 * pairs + 1 queries each.

    The other arguments are those of `fakebob`.
    """
    threat = ThreatModel("linf", float("inf"), bounds)
    nobody = torch.zeros(len(x), dtype=torch.long, device=x.device)  # the label decides nothing here
    batch = ActiveBatch(model, x, nobody, threat, rng, targeted=False, best=Best.of(x))
    result, x_adv = x.new_zeros(len(x)), x.clone()
    candidate = step = x.new_zeros(len(x))
    velocity, plateau = torch.zeros_like(x), Plateau.of(x, learning_rate, least_rate, patience)

    def highest(x: Tensor) -> Tensor:
        return batch.model(x)[:, :-1].amax(1)

    for iteration in range(iterations + 1):
        logits = batch.model(x_adv)
        score = logits[:, :-1].amax(1)
        accepted = logits.argmax(1) != logits.shape[1] - 1
        if iteration == 0:
            step = RAISE * score.abs()
            candidate = score + step
        candidate = torch.where(~accepted & (score > candidate), candidate + step, candidate)
        result[batch.index] = torch.where(accepted, score, candidate)
        x_adv, candidate, step, velocity, plateau = batch.keep(~accepted, x_adv, candidate, step, velocity, plateau)
        if not len(batch) or iteration == iterations:
            break
        size = x_adv.new_full((len(batch),), sigma)
        grad, level = estimate(batch, x_adv, RandomStreams.normal, size, pairs, highest)
        velocity = momentum * velocity + (1 - momentum) * grad
        x_adv = threat.clip(x_adv + column(plateau.rate, x_adv) * velocity.sign(), batch.x)
        plateau = plateau.observe(level)
    return result
