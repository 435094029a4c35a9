"""Signs that an evaluation failed and only looks like robustness.

The known ones: Carlini et al. 2019 ("On evaluating adversarial robustness"), Athalye et al. 2018 (obfuscated
gradients), Tramer et al. 2020 (adaptive attacks), Pintor et al. 2022 (indicators of attack failure). Each indicator has
a value, a threshold and a sentence that says what to do; an indicator that was not measured says why."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from src.attacks.core import gradient
from src.attacks.minimum_norm.search import DUAL
from src.attacks.model import Model, narrow
from src.losses import cross_entropy, fooled, margin
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel, norm_of
from src.victims.chain import Chain

AttackFunction = Callable[..., Tensor]
OVER_ROWS = ("lost_on_wav", "curve_not_monotone")
"""Indicators that rows show; the others take a run of their own."""


@dataclass(frozen=True)
class Indicator:
    """One sign of failure.

    Attributes:
        name: what was looked at.
        value: measured; NaN when it was not.
        threshold: above it (below it for `reach`) the sign is there.
        failed: whether the sign is there.
        says: in plain words, what it means and what to do.
    """

    name: str
    value: float
    threshold: float
    failed: bool
    says: str

    def facts(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return asdict(self)


def _above(name: str, value: float, threshold: float, says: str) -> Indicator:
    return Indicator(name, value, threshold, value > threshold, says)


@dataclass(frozen=True, eq=False)
class Recorder:
    """A model that records the margin of every example at every call, so that the path of an attack can be judged
    afterwards without the attack's help.

    Attributes:
        model: what is attacked.
        y: labels (targets when targeted), [batch].
        index: places of the examples in the whole batch, [batch] long.
        paths: the margins of every example of the whole batch.
    """

    model: Model
    y: Tensor
    targeted: bool
    index: Tensor
    paths: list[list[float]]

    @classmethod
    def of(cls, model: Model, y: Tensor, targeted: bool) -> Self:
        """With nothing recorded yet."""
        return cls(model, y, targeted, torch.arange(len(y)), [[] for _ in range(len(y))])

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        if len(x) == len(self.index):
            values = margin(logits.detach(), self.y, self.targeted).tolist()
            for row, value in zip(self.index.tolist(), values, strict=True):
                self.paths[row].append(value)
        return logits

    def select(self, index: Tensor) -> Self:
        rows = self.index[index.cpu()]
        return type(self)(narrow(self.model, index), self.y[index], self.targeted, rows, self.paths)


def vanishing_gradients(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, targeted: bool) -> Indicator:
    """Share of examples where a step of the whole budget along the gradient would move the cross-entropy by less than
    float32 can tell (or where no gradient arrives at all)."""
    says = (
        "the gradient is zero or vanishes: use the margin loss, look for a saturated softmax or a stage that blocks it"
    )
    try:
        grad, value, _ = gradient(model, x, lambda logits: cross_entropy(logits, y, targeted))
    except (ValueError, RuntimeError):
        return Indicator(
            "zero_gradient", 1.0, 0.0, True, "no gradient arrives at the input at all: wrap the stage with BPDA"
        )
    slope = norm_of(threat.masked(grad), DUAL[threat.norm])
    eps = threat.budgets(x)
    reach = torch.where(eps.isfinite(), eps, torch.ones_like(eps)) * slope
    return _above("zero_gradient", float((reach < 1e-6 * (1 + value.abs())).float().mean()), 0.0, says)


def incomplete(paths: Sequence[Sequence[float]], success: Tensor, last: int = 10) -> Indicator:
    """How much the best margin so far still rose over the last calls, as a share of its whole rise; the mean over the
    examples that were not fooled (Pintor et al.: incomplete optimisation)."""
    rises = []
    for path, done in zip(paths, success.tolist(), strict=True):
        if done or len(path) < 2:
            continue
        best = torch.tensor(path).cummax(0).values
        total_rise = float(best[-1] - best[0])
        if total_rise > 0:
            rises.append(float(best[-1] - best[-last - 1]) / total_rise if len(best) > last else 1.0)
    value = sum(rises) / len(rises) if rises else 0.0
    return _above("incomplete", value, 0.05, "the loss was still improving at the end: give the attack more steps")


def unstable(
    model: Model, x: Tensor, y: Tensor, threat: ThreatModel, streams: Callable[[str], RandomStreams]
) -> Indicator:
    """Mean relative change of the loss under noise a tenth of the budget large."""
    eps = threat.budgets(x)
    if not bool(eps.isfinite().all()):
        return Indicator("unstable", math.nan, 0.5, False, "not measured: no finite budget")
    small = replace(threat, eps=eps / 10)
    rng = streams("unstable")
    with torch.no_grad():
        clean = cross_entropy(model(x), y)
        moved = torch.stack([cross_entropy(model(small.random_start(x, rng)), y) for _ in range(8)])
    change = ((moved - clean).abs().mean(0) / clean.abs().clamp_min(1.0)).mean()
    return _above("unstable", float(change), 0.5, "predictions jump under tiny noise: use EOT, or more of it")


def reach(x_adv: Tensor, x: Tensor, threat: ThreatModel, success: Tensor) -> Indicator:
    """Median share of the budget that the failed attempts used."""
    eps = threat.budgets(x)
    failed = ~success & (eps > 0) & eps.isfinite()
    says = "the steps are too few or too small to reach the border of the ball: raise steps or the step size"
    if not bool(failed.any()):
        return Indicator("reach", math.nan, 0.5, False, "not measured: every example was fooled, or there is no budget")
    share = float((norm_of(x_adv - x, threat.norm) / eps)[failed].median())
    return Indicator("reach", share, 0.5, share < 0.5, says)


def unhandled(chain: Chain, is_adaptive: bool) -> Indicator:
    """Stages without a gradient, or randomised, that the attack ran against without BPDA or EOT."""
    names = [str(s.name) for s in chain.stages if not s.differentiable or s.randomized]
    says = f"attacked without BPDA or EOT although needed: {', '.join(names)}; set adaptive = yes"
    return _above("not_adaptive", 0.0 if is_adaptive else float(len(names)), 0.0, says)


def widest(x: Tensor, threat: ThreatModel) -> ThreatModel:
    """The same threat with a budget that reaches everywhere: the whole range, or 1000 times the clip's own size."""
    low, high = threat.bounds
    if math.isfinite(low) and math.isfinite(high):
        return replace(threat, eps=norm_of(torch.full_like(x, high - low), threat.norm))
    return replace(threat, eps=1000 * norm_of(x, threat.norm).clamp_min(1.0))


