"""Attacks on a smoothed classifier (PGD on the log-mean-probability, Salman et al. 2019), and on the same model behind
heuristic defenses, judged by votes over fresh noise. What they find bounds the accuracy from above as a certificate
bounds it from below; and no attack may ever succeed inside a certified radius."""

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
from src.victims.victim import WAVEFORM, Chain, Stage, Victim

BASELINES = ("quantize", "noise_at_snr", "median", "lowpass", "mp3", "pagn")
SMOOTHED_ATTACK_FIELDS = (
    "classifier", "sigma", "idx", "id", "label", "certified", "radius", "clean", "broken_at", "flipped_at",
    "contradicts", "time",
)  # fmt: skip
"""The columns of a row: `smoothed` or a defense; the certificate; the label given to the clip; the smallest budget at
which that was no longer the true label, and at which it was another one (an abstention is none); whether a point inside
the certified radius contradicts the certificate."""
INSIDE = 0.999
"""Share of a certified radius at which the certificate itself is put to the test."""
ROWS = 50
"""Draws of a randomised defense in one pass."""


@dataclass(frozen=True)
class Try:
    """One attack.

    Attributes:
        budget: it was allowed.
        distance: of the point it found.
        predict: label that the judge gives there, or ABSTAIN.
    """

    budget: float
    distance: float
    predict: int


class MeanProbability:
    """What the attack climbs: the log of f's mean probability over fresh noise, in every call anew.

    Args:
        smooth: the attacked classifier.
        place: from the attacked variable to the input of f; linear, up to a constant.
        draws: of noise, per call.
        generator: of the noise.
    """

    def __init__(self, smooth: Smooth, place: Callable[[Tensor], Tensor], draws: int, generator: torch.Generator):
        self.smooth, self.place, self.draws, self.generator = smooth, place, draws, generator

    def __call__(self, point: Tensor) -> Tensor:
        """[1, ...] -> log probabilities [1, classes]."""
        noise = point.new_empty((self.draws, *point.shape[1:]), requires_grad=False)
        noise.normal_(0, self.smooth.sigma, generator=self.generator)
        return log_mean_probability(self.smooth.model(self.place(point + noise)), dim=0)[None]


def contradicts(certificate: Certificate, found: Try) -> bool:
    """Whether a point inside the certified radius has another label than the certified one."""
    inside = certificate.label != ABSTAIN and found.distance < certificate.radius
    return inside and found.predict not in (ABSTAIN, certificate.label)


def escalate(
    attack: Callable[[Tensor, float], Tensor],
    judge: Callable[[Tensor, str], int],
    start: Tensor,
    y: int,
    budgets: Sequence[float],
) -> list[Try]:
    """Attack with growing budgets until the judge names another class than y: larger budgets contain that point.

    Args:
        attack: (start [1, ...], budget) -> point [1, ...].
        judge: (point, name of its random stream) -> label or ABSTAIN.
    """
    tries = [Try(0.0, 0.0, judge(start, "clean"))]
    for budget in sorted(b for b in budgets if b > 0):
        if tries[-1].predict not in (y, ABSTAIN):
            break
        point = attack(start, budget)
        tries.append(Try(budget, float((point - start).double().norm()), judge(point, f"budget {budget!r}")))
    return tries


