"""Predicted labels as the judge counts them: one pass of a deterministic model, a vote over many draws of a randomized
one. A single draw would decide by chance about a clip on the decision boundary."""

from __future__ import annotations

import torch
from torch import Tensor

from src.random_streams import RandomStreams
from src.victims.adaptive import VOTES, is_randomized, once
from src.victims.chain import Chain


def ask(chain: Chain, x: Tensor, rng: RandomStreams) -> tuple[Tensor, Tensor]:
    """(labels of every draw, [draws, batch]; -1 where the logits are not finite numbers; mean over the draws of the
    class probabilities, [batch, classes])."""
    with torch.no_grad():
        logits = torch.stack([once(chain, x, rng) for _ in range(VOTES if is_randomized(chain) else 1)])
    return torch.where(logits.isfinite().all(2), logits.argmax(2), -1), logits.softmax(2).mean(0)


def ballots(chain: Chain, x: Tensor, rng: RandomStreams) -> Tensor:
    """The labels of `ask`."""
    return ask(chain, x, rng)[0]


def probability_of(labels: Tensor, probabilities: Tensor) -> Tensor:
    """Probability of one class per example, [batch]; NaN where there is none, -1.

    Args:
        labels: [batch].
        probabilities: [batch, classes].
    """
    chosen = probabilities.gather(1, labels.clamp_min(0)[:, None])[:, 0]
    return torch.where(labels >= 0, chosen, torch.nan)


def majority(labels: Tensor) -> Tensor:
    """The most frequent label of each example, [draws, batch] -> [batch]; the smallest of those that tie."""
    return labels.mode(0).values


def predicted_labels(chain: Chain, x: Tensor, rng: RandomStreams) -> Tensor:
    """Labels [batch] by the majority of the draws; -1 where the logits are not finite numbers."""
    return majority(ballots(chain, x, rng))
