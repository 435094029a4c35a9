"""The targeted attack of the study of transfer between sound-event classifiers (Subramanian et al. 2020): Carlini and
Wagner's L2 objective with one weight, and rules that end it: minimize ||delta|| + c max(max_{i != t} Z_i - Z_t, -kappa)
by Adam until the SNR falls below a floor, the target is probable enough, or the steps are used up.

Not published, and therefore ours: the optimizer, its step size and c. Step size and c are in units of the clip's own
level, so that loud and quiet clips are treated alike; their defaults were chosen on validation clips of keywords.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.core import check_interval, gradient
from src.attacks.model import Model, succeeds
from src.attacks.registration import attack
from src.attacks.spec import Report
from src.losses import margin
from src.random_streams import RandomStreams
from src.registry import Count, Finite, Fraction, NonNegative, Positive
from src.threat import ThreatModel, column, norm_of

RUNNING, STOPS = 0, ("", "probability", "snr", "steps")
"""Why an example stopped; `report` gets these words, the loop counts in their positions."""


@attack("cw_transfer", kind="minimum_norm", norms=("l2",), access="gradients", limited=True, reports=True)
def cw_transfer(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    report: Report | None = None,
    *,
    rng: RandomStreams,
    targeted: bool,
    steps: Count = 5000,
    learning_rate: Positive = 0.001,
    c: Positive = 0.1,
    confidence: NonNegative = 0.0,
    min_snr: Finite = 20.0,
    probability: Fraction = 0.95,
    keep: Literal["last", "smallest"] = "last",
) -> Tensor:
    """CW L2 with one weight and the stop rules of the study of transfer between sound-event classifiers.

    With confidence = 0, as published, the misclassification term has no gradient once the target is the likeliest
    class: from there on the steps only shrink the perturbation, so that a high probability is never aimed at, and an
    example goes to and fro across the boundary until the steps are used up. With a confidence beyond the margin that
    the probability takes (20, say) it is aimed at, and most examples stop by it.

    Handed out is the last iterate within the rules: the one whose probability was enough, the one before the SNR fell
    below the floor, or the last one. The column `stop` of the rows has which: probability, snr or steps.

    Args:
        steps: largest number of steps.
        learning_rate: of Adam, in units of the clip's root mean square.
        c: weight of the misclassification term, beside the norm of the perturbation in units of the clip's.
        confidence: kappa, the margin between logits up to which the misclassification term has a gradient.
        min_snr: lowest signal-to-noise ratio, dB.
        probability: of the target (without one, of the likeliest other class), beyond which an example stops.
        keep: last: as said. smallest: the smallest perturbation that succeeded on the way, the last iterate only where
            none did.
    """
    batch, stopped = ActiveBatch(model, x, y, threat, rng, targeted), torch.zeros_like(y)
    level, share = norm_of(x, "l2"), 10 ** (-min_snr / 20)
    rate = learning_rate * level / math.sqrt(x[0].numel())
    delta, first, second, stop = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x), stopped.clone()
    for iteration in range(steps + 1):
        if iteration % check_interval(x) == 0:
            stopped[batch.index] = stop
            delta, first, second, level, rate, stop = batch.keep(
                stop == RUNNING, delta, first, second, level, rate, stop
            )
            if not len(batch):
                break
        x_adv = batch.threat.clip(batch.x + delta, batch.x)
        delta = x_adv - batch.x
        # The SNR of the clip as it would be written; of silence there is none.
        written = norm_of(batch.threat.snap(x_adv, batch.x) - batch.x, "l2")
        inside = (written <= share * level) & (level > 0)
        stop = torch.where((stop == RUNNING) & ~inside, STOPS.index("snr"), stop)
        grad, value, logits = gradient(batch.model, x_adv, lambda logits: margin(logits, batch.y, targeted))
        _enter(batch, x_adv, logits, written, stop == RUNNING, iteration, keep)
        reached = _probability(logits, batch.y, targeted) > probability
        stop = torch.where((stop == RUNNING) & reached, STOPS.index("probability"), stop)
        # Adam on the objective times the norm of the clip.
        grad = delta / column(norm_of(delta, "l2"), delta).clamp_min(1e-30) - grad * column(
            c * level * (value <= confidence), grad
        )
        grad = batch.threat.masked(grad)
        first.mul_(0.9).add_(grad, alpha=0.1)
        second.mul_(0.999).addcmul_(grad, grad, value=0.001)
        scale = (second / (1 - 0.999 ** (iteration + 1))).sqrt_().add_(1e-8)
        delta = delta - column(rate / (1 - 0.9 ** (iteration + 1)), first) * first / scale
    if len(batch):
        stopped[batch.index] = torch.where(stop == RUNNING, STOPS.index("steps"), stop)
        batch.finish()
    if report is not None:
        report["stop"] = [STOPS[number] for number in stopped.tolist()]
    return batch.full_best.x


def _enter(
    batch: ActiveBatch,
    x_adv: Tensor,
    logits: Tensor,
    size: Tensor,
    legal: Tensor,
    iteration: int,
    keep: Literal["last", "smallest"],
) -> None:
    """Make x_adv [batch, ...] the result of the `legal` examples [batch] bool where `keep` prefers it to the earlier
    one.

    Args:
        size: norm of the perturbation, [batch].
    """
    order, success = torch.full_like(size, iteration), torch.zeros_like(legal)
    if keep == "smallest":
        success = succeeds(batch.model, x_adv, logits, batch.y, batch.targeted) & legal
        order = torch.where(success, -size, order)
    batch.best.update(x_adv, torch.where(legal, order, -math.inf), success, first=False)


def _probability(logits: Tensor, y: Tensor, targeted: bool) -> Tensor:
    """Of the target y, or of the likeliest class other than y, [batch]."""
    chances = logits.softmax(1)
    if targeted:
        return chances.gather(1, y[:, None])[:, 0]
    return chances.scatter(1, y[:, None], 0).amax(1)
