"""The evaluations to run by default: complementary attacks in the order of their cost, each only on the examples that
all earlier ones failed to fool, as in AutoAttack (Croce and Hein 2020). Steps that fall from eps to 0 along a cosine
find most of what is to be found in 20 passes; a robust model then takes targeted attacks towards its likeliest other
classes. Restarts, momentum and black-box queries after these stages found nothing more on our models."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.core import Best, attack, finite_budgets, likeliest_others
from src.attacks.gradients.apgd import maximize, towards
from src.attacks.gradients.pgd import climb
from src.attacks.model import Model
from src.losses import margin
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
    apgd_steps: Count = 80,
    targets: Natural = 3,
) -> Tensor:
    """The evaluation to run: margin steps that decay, then targeted APGD towards the likeliest other classes.

    Args:
        steps: of the first attack.
        apgd_steps: of APGD for each class; with a target, of one APGD towards it.
        targets: other classes that APGD tries, the likeliest first.
    """
    batch, best = _first(model, x, y, threat, rng, targeted, steps)
    for target in _aims(batch, targets):
        maximize(
            _again(batch, best), target, random_start=True, steps=apgd_steps, early_exit=True,
            objective=_targeted_margin if targeted else towards,
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
    targets: Natural = 3,
) -> Tensor:
    """A first impression at a quarter of the cost of `standard`: the same decaying steps, untargeted and targeted.

    Args:
        steps: of every run.
        targets: other classes that runs of their own aim at, the likeliest first.
    """
    batch, best = _first(model, x, y, threat, rng, targeted, steps)
    for target in _aims(batch, targets):
        climb(_again(batch, best), target, steps=steps, objective=_targeted_margin if targeted else towards)
    return best.x


def _first(
    model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: RandomStreams, targeted: bool, steps: int
) -> tuple[ActiveBatch, Best]:
    """All examples after decaying margin steps from x, and the best iterate of each."""
    threat, best = replace(threat, eps=finite_budgets(threat, x)), Best.of(x)
    batch = ActiveBatch(model, x, y, threat, rng, targeted, best)
    climb(
        _again(batch, best), y, steps=steps,
        objective=lambda logits, y, _: margin(logits, y, targeted),
    )  # fmt: skip
    return batch, best


def _again(batch: ActiveBatch, best: Best) -> ActiveBatch:
    """The examples for another attack, whose failures are ranked afresh: objectives differ."""
    best.value.fill_(-float("inf"))
    return ActiveBatch(batch.model, batch.x, batch.y, batch.threat, batch.rng, batch.targeted, best)


def _aims(batch: ActiveBatch, targets: int) -> tuple[Tensor, ...]:
    """The classes [batch] that the further attacks aim at, one after the other."""
    if batch.targeted:
        return (batch.y,) if targets else ()
    return likeliest_others(batch.model, batch.x, batch.y)[:, :targets].unbind(1)


def _targeted_margin(logits: Tensor, y: Tensor, _: Tensor) -> Tensor:
    return margin(logits, y, True)
