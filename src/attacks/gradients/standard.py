"""The evaluations to run by default: complementary attacks in the order of their cost, each only on the examples that
all earlier ones failed to fool, as in AutoAttack (Croce and Hein 2020). Steps that fall from eps to 0 along a cosine
find most of what is to be found in 20 passes. They run towards the likeliest other class; what still stands falls to
other directions: momentum, another loss, the next likeliest classes. Restarts, a second attack towards the likeliest
class, minimum-norm attacks and black-box queries after these found nothing more on validation clips of our models."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from src.attacks.active_batch import ActiveBatch, Objective
from src.attacks.core import Best, attack, finite_budgets, likeliest_others
from src.attacks.gradients.apgd import maximize, towards
from src.attacks.gradients.pgd import climb
from src.attacks.model import Model
from src.losses import cross_entropy, margin
from src.random_streams import RandomStreams
from src.registry import Count, Natural
from src.threat import ThreatModel


@attack("standard", kind="budget", norms=("linf", "l2", "l1"), access="gradients")
def standard(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    steps: Count = 20,
    momentum_steps: Natural = 40,
    entropy_steps: Natural = 60,
    apgd_steps: Count = 80,
    targets: Natural = 2,
) -> Tensor:
    """The evaluation to run: margin steps that decay, the same with momentum, APGD on the cross-entropy, then targeted
    APGD towards the next likeliest classes.

    Args:
        steps: of the first attack.
        momentum_steps: of the second, with momentum 0.75; 0 leaves it out.
        entropy_steps: of APGD on the cross-entropy; 0 leaves it out.
        apgd_steps: of APGD for each class; with a target, of one APGD towards it.
        targets: classes that APGD aims at, from the second likeliest other class on.
    """
    batch, best = _first(model, x, y, threat, rng, targeted, steps)
    if momentum_steps:
        climb(_again(batch, best), y, steps=momentum_steps, momentum=0.75, objective=_margin(targeted))
    if entropy_steps:
        maximize(
            _again(batch, best), y, random_start=True, steps=entropy_steps, early_exit=True,
            objective=lambda logits, y, _: cross_entropy(logits, y, targeted),
        )  # fmt: skip
    for target in _aims(batch, targets):
        maximize(
            _again(batch, best), target, random_start=True, steps=apgd_steps, early_exit=True,
            objective=_margin(True) if targeted else towards,
        )  # fmt: skip
    return best.x


@attack("quick", kind="budget", norms=("linf", "l2", "l1"), access="gradients")
def quick(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    steps: Count = 20,
    targets: Natural = 2,
) -> Tensor:
    """A first impression at a quarter of the cost of `standard`: the same decaying steps, untargeted and targeted.

    Args:
        steps: of every run.
        targets: classes that runs of their own aim at, from the second likeliest other class on.
    """
    batch, best = _first(model, x, y, threat, rng, targeted, steps)
    for target in _aims(batch, targets):
        climb(_again(batch, best), target, steps=steps, objective=_margin(True) if targeted else towards)
    return best.x


def _first(
    model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: RandomStreams, targeted: bool, steps: int
) -> tuple[ActiveBatch, Best]:
    """All examples after decaying margin steps from x, and the best iterate of each."""
    threat, best = replace(threat, eps=finite_budgets(threat, x)), Best.of(x)
    batch = ActiveBatch(model, x, y, threat, rng, targeted, best)
    climb(_again(batch, best), y, steps=steps, objective=_margin(targeted))
    return batch, best


def _again(batch: ActiveBatch, best: Best) -> ActiveBatch:
    """The examples for another attack, whose failures are ranked afresh: objectives differ."""
    best.value.fill_(-float("inf"))
    return ActiveBatch(batch.model, batch.x, batch.y, batch.threat, batch.rng, batch.targeted, best)


def _aims(batch: ActiveBatch, targets: int) -> tuple[Tensor, ...]:
    """The classes [batch] that the further attacks aim at, one after the other."""
    if batch.targeted:
        return (batch.y,) if targets else ()
    return likeliest_others(batch.model, batch.x, batch.y)[:, 1 : 1 + targets].unbind(1)


def _margin(targeted: bool) -> Objective:
    return lambda logits, y, _: margin(logits, y, targeted)
