"""Carlini and Wagner's smallest linf perturbation (2017): minimize the mean excess of |delta| over a level tau plus
c * max(0, -margin), starting from the previous solution; a success lowers tau below its norm, a failure raises c.
Lengths are in units of the linf distance that the first gradient predicts, margins in units of the clean margin."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attacks.minimum_norm.search import Search, minimize
from src.attacks.model import Model
from src.attacks.registration import attack
from src.random_streams import RandomStreams
from src.registry import Count, Fraction, Natural, Positive
from src.threat import ThreatModel, column


@attack("cw_linf", kind="minimum_norm", norms=("linf",), access="gradients")
def cw_linf(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    rounds: Count = 20,
    steps: Count = 10,
    learning_rate: Positive = 0.1,
    initial_c: Positive = 2.0,
    decay: Fraction = 0.9,
    shrink_steps: Natural = 10,
) -> Tensor:
    """Smallest linf perturbation, by a penalty above a decreasing level.

    Args:
        rounds: levels tried.
        steps: Adam steps per level.
        learning_rate: of Adam, in units of the level.
        initial_c: initial weight of the misclassification term.
        decay: the next level is this share of the smallest success.
        shrink_steps: forward passes of the final bisection.
    """

    def search(batch: Search) -> None:
        scale, clean = column(batch.reach, x), batch.value.abs().clamp_min(1e-12)
        entries = x[0].numel()
        tau, c = torch.full_like(batch.reach, 1.0), torch.full_like(batch.reach, initial_c)
        delta = torch.zeros_like(batch.x)
        for _ in range(rounds):
            # The excess over the new level is clipped after a success: the penalty would take many steps to remove it.
            delta = delta.clamp(-column(tau, x), column(tau, x))
            succeeded = torch.zeros_like(batch.best.success)
            first, second = torch.zeros_like(delta), torch.zeros_like(delta)
            for iteration in range(steps):
                x_adv = batch.threat.clip(batch.x + delta * scale, batch.x)
                grad, value, success = batch.probe(x_adv)
                succeeded |= success
                # Both terms have the gradient size of a sum over entries, so c = 1 balances a linear model.
                attraction = entries * c * batch.reach / clean * (value <= batch.goal)
                excess_sign = delta.sign() * (delta.abs() > column(tau, x))
                slope = excess_sign - column(attraction, x) * grad
                first.mul_(0.9).add_(slope, alpha=0.1)
                second.mul_(0.999).addcmul_(slope, slope, value=0.001)
                direction = (first / (1 - 0.9 ** (iteration + 1))) / (
                    (second / (1 - 0.999 ** (iteration + 1))).sqrt() + 1e-12
                )
                delta = batch.threat.masked(delta - learning_rate * column(tau, x) * direction)
            smallest = (batch.size() / batch.reach).minimum(tau)
            tau = torch.where(succeeded, decay * smallest, torch.where(batch.best.success, tau, tau * 1.5))
            c = torch.where(succeeded, c, c * 2)

    return minimize(model, x, y, threat, rng, targeted, search, shrink_steps)