def check(
    attack: AttackFunction,
    chain: Chain,
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    streams: Callable[[str], RandomStreams],
    targeted: bool = False,
    is_adaptive: bool = True,
    has_budget: bool = True,
    undefended: Model | None = None,
    queries: int = 200,
) -> list[Indicator]:
    """Run an attack several times on a few examples and judge it.

    Args:
        attack: `attack(model, x, y, threat, rng=, targeted=)`, its keys bound.
        chain: the true model from the attacked representation to logits; judges every success.
        model: what the attack gets to see (BPDA, EOT, faster backwards).
        x, y: inputs at the representation [batch, ...] and labels, or targets when targeted.
        threat: the budget under evaluation; infinite for minimum-norm attacks.
        streams: purpose -> the examples' random streams.
        is_adaptive: whether `model` went through adaptive().
        has_budget: whether the attack stays within a budget; False for a minimum-norm attack.
        undefended: the same model without its defenses, to transfer from.
        queries: of the black-box attack that must not be better.
    """
    budget = has_budget and bool(threat.budgets(x).isfinite().all())

    def run(on: Model, within: ThreatModel, purpose: str) -> tuple[Tensor, Tensor]:
        x_adv = attack(on, x, y, within, rng=streams(purpose), targeted=targeted)
        with torch.no_grad():
            return x_adv, fooled(chain(x_adv), y, targeted)

    indicators = [unhandled(chain, is_adaptive), vanishing_gradients(model, x, y, threat, targeted)]
    blocked = indicators[-1].value == 1.0 and "at all" in indicators[-1].says
    if blocked:
        return indicators
    recorder = Recorder.of(model, y, targeted)
    x_adv, success = run(recorder, threat, "attack")
    success_rate = float(success.float().mean())
    silent = torch.tensor([max(path, default=-1.0) > 0 for path in recorder.paths]) & ~success.cpu()
    indicators += [
        incomplete(recorder.paths, success),
        _above(
            "silent_success",
            float(silent.float().mean()),
            0.05,
            "an earlier iterate fooled the attacked model but the returned one does not fool the true model: "
            "return the best iterate, and attack the model that is judged",
        ),
        unstable(chain, x, y, threat, streams),
    ]
    if not budget:
        return indicators
    indicators.append(reach(x_adv, x, threat, success))
    other = run(model, threat, "another start")[1]
    indicators.append(
        _above(
            "start_matters",
            float((success != other).float().mean()),
            0.1,
            "another random start gives another answer: use more restarts",
        )
    )
    double = run(model, replace(threat, eps=threat.budgets(x) * 2), "attack")[1]
    indicators.append(
        _above(
            "eps_not_monotone",
            success_rate - float(double.float().mean()),
            0.02,
            "a larger budget succeeds less: the attack gets lost",
        )
    )
    everywhere = run(model, widest(x, threat), "attack")[1]
    indicators.append(
        _above(
            "unbounded_accuracy",
            1 - float(everywhere.float().mean()),
            0.0,
            "some examples resist an unbounded budget: the attack fails, not the perturbation",
        )
    )
    if undefended is not None:
        transferred = run(undefended, threat, "attack")[1]
        indicators.append(
            _above(
                "transfer_is_better",
                float(transferred.float().mean()) - success_rate,
                0.02,
                "examples made on the undefended model work better: the defense hides its gradient; use BPDA or EOT",
            )
        )
    if "square" in ATTACKS and threat.norm in ("linf", "l2"):
        square = ATTACKS["square"](
            lambda z: chain(z), x, y, threat, rng=streams("black box"), targeted=targeted, queries=queries
        )
        with torch.no_grad():
            blind = fooled(chain(square), y, targeted)
        indicators.append(
            _above(
                "black_box_is_better",
                float(blind.float().mean()) - success_rate,
                0.002,
                "a black-box attack succeeds more often than this one: its gradients mislead it",
            )
        )
    return indicators