def outcome(tries: Sequence[Try], y: int) -> dict[str, Any]:
    """The columns of a row that tell what the attacks did."""
    return {
        "clean": tries[0].predict,
        "broken_at": min((t.budget for t in tries if t.predict != y), default=math.inf),
        "flipped_at": min((t.budget for t in tries if t.predict not in (y, ABSTAIN)), default=math.inf),
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
) -> dict[str, Any]:
    """Attack g at one clip, at every radius and just inside the certified one.

    Args:
        bounds: lowest and highest legal value at the stage; the attack keeps to them.
        x: waveform [time].
        radii: budgets in the norm of the certificate.

    Returns:
        the columns certified to contradicts of a row.
    """
    own = certifier.settings
    smooth, z = certifier.smoothed(x, sigma, own.attack_n)
    noise_filter = smooth.noise_filter
    # Shaped noise: attacked before the spectrum is applied, where the norm of the certificate is L2.
    start = z[None] if noise_filter is None else torch.zeros_like(z)[None]
    if noise_filter is not None or own.kind != "noise":
        bounds = (-math.inf, math.inf)

    def place(point: Tensor) -> Tensor:
        return point if noise_filter is None else z + noise_filter(point)

    def attack(start: Tensor, budget: float) -> Tensor:
        what = f"attack, sigma {sigma!r}, budget {budget!r}"
        noise = RandomStreams(own.seed, [example], f"{what}, noise", z.device).generators[0]
        return pgd(
            MeanProbability(smooth, place, own.attack_draws, noise),
            start,
            torch.tensor([y], device=z.device),
            ThreatModel("l2", budget, bounds),
            rng=RandomStreams(own.seed, [example], what),
            targeted=False,
            steps=own.attack_steps,
            early_exit=False,
        )

    def judge(point: Tensor, what: str) -> int:
        label = smooth.predict(place(point)[0], f"{example}, {what}")
        distance = float((point - start).double().norm())
        # PREDICT errs with probability alpha: what would contradict a certificate must say so twice.
        if contradicts(certificate, Try(0.0, distance, label)):
            label = label if smooth.predict(place(point)[0], f"{example}, {what}, again") == label else ABSTAIN
        return label

    own_radius = [INSIDE * certificate.radius] if certificate.correct(y) else []
    tries = escalate(attack, judge, start, y, [*radii, *own_radius])
    certifier.batch_size = smooth.batch_size
    return {
        "certified": certificate.label,
        "radius": certificate.radius,
        **outcome(tries, y),
        "contradicts": any(contradicts(certificate, t) for t in tries),
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
    fresh = is_randomized(chain)

    def attack(start: Tensor, budget: float) -> Tensor:
        what = f"attack {name}, budget {budget!r}"
        ids = [f"{example}, draw {i}" for i in range(settings.attack_draws if fresh else 1)]
        one_draw = adaptive(chain, rng=RandomStreams(settings.seed, ids, f"{what}, eot"), draws=1)

        def mean_probability(point: Tensor) -> Tensor:
            """All draws in one pass, each a row with a stream of its own."""
            return log_mean_probability(one_draw(point.expand(len(ids), -1)), dim=0)[None]

        return pgd(
            mean_probability if fresh else one_draw,
            start,
            torch.tensor([y], device=x.device),
            ThreatModel("l2", budget, (-1.0, 1.0)),
            rng=RandomStreams(settings.seed, [example], what),
            targeted=False,
            steps=settings.attack_steps,
            early_exit=not fresh,
        )

    def judge(point: Tensor, what: str) -> int:
        return vote(
            chain, point, settings.attack_n if fresh else 1, settings.alpha, settings.seed, f"{example}, {what}"
        )

    tries = escalate(attack, judge, x[None], y, settings.radii)
    return {"certified": "none", "radius": "none", **outcome(tries, y), "contradicts": "none"}


@torch.no_grad()
def vote(chain: Chain, x: Tensor, n: int, alpha: float, seed: int, example: str) -> int:
    """The label of x [1, time]: that of a deterministic chain (n = 1), or the majority of n draws of a randomised one
    where it is significant, as in Cohen's PREDICT."""
    counts = torch.zeros(0, dtype=torch.long)
    for first in range(0, n, ROWS):
        ids = [f"{example}, draw {i}" for i in range(first, min(n, first + ROWS))]
        logits = once(chain, x.expand(len(ids), -1), RandomStreams(seed, ids, "vote"))
        classes = torch.where(logits.isnan().any(1), logits.shape[1], logits.argmax(1)).cpu()
        counts = torch.bincount(classes, minlength=logits.shape[1] + 1) + (counts if len(counts) else 0)
    (most, second), (label, _) = (top.tolist() for top in counts.topk(2))
    sure = n == 1 or binomtest(most, most + second, 0.5).pvalue <= alpha
    return label if sure and label != len(counts) - 1 else ABSTAIN


def defended(victim: Victim, defenses: Mapping[str, Stage]) -> dict[str, Chain]:
    """The frozen model as it is and behind each defense, from waveform to logits."""
    chains = {"undefended": victim, **{name: victim.defended([stage]) for name, stage in defenses.items()}}
    return {name: own.frozen().split(WAVEFORM)[1] for name, own in chains.items()}


def statements(settings: CertifySettings) -> list[str]:
    """What the table of attacks says, and what it does not."""
    return [
        f"Under attack: PGD ({settings.attack_steps} steps) on the log of the mean probability over "
        f"{settings.attack_draws} noise draws; judged by a vote over {settings.attack_n} fresh draws, where an "
        f"abstention counts as wrong. Stronger attacks may exist: the truth lies between the two lines.",
        "A defense has no certificate, and noise that depends on the clip (pagn; noise_at_snr by its level) cannot "
        "have this one: the theorem needs the same noise at every point.",
    ]
