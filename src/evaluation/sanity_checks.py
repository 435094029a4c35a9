"""Signs that an evaluation failed and only looks like robustness: the attack runs several times on a few clips.

The known ones: Carlini et al. 2019 ("On evaluating adversarial robustness"), Athalye et al. 2018 (obfuscated
gradients), Tramer et al. 2020 (adaptive attacks), Pintor et al. 2022 (indicators of attack failure). docs/checks.md
has each with faults that it catches and sound evaluations that it lets pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from src.attacks.core import gradient
from src.attacks.model import Model
from src.attacks.registration import spec_of
from src.attacks.spec import AttackSpec
from src.evaluation import reference_search
from src.evaluation.indicators import Indicator, more_often, share, unmeasured
from src.evaluation.recorder import Recorder
from src.losses import LOSSES, LossName, cross_entropy, fooled, margin
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel, norm_of
from src.victims.adaptive import Eot, is_randomized
from src.victims.chain import Chain

AttackFunction = Callable[..., Tensor]
RULES = 2
"""Raised whenever an indicator changes, so that those of earlier manifests are measured anew."""
JUDGE_DRAWS, QUERY_DRAWS = 32, 4
"""Draws of a randomized model that decide whether it is fooled, and per query of the black-box attack."""


def climbed_loss(name: str, options: Mapping[str, Any]) -> LossName:
    """The loss whose gradient an attack follows: that of its config key `loss`, else the margin, which the
    minimum-norm attacks, APGD towards targets and a part of AutoAttack follow."""
    defaults = {key.name: key.default for key in ATTACKS.keys(name)}
    loss: LossName = {**defaults, **options}.get("loss", "margin")
    return loss


def not_finite(logits: Sequence[Tensor]) -> Indicator:
    """Share of the clips where any of these logits [batch, classes] is not a finite number."""
    finite = torch.stack([part.isfinite().all(1) for part in logits]).all(0)
    says = "the model returns NaN or infinite logits, and such a clip counts as robust: mend the model or its front end"
    return share("not_finite", (~finite).tolist(), 0.0, says)


def vanishing_gradients(
    model: Model, x: Tensor, y: Tensor, threat: ThreatModel, targeted: bool, loss: LossName
) -> Indicator:
    """Share of the examples where the gradient of the attack's own loss gives no direction to step in: it is zero, not
    finite, or so small that float32 cannot scale it to unit norm."""
    name = "zero_gradient"
    try:
        grad, _, _ = gradient(model, x, lambda logits: LOSSES[loss](logits, y, targeted))
    except (ValueError, RuntimeError):
        return Indicator(name, 1.0, 0.1, True, "no gradient arrives at the input: wrap the stage with BPDA", len(x))
    step = norm_of(threat.ascent(grad), threat.norm)
    says = f"the gradient of the loss ({loss}) vanishes: use the margin loss, or look for a stage that blocks it"
    return share(name, (~(step > 0.5)).tolist(), 0.1, says)


def incomplete(paths: Sequence[Sequence[float]], success: Sequence[bool], last: int = 10) -> Indicator:
    """Share of the failed attempts whose best margin made more than a tenth of its whole rise during the last calls
    (Pintor et al.: incomplete optimization). More than half of them must have."""
    rising = []
    for path, done in zip(paths, success, strict=True):
        if done or len(path) < 2:
            continue
        best = torch.tensor(path).nan_to_num(-math.inf).cummax(0).values
        total_rise = float(best[-1] - best[0])
        late_rise = total_rise if len(best) <= last else float(best[-1] - best[-last - 1])
        rising.append(total_rise > 0 and late_rise > 0.1 * total_rise)
    return share("incomplete", rising, 0.5, "the loss was still improving at the end: give the attack more steps")


def unstable(
    model: Model, x: Tensor, y: Tensor, threat: ThreatModel, streams: Callable[[str], RandomStreams]
) -> Indicator:
    """Share of the examples whose loss changes by more than half under noise a tenth of the budget large."""
    eps = threat.budgets(x)
    if not bool(eps.isfinite().all()):
        return unmeasured("unstable", "no finite budget")
    small = replace(threat, eps=eps / 10)
    rng = streams("unstable")
    with torch.no_grad():
        clean = cross_entropy(model(x), y)
        moved = torch.stack([cross_entropy(model(small.random_start(x, rng)), y) for _ in range(8)])
    change = (moved - clean).abs().mean(0) / clean.abs().clamp_min(1.0)
    return share("unstable", (change > 0.5).tolist(), 0.1, "the loss jumps under tiny noise: use EOT, or more draws")


def reach(x_adv: Tensor, x: Tensor, threat: ThreatModel, success: Tensor) -> Indicator:
    """Share of the failed attempts that used less than three quarters of the budget. More than half must have."""
    eps = threat.budgets(x)
    failed = ~success & (eps > 0) & eps.isfinite()
    says = "failed attempts stay far inside the ball: raise the steps or the step size, and look at the projection"
    return share("reach", (norm_of(x_adv - x, threat.norm) < 0.75 * eps)[failed].tolist(), 0.5, says)


def unhandled(chain: Chain, is_adaptive: bool) -> Indicator:
    """Stages without a gradient, or randomized, that the attack ran against without BPDA or EOT."""
    names = [str(s.name) for s in chain.stages if not s.differentiable or s.randomized]
    count = 0.0 if is_adaptive else float(len(names))
    says = f"attacked without BPDA or EOT although needed: {', '.join(names)}; set adaptive = yes"
    return Indicator("not_adaptive", count, 0.0, count > 0, says)


def widest(x: Tensor, threat: ThreatModel) -> ThreatModel:
    """The same threat with a budget that reaches everywhere: the whole range, or 1000 times the clip's own size."""
    low, high = threat.bounds
    if math.isfinite(low) and math.isfinite(high):
        return replace(threat, eps=norm_of(torch.full_like(x, high - low), threat.norm))
    return replace(threat, eps=1000 * norm_of(x, threat.norm).clamp_min(1.0))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An attack on a few clips, as the evaluation under suspicion runs it.

    Attributes:
        attack: `attack(model, x, y, threat, rng=, targeted=)`, its keys bound.
        spec: its specification.
        loss: whose gradient it follows.
        chain: the true model from the attacked representation to logits; judges every success.
        model: what the attack gets to see (BPDA, EOT, faster backwards).
        x, y: inputs at the representation [batch, ...] and labels, or targets when targeted.
        threat: the budget under evaluation; infinite for minimum-norm attacks.
        streams: purpose -> the examples' random streams.
        is_adaptive: whether `model` went through adaptive().
        undefended: the same model without its defenses, to transfer from.
        through: puts the inversion in front of a model of the representation, where it is judged through audio.
    """

    attack: AttackFunction
    spec: AttackSpec
    loss: LossName
    chain: Chain
    model: Model
    x: Tensor
    y: Tensor
    threat: ThreatModel
    streams: Callable[[str], RandomStreams]
    targeted: bool = False
    is_adaptive: bool = True
    undefended: Model | None = None
    through: Callable[[Model], Model] | None = None

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any], **rest: Any) -> Self:
        """A registered attack with these config keys."""
        return cls(spec=spec_of(name), loss=climbed_loss(name, options), **rest)

    @property
    def needs_gradients(self) -> bool:
        return self.spec.access == "gradients"

    def true_model(self, draws: int, purpose: str) -> Model:
        """The true model; one with random stages is averaged over `draws`, the same ones for every call of this."""
        random = is_randomized(self.chain)
        model = Eot(self.chain, draws, self.streams(purpose)).eval() if random else self.chain
        return self.through(model) if self.through else model

    def true_logits(self, x_adv: Tensor) -> Tensor:
        with torch.no_grad():
            return self.true_model(JUDGE_DRAWS, "judge")(x_adv)

    def run(self, model: Model, threat: ThreatModel, purpose: str = "attack") -> Tensor:
        return self.attack(model, self.x, self.y, threat, rng=self.streams(purpose), targeted=self.targeted)

    def fools(self, x_adv: Tensor) -> Tensor:
        return fooled(self.true_logits(x_adv), self.y, self.targeted)


def check(evaluation: Evaluation, queries: int = 200, steps: int = 40) -> list[Indicator]:
    """Run an attack several times on a few examples and judge it.

    Args:
        queries: of the black-box attack that must not be better.
        steps: of the reference search that must not be much better.
    """
    e, x = evaluation, evaluation.x
    unseen = "needs no gradient"
    indicators = [
        unhandled(e.chain, e.is_adaptive),
        vanishing_gradients(e.model, x, e.y, e.threat, e.targeted, e.loss)
        if e.needs_gradients
        else unmeasured("zero_gradient", unseen),
    ]
    if indicators[-1].failed and indicators[-1].value == 1.0 and "arrives" in indicators[-1].says:
        return indicators
    recorder = Recorder.of(e.model, x, e.y, e.threat, e.targeted)
    x_adv = e.run(recorder, e.threat)
    logits = e.true_logits(x_adv)
    success = fooled(logits, e.y, e.targeted)
    silent = [row in recorder.won and not won for row, won in enumerate(success.tolist())]
    indicators += [
        not_finite([e.true_logits(x), logits]),
        incomplete(recorder.paths, success.tolist()) if e.needs_gradients else unmeasured("incomplete", unseen),
        share(
            "silent_success", silent, 0.05,
            "an earlier iterate fooled the attacked model but the returned one does not fool the true model: "
            "return the best iterate, and attack the model that is judged",
        ),
        unstable(e.model, x, e.y, e.threat, e.streams),
    ]  # fmt: skip
    if e.spec.has_budget and bool(e.threat.budgets(x).isfinite().all()):
        indicators += within_budget(e, x_adv, success, queries, steps)
    return indicators


def within_budget(evaluation: Evaluation, x_adv: Tensor, success: Tensor, queries: int, steps: int) -> list[Indicator]:
    """The indicators of an attack with a budget: other starts, other budgets and other attacks.

    Args:
        x_adv: what the attack returned.
        success: where it fooled the true model, [batch] bool.
        queries: of the black-box attack.
        steps: of the reference search.
    """
    e, x, threat = evaluation, evaluation.x, evaluation.threat
    won = success.tolist()
    restarted = e.fools(e.run(e.model, threat, "another start"))
    doubled = e.fools(e.run(e.model, replace(threat, eps=threat.budgets(x) * 2)))
    indicators = [
        share(
            "start_matters", (success != restarted).tolist(), 0.1,
            "another random start gives another answer: use more restarts",
        ),
        more_often(
            "eps_not_monotone", won, doubled.tolist(), 0.02, "a larger budget succeeds less: the attack gets lost"
        ),
    ]  # fmt: skip
    if e.spec.limited:
        own = "its own options limit the perturbation besides eps"
        indicators += [unmeasured("reach", own), unmeasured("unbounded_accuracy", own)]
    else:
        resisting = ~e.fools(e.run(e.model, widest(x, threat)))
        indicators += [
            reach(x_adv, x, threat, success),
            share(
                "unbounded_accuracy", resisting.tolist(), 0.05,
                "some examples resist an unbounded budget: the attack fails, not the perturbation",
            ),
        ]  # fmt: skip
    if e.undefended is not None:
        indicators.append(
            more_often(
                "transfer_is_better", e.fools(e.run(e.undefended, threat)).tolist(), won, 0.02,
                "examples made on the undefended model work better: the defense hides its gradient; use BPDA or EOT",
            )
        )  # fmt: skip
    if e.spec.limited or not e.needs_gradients:
        indicators.append(unmeasured("reference_is_better", "it is confined to less than the ball, or to scores"))
    else:
        reference = reference_search.maximize(lambda z: margin(e.model(z), e.y, e.targeted), x, threat, steps)[0]
        indicators.append(
            more_often(
                "reference_is_better", e.fools(reference).tolist(), won, 0.1,
                f"{steps} plain gradient steps on the margin succeed more often: look for a mistake in the attack or "
                "its settings, such as the loss, the label, the sign, the steps or what it returns",
            )
        )  # fmt: skip
    if not e.needs_gradients:
        indicators.append(unmeasured("black_box_is_better", "it is a black-box attack itself"))
    elif threat.norm in spec_of("square").norms:
        black_box = ATTACKS["square"](
            e.true_model(QUERY_DRAWS, "black box queries"), x, e.y, threat, rng=e.streams("black box"),
            targeted=e.targeted, queries=queries,
        )  # fmt: skip
        indicators.append(
            more_often(
                "black_box_is_better", e.fools(black_box).tolist(), won, 0.002,
                "a black-box attack succeeds more often than this one: its gradients mislead it",
            )
        )  # fmt: skip
    return indicators