def lost_on_wav(rows: Sequence[Mapping[str, Any]]) -> Indicator:
    """Share of the successes at the attacked representation that the written wav loses."""
    won = [row for row in rows if bool(int(row["success_stage"])) and bool(int(row["correct"]))]
    if not won:
        return Indicator("lost_on_wav", math.nan, 0.1, False, "not measured: no success to lose")
    lost = sum(not bool(int(row["success_wav"])) for row in won) / len(won)
    return _above("lost_on_wav", lost, 0.1, "successes do not survive inversion and 16 bits: judge by the wav column")


def not_monotone(accuracies: Mapping[float, float]) -> Indicator:
    """Largest rise of robust accuracy from one budget to a larger one, over a whole curve."""
    values = [accuracies[eps] for eps in sorted(accuracies)]
    rise = max((later - earlier for earlier, later in itertools.pairwise(values)), default=0.0)
    return _above(
        "curve_not_monotone", rise, 0.02, "accuracy rises with the budget somewhere: the attack gets lost there"
    )


def sanity_verdict(indicators: Sequence[Indicator]) -> str:
    """One line: whether the numbers can be trusted, and if not, the first reasons. What the wav loses is said apart:
    an attack that stops at the boundary loses successes to 16 bits by nature, and the wav's column counts them."""
    lost = [i for i in indicators if i.failed and i.name == "lost_on_wav"]
    signs = [i for i in indicators if i.failed and i not in lost]
    wav = "".join(f"; {100 * i.value:.0f} % of the successes are lost on the wav: judge by its column" for i in lost)
    if not signs:
        measured = [i for i in indicators if not math.isnan(i.value) and i not in lost]
        if all(i.name == "lost_on_wav" for i in measured):
            return f"not checked for signs of failure; robust accuracy is only an upper bound{wav}"
        return f"no sign of failure in {len(measured)} checks; robust accuracy is still only an upper bound{wav}"
    reasons = "; ".join(f"{i.name} = {i.value:.3g} ({i.says})" for i in signs)
    return f"DO NOT TRUST these numbers, {len(signs)} sign(s) of a failed attack: {reasons}{wav}"
