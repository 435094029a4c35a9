"""Does the configured attack find an adversarial example that is known to be there? (Zimmermann et al. 2022, the
binarization test, made hard.) Around every clip two classes are made from the model's own logits: a random combination
of them is below a threshold at the clip (class 0) and above it at a planted point of the ball (class 1). A long
gradient search finds the point; the threshold is so high that random points and one gradient step stay in class 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from src.attacks.model import Model, narrow
from src.evaluation import reference_search
from src.losses import fooled
from src.random_streams import RandomStreams
from src.smoothing.bounds import lower_bound
from src.threat import ThreatModel

STEPS = 60
"""Of the search for the planted point."""
ONE_STEP = 0.8
"""The threshold lies half way from what one gradient step reaches to the planted point. Where the model is so nearly
linear that one step reaches more than this share, this share counts instead: there, one step may well find it."""
FAR = -100.0
"""Logit of two classes that are never predicted: with them the DLR loss is defined, and rises with the score."""
WANTED = 0.95
"""Share of the planted examples that a working attack finds."""
CHANCE = 0.05
"""Share found by random points above which the test means little."""


@dataclass(frozen=True)
class SelfTest:
    """Outcome over the clips where a point could be planted.

    Attributes:
        planted: number of clips with a planted example.
        found: number of them where the attack found class 1.
        by_chance: number where one random point of the whole budget was in class 1.
        by_search: number where any of `points` random points was.
        points: random points per clip.
    """

    planted: int
    found: int
    by_chance: int
    by_search: int
    points: int

    @property
    def interval(self) -> tuple[float, float]:
        """Exact 95 % interval of the share that the attack finds (Clopper and Pearson 1934)."""
        missed = self.planted - self.found
        return lower_bound(self.found, self.planted, 0.025), 1 - lower_bound(missed, self.planted, 0.025)

    @property
    def verdict(self) -> str:
        """Whether the attack finds what is there, as far as so many clips tell."""
        if self.found >= WANTED * self.planted:
            return "the attack finds what is there"
        highest = 1 - lower_bound(self.planted - self.found, self.planted, 0.05)
        if highest < WANTED:
            return "THE ATTACK MISSES what is known to be there"
        return f"too few clips to tell whether the attack finds {WANTED:.0%}"

    def __str__(self) -> str:
        low, high = self.interval
        chance, search = self.by_chance / self.planted, self.by_search / self.planted
        easy = "; the test says little, for chance finds them too" if max(chance, search) > CHANCE else ""
        return (
            f"self-test: {self.verdict}: {self.found / self.planted:.1%} [{low:.1%}, {high:.1%}] of {self.planted} "
            f"planted adversarial examples found (by chance {chance:.1%}, in {self.points} tries {search:.1%}{easy})"
        )


class Planted:
    """The model of the planted problem, with the logits (0, score, FAR, FAR). The score is
    (readout . (model(x) - center)) / threshold - 1: -1 at the clip, and class 1 begins at 0.

    Args:
        model: the attacked model.
        readout: weights of its logits, each example with its own, [batch, classes].
        center: logits at the clips, [batch, classes].
        threshold: of the weighted sum, > 0, [batch].
    """

    def __init__(self, model: Model, readout: Tensor, center: Tensor, threshold: Tensor):
        self.model, self.readout, self.center, self.threshold = model, readout, center, threshold

    def __call__(self, x: Tensor) -> Tensor:
        score = ((self.model(x) - self.center) * self.readout).sum(1) / self.threshold - 1
        zero, far = torch.zeros_like(score), torch.full_like(score, FAR)
        return torch.stack([zero, score, far, far], 1)

    def select(self, index: Tensor) -> Planted:
        return Planted(narrow(self.model, index), self.readout[index], self.center[index], self.threshold[index])


@torch.no_grad()
def plant(
    model: Model, x: Tensor, threat: ThreatModel, rng: RandomStreams, inner: int = 32
) -> tuple[Planted, Tensor, Tensor]:
    """Build the model of the planted problem.

    Args:
        model: from x [batch, ...] to logits.
        threat: a finite budget.
        rng: one stream per example.
        inner: random points of the whole budget, all of which are class 0.

    Returns:
        the model, the planted points [batch, ...], and [batch] bool: where the point is legal and class 1.
    """
    center = model(x)
    readout = rng.normal(center)

    def score(z: Tensor) -> Tensor:
        return ((model(z) - center) * readout).sum(1)

    by_chance = torch.stack([score(reference_search.random_point(x, threat, rng)) for _ in range(inner)]).amax(0)
    by_one_step = reference_search.maximize(score, x, threat, 1)[1]
    point, _ = reference_search.maximize(score, x, threat, STEPS)
    highest = score(point)  # judged anew: of a randomized model the search keeps the luckiest draw
    easy = by_chance.maximum(by_one_step.minimum(ONE_STEP * highest)).clamp_min(0)
    planted = Planted(model, readout, center, ((easy + highest) / 2).clamp_min(torch.finfo(x.dtype).tiny))
    zero = torch.zeros(len(x), dtype=torch.long, device=x.device)
    is_planted = (highest > easy) & threat.contains(point, x) & fooled(planted(point), zero)
    return planted, point, is_planted & ~fooled(planted(x), zero)


@dataclass(frozen=True, eq=False)
class Problem:
    """The planted problem of the clips where a point could be planted, to be attacked any number of times.

    Attributes:
        model: of the planted problem.
        x: the clips, [planted, ...].
        keep: their places in the batch, [planted] long.
        threat: their budgets.
        streams: purpose -> the random streams of the whole batch.
        tries: whether random points are in class 1, [points, planted] bool.
    """

    model: Planted
    x: Tensor
    keep: Tensor
    threat: ThreatModel
    streams: Callable[[str], RandomStreams]
    tries: Tensor

    @classmethod
    def of(
        cls, model: Model, x: Tensor, threat: ThreatModel, streams: Callable[[str], RandomStreams], points: int
    ) -> Problem:
        """Plant, and try random points; the arguments and errors are those of `self_test`."""
        if not bool(threat.budgets(x).isfinite().all()):
            raise ValueError("the self-test needs a finite eps")
        planted, _, is_planted = plant(model, x, threat, streams("plant"))
        if not bool(is_planted.any()):
            raise ValueError(
                "the self-test could not plant an example: the model's outputs do not differ inside the ball"
            )
        keep = is_planted.nonzero().flatten()
        x, threat, planted = x[keep], threat.select(keep), planted.select(keep)
        rng = streams("self-test by chance").select(keep)
        zero = torch.zeros(len(x), dtype=torch.long, device=x.device)
        with torch.no_grad():
            tries = [
                fooled(planted(reference_search.random_point(x, threat, rng)), zero) for _ in range(points)
            ]  # fmt: skip
        return cls(planted, x, keep, threat, streams, torch.stack(tries))

    def test(self, attack: Callable[..., Tensor]) -> SelfTest:
        """Attack: `attack(model, x, y, threat, rng=, targeted=)`, its keys bound."""
        zero = torch.zeros(len(self.x), dtype=torch.long, device=self.x.device)
        rng = self.streams("self-test").select(self.keep)
        x_adv = attack(self.model, self.x, zero, self.threat, rng=rng, targeted=False)
        with torch.no_grad():
            found = fooled(self.model(x_adv), zero) & self.threat.contains(x_adv, self.x)
        by_chance, by_search = int(self.tries[0].sum()), int(self.tries.any(0).sum())
        return SelfTest(len(self.x), int(found.sum()), by_chance, by_search, len(self.tries))


def self_test(
    attack: Callable[..., Tensor],
    model: Model,
    x: Tensor,
    threat: ThreatModel,
    *,
    streams: Callable[[str], RandomStreams],
    points: int = 50,
) -> SelfTest:
    """Plant and attack.

    Args:
        attack: `attack(model, x, y, threat, rng=, targeted=)`, its keys bound.
        model: what it attacks.
        x: inputs at the attacked representation, [batch, ...].
        threat: a finite budget.
        streams: purpose -> the examples' random streams.
        points: random points per clip that are tried for comparison.

    Raises:
        ValueError: an infinite budget, or no point could be planted (constant logits, say).
    """
    return Problem.of(model, x, threat, streams, points).test(attack)
