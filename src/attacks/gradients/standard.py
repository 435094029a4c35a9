"""The evaluations to run by default: complementary attacks in the order of their cost, each only on the examples that
all earlier ones failed to fool, as in AutoAttack (Croce and Hein 2020). Steps that fall from eps to 0 along a cosine
find most of what is to be found in 20 passes. They run towards the likeliest other class; what still stands falls to
other directions: the next likeliest classes, momentum, other losses. The combinations were chosen on validation clips
of our models, where restarts, more targets, minimum-norm attacks and black-box queries found nothing beyond them."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from src.attacks.active_batch import ActiveBatch, Objective
from src.attacks.core import Best, finite_budgets, likeliest_others
from src.attacks.gradients.apgd import maximize, towards
from src.attacks.gradients.pgd import climb
from src.attacks.model import Model
from src.attacks.registration import attack
from src.losses import LOSSES, LossName
from src.random_streams import RandomStreams
from src.registry import Count, Natural
from src.threat import ThreatModel

MOMENTUM = 0.75


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
    apgd_steps: Count = 70,
    targets: Natural = 2,
) -> Tensor:
    """The evaluation to run: margin steps that decay, the same towards further classes and with momentum, then APGD on
    DLR, on the cross-entropy, and towards the second likeliest other class.

    Args:
        steps: of each run with decaying steps; the one with momentum has twice as many.
        apgd_steps: of each run of APGD.
        targets: classes that runs of their own aim at, from the second likeliest other class on: the second by APGD,
            those after it by decaying steps. A target leaves them out.
    """
    ensemble = Ensemble(model, x, y, threat, rng, targeted)
    aims = ensemble.aims(targets)
    ensemble.decaying("margin", steps)
    for target in aims[1:]:
        ensemble.towards(target, steps)
    ensemble.decaying("margin", 2 * steps, momentum=MOMENTUM)
    ensemble.adaptive("dlr" if ensemble.has_dlr else "margin", apgd_steps)
    ensemble.adaptive("cross_entropy", apgd_steps)
    for target in aims[:1]:
        ensemble.adaptive_towards(target, apgd_steps)
    return ensemble.best.x


@attack("quick", kind="budget", norms=("linf", "l2", "l1"), access="gradients")
def quick(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    steps: Count = 18,
    targets: Natural = 2,
) -> Tensor:
    """A first impression at a quarter of the cost of `standard`: decaying steps with momentum, towards further classes
    and on the cross-entropy.

    Args:
        steps: of every run.
        targets: classes that runs of their own aim at, from the second likeliest other class on. A target leaves them
            out.
    """
    ensemble = Ensemble(model, x, y, threat, rng, targeted)
    aims = ensemble.aims(targets)
    ensemble.decaying("margin", steps, momentum=MOMENTUM)
    for target in aims:
        ensemble.towards(target, steps)
    ensemble.decaying("cross_entropy", steps)
    return ensemble.best.x


class Ensemble:
    """Attacks one after the other, each on the examples that still stand.

    Args:
        model, x, y, threat, rng, targeted: as an attack gets them.

    Attributes:
        best: the best iterate of each example.
        others: the classes other than y [batch, classes - 1], the likeliest first; None where there is a target.
    """

    def __init__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: RandomStreams, targeted: bool):
        self.best = Best.of(x)
        self.whole = ActiveBatch(model, x, y, replace(threat, eps=finite_budgets(threat, x)), rng, targeted, self.best)
        self.others = None if targeted else likeliest_others(model, x, y)

    @property
    def has_dlr(self) -> bool:
        """Whether the DLR loss is defined: without a target it takes three classes; with one, four, and the margin is
        taken instead."""
        return self.others is not None and self.others.shape[1] >= 2

    def aims(self, targets: int) -> tuple[Tensor, ...]:
        """That many classes [batch] from the second likeliest other class on; none where there is a target. The
        likeliest is where the margin leads anyway."""
        return () if self.others is None else self.others[:, 1 : 1 + targets].unbind(1)

    def decaying(self, loss: LossName, steps: int, momentum: float = 0.0) -> None:
        """Steps from x that fall from eps to 0."""
        climb(self._again(), self.whole.y, steps=steps, momentum=momentum, objective=self._on(loss))

    def towards(self, target: Tensor, steps: int) -> None:
        """The same towards the classes `target` [batch]."""
        climb(self._again(), target, steps=steps, objective=towards)

    def adaptive(self, loss: LossName, steps: int) -> None:
        """APGD from a random start."""
        maximize(self._again(), self.whole.y, random_start=True, steps=steps, early_exit=True, objective=self._on(loss))

    def adaptive_towards(self, target: Tensor, steps: int) -> None:
        """The same towards the classes `target` [batch]."""
        maximize(self._again(), target, random_start=True, steps=steps, early_exit=True, objective=towards)

    def _on(self, loss: LossName) -> Objective:
        return lambda logits, y, _: LOSSES[loss](logits, y, self.whole.targeted)

    def _again(self) -> ActiveBatch:
        """The examples for another attack, whose failures are ranked afresh: objectives differ."""
        whole, best = self.whole, self.best
        best.value.fill_(-float("inf"))
        return ActiveBatch(whole.model, whole.x, whole.y, whole.threat, whole.rng, whole.targeted, best)
