"""Attacks on a smoothed classifier (PGD on the log-mean-probability, Salman et al. 2019), and on the same model behind
heuristic defenses, judged by votes over fresh noise. The accuracy under attack is an upper bound of the robust
accuracy, as certified accuracy is a lower bound; and no attack may ever succeed inside a certified radius."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor

from src.attacks.gradients.pgd import pgd
from src.losses import log_mean_probability
from src.random_streams import RandomStreams
from src.smoothing import ABSTAIN, Certificate, Certifier, CertifySettings, Smooth
from src.threat import ThreatModel
from src.victims.adaptive import adaptive, is_randomized, once
from src.victims.chain import Chain
from src.victims.stage import WAVEFORM
from src.victims.victim import Victim

SMOOTHED_ATTACK_FIELDS = (
    "classifier", "sigma", "idx", "id", "label", "certified", "radius", "clean", "broken_at", "flipped_at",
    "contradicts", "time",
)  # fmt: skip
"""The columns of a row: `smoothed` or a defense; the certificate; the label of the clean clip; the smallest budget at
which the label is no longer the true one, and at which it is another one (not an abstention); whether a point inside
the certified radius contradicts the certificate."""
INSIDE = 0.999
"""Budget of the attack that checks a certificate, as a share of its radius."""
STEP = 2.5
"""Step size of PGD, in units of budget / steps."""
DRAWS_PER_PASS = 50
"""Draws of a randomized defense per forward pass."""


@dataclass(frozen=True)
class Attempt:
    """The outcome of one attack.

    Attributes:
        budget: of the attack.
        distance: l2 distance of the adversarial point.
        predict: label of the adversarial point by the judge, or ABSTAIN.
    """

    budget: float
    distance: float
    predict: int


class MeanProbability:
    """The objective of the attack: the log of the mean probability of f over noise, fresh in every call.

    Args:
        smooth: the attacked classifier.
        to_input: from the attacked variable to the input of f; affine.
        draws: of noise, per call.
        generator: of the noise.
    """

    def __init__(self, smooth: Smooth, to_input: Callable[[Tensor], Tensor], draws: int, generator: torch.Generator):
        self.smooth, self.to_input, self.draws, self.generator = smooth, to_input, draws, generator

    def __call__(self, point: Tensor) -> Tensor:
        """[1, ...] -> log probabilities [1, classes]."""
        noise = point.new_empty((self.draws, *point.shape[1:]), requires_grad=False)
        noise.normal_(0, self.smooth.sigma, generator=self.generator)
        return log_mean_probability(self.smooth.model(self.to_input(point + noise)), dim=0)[None]


def contradicts(certificate: Certificate, attempt: Attempt) -> bool:
    """Whether a point inside the certified radius has another label than the certified one."""
    inside = certificate.label != ABSTAIN and attempt.distance < certificate.radius
    return inside and attempt.predict not in (ABSTAIN, certificate.label)


def escalate(
    attack: Callable[[Tensor, float], Tensor],
    judge: Callable[[Tensor, str], int],
    start: Tensor,
    y: int,
    budgets: Sequence[float],
) -> list[Attempt]:
    """Attack with increasing budgets until the judge gives another class than y: that point is legal for all larger
    budgets.

    Args:
        attack: (start [1, ...], budget) -> point [1, ...].
        judge: (point, purpose of its random stream) -> label or ABSTAIN.
    """
    attempts = [Attempt(0.0, 0.0, judge(start, "clean"))]
    for budget in sorted(b for b in budgets if b > 0):
        if attempts[-1].predict not in (y, ABSTAIN):
            break
        point = attack(start, budget)
        distance = float((point - start).double().norm())
        attempts.append(Attempt(budget, distance, judge(point, f"budget {budget!r}")))
    return attempts


def outcome(attempts: Sequence[Attempt], y: int) -> dict[str, Any]:
    """The columns clean, broken_at and flipped_at of a row."""
    return {
        "clean": attempts[0].predict,
        "broken_at": min((a.budget for a in attempts if a.predict != y), default=math.inf),
        "flipped_at": min((a.budget for a in attempts if a.predict not in (y, ABSTAIN)), default=math.inf),
    }


def attack_smoothed(
    certifier: Certifier,
    bounds: tuple[float, float],
    x: Tensor,
    y: int,
    example: str,
    sigma: float,
    certificate: Certificate,
    radii: Sequence[float],
    valid: Tensor | None = None,
) -> dict[str, Any]:
    """Attack g at one clip, with every radius as the budget and just inside the certified radius.

    Args:
        bounds: lowest and highest legal value at the stage, which the attack respects.
        x: waveform [time].
        radii: budgets in the norm of the certificate.
        valid: bool [time], the samples that are not padding.

    Returns:
        the columns certified to contradicts of a row.
    """
    settings = certifier.settings
    smooth, z = certifier.smoothed(x, sigma, settings.attack_n, valid)
    noise_filter = smooth.noise_filter
    # Shaped noise: the attacked variable is unfiltered, because there the norm of the certificate is L2.
    start = z[None] if noise_filter is None else torch.zeros_like(z)[None]
    if noise_filter is not None or settings.kind != "noise":
        bounds = (-math.inf, math.inf)

    def to_input(point: Tensor) -> Tensor:
        return point if noise_filter is None else z + noise_filter(point)

    def attack(start: Tensor, budget: float) -> Tensor:
        purpose = f"attack, sigma {sigma!r}, budget {budget!r}"
        noise = RandomStreams(settings.seed, [example], f"{purpose}, noise", z.device).generators[0]
        return pgd(
            MeanProbability(smooth, to_input, settings.attack_draws, noise),
            start,
            torch.tensor([y], device=z.device),
            ThreatModel("l2", budget, bounds),
            rng=RandomStreams(settings.seed, [example], purpose),
            targeted=False,
            steps=settings.attack_steps,
            step=STEP,
            early_exit=False,
        )

    def judge(point: Tensor, purpose: str) -> int:
        label = smooth.predict(to_input(point)[0], f"{example}, {purpose}")
        distance = float((point - start).double().norm())
        # PREDICT errs with probability alpha: a label that contradicts a certificate must be confirmed by fresh draws.
        if contradicts(certificate, Attempt(0.0, distance, label)):
            label = label if smooth.predict(to_input(point)[0], f"{example}, {purpose}, again") == label else ABSTAIN
        return label

    certified_radius = [INSIDE * certificate.radius] if certificate.correct(y) else []
    attempts = escalate(attack, judge, start, y, [*radii, *certified_radius])
    return {
        "certified": certificate.label,
        "radius": certificate.radius,
        **outcome(attempts, y),
        "contradicts": any(contradicts(certificate, attempt) for attempt in attempts),
    }


def attack_defended(
    chain: Chain, settings: CertifySettings, x: Tensor, y: int, example: str, name: str
) -> dict[str, Any]:
    """Attack a defended model at one clip, through BPDA and EOT where its defense needs them.

    Args:
        chain: from waveform to logits.
        settings: the section [CERTIFY].
        x: waveform [time].
        name: of the defense.

    Returns:
        the columns certified to contradicts of a row; a defense has no certificate.
    """
    randomized = is_randomized(chain)

    def attack(start: Tensor, budget: float) -> Tensor:
        purpose = f"attack {name}, budget {budget!r}"
        ids = [f"{example}, draw {i}" for i in range(settings.attack_draws if randomized else 1)]
        one_draw = adaptive(chain, rng=RandomStreams(settings.seed, ids, f"{purpose}, eot"), draws=1)

        def mean_probability(point: Tensor) -> Tensor:
            """All draws in one pass, each a row with its own random stream."""
            return log_mean_probability(one_draw(point.expand(len(ids), -1)), dim=0)[None]

        return pgd(
            mean_probability if randomized else one_draw,
            start,
            torch.tensor([y], device=x.device),
            ThreatModel("l2", budget, (-1.0, 1.0)),
            rng=RandomStreams(settings.seed, [example], purpose),
            targeted=False,
            steps=settings.attack_steps,
            step=STEP,
            early_exit=not randomized,
        )

    def judge(point: Tensor, purpose: str) -> int:
        n = settings.attack_n if randomized else 1
        return vote(chain, point, n, settings.alpha, settings.seed, f"{example}, {purpose}")

    attempts = escalate(attack, judge, x[None], y, settings.radii)
    return {"certified": "none", "radius": "none", **outcome(attempts, y), "contradicts": "none"}


@torch.no_grad()
def vote(chain: Chain, x: Tensor, n: int, alpha: float, seed: int, example: str) -> int:
    """The label of x [1, time]: that of a deterministic chain (n = 1), or the majority of n draws of a randomized one
    where it is significant, as in Cohen's PREDICT."""
    counts = torch.zeros(0, dtype=torch.long)
    for first in range(0, n, DRAWS_PER_PASS):
        ids = [f"{example}, draw {i}" for i in range(first, min(n, first + DRAWS_PER_PASS))]
        logits = once(chain, x.expand(len(ids), -1), RandomStreams(seed, ids, "vote"))
        classes = torch.where(logits.isnan().any(1), logits.shape[1], logits.argmax(1)).cpu()
        counts = torch.bincount(classes, minlength=logits.shape[1] + 1) + (counts if len(counts) else 0)
    (most, second), (label, _) = (top.tolist() for top in counts.topk(2))
    significant = n == 1 or binomtest(most, most + second, 0.5).pvalue <= alpha
    return label if significant and label != len(counts) - 1 else ABSTAIN


def waveform_chains(victims: Mapping[str, Victim]) -> dict[str, Chain]:
    """The frozen copy of each victim, from waveform to logits."""
    return {name: victim.frozen().split(WAVEFORM)[1] for name, victim in victims.items()}


def attack_notes(settings: CertifySettings) -> list[str]:
    """The notes of the table of attacks: what its numbers mean, and what they do not."""
    return [
        f"Under attack: PGD ({settings.attack_steps} steps) on the log of the mean probability over "
        f"{settings.attack_draws} noise draws; judged by a vote over {settings.attack_n} fresh draws, where an "
        f"abstention counts as wrong. Stronger attacks may exist: the robust accuracy lies between the two lines.",
        "A defense has no certificate, and noise that depends on the clip (pagn; noise_at_snr by its level) cannot "
        "have this one: the theorem needs the same noise at every point.",
    ]
