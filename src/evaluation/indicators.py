"""An indicator of a failed evaluation: a value, a threshold, and a sentence that says what to do. What is a share of
clips fails only where an exact test rules out that chance did it, so that one clip of eight is no sign yet. The
indicators that rows show are here; those that take a run of their own are in sanity_checks.py."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import binom

from src.smoothing.bounds import lower_bound

ALPHA = 0.05
"""Probability that an indicator fails where its true value is just at the threshold."""
OVER_ROWS = ("lost_on_wav", "infeasible", "empty_budget", "curve_not_monotone")
"""Indicators that rows show; the others take a run of their own."""


@dataclass(frozen=True)
class Indicator:
    """One sign of failure.

    Attributes:
        name: what was looked at.
        value: measured; NaN when it was not.
        threshold: what the value may be at most.
        failed: whether the sign is there.
        says: in plain words, what it means and what to do; or why it was not measured.
        clips: number of clips that the value was measured on.
    """

    name: str
    value: float
    threshold: float
    failed: bool
    says: str
    clips: int = 0

    def facts(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return asdict(self)


def unmeasured(name: str, reason: str) -> Indicator:
    """An indicator that does not apply here."""
    return Indicator(name, math.nan, 0.0, False, f"not measured: {reason}")


def share(name: str, hits: Sequence[bool], threshold: float, says: str) -> Indicator:
    """A share of clips; fails where the lower end of its exact one-sided 95 % interval is above the threshold."""
    if not hits:
        return unmeasured(name, "no clip to look at")
    failed = lower_bound(sum(hits), len(hits), ALPHA) > threshold
    return Indicator(name, sum(hits) / len(hits), threshold, failed, says, len(hits))


def more_often(
    name: str, hits: Sequence[bool], usual: Sequence[bool], threshold: float, says: str, alpha: float = ALPHA
) -> Indicator:
    """How much more often something happens than usual, on the same clips; fails where the difference of the shares is
    above the threshold and an exact sign test (McNemar) rejects that both are equally likely.

    Args:
        hits: of each clip.
        usual: of the same clips in the same order.
        alpha: level of the test.
    """
    if not hits:
        return unmeasured(name, "no clip to look at")
    more = sum(hit and not other for hit, other in zip(hits, usual, strict=True))
    less = sum(other and not hit for hit, other in zip(hits, usual, strict=True))
    difference = (more - less) / len(hits)
    p_value = float(binom.sf(more - 1, more + less, 0.5))
    return Indicator(name, difference, threshold, difference > threshold and p_value <= alpha, says, len(hits))


def lost_on_wav(rows: Sequence[Mapping[str, Any]]) -> Indicator:
    """Share of the successes at the attacked representation that the written wav loses."""
    won = [row for row in rows if bool(int(row["success_stage"])) and bool(int(row["correct"]))]
    if not won:
        return unmeasured("lost_on_wav", "no success to lose")
    lost = [not bool(int(row["success_wav"])) for row in won]
    return share("lost_on_wav", lost, 0.1, "successes do not survive inversion and 16 bits: judge by the wav column")


def infeasible(rows: Sequence[Mapping[str, Any]]) -> Indicator:
    """Share of the clips that are outside the threat model, whose successes do not count; any is a mistake."""
    if not rows:
        return unmeasured("infeasible", "no clip to look at")
    outside = sum(not bool(int(row["feasible"])) for row in rows)
    says = "what the attack made exceeds its budget, the bounds or the mask: its successes there do not count"
    return Indicator("infeasible", outside / len(rows), 0.0, outside > 0, says, len(rows))


def empty_budget(rows: Sequence[Mapping[str, Any]]) -> Indicator:
    """Share of the clips that nothing may change, because their budget is 0: less than one step of 16 bits, say, where
    an SNR is high and the clip quiet."""
    empty = [float(row["budget"]) == 0 for row in rows]
    return share("empty_budget", empty, 0.02, "these clips have no budget (below one step of 16 bits?): raise eps")


def not_monotone(curve: Mapping[float, Mapping[str, bool]]) -> Indicator:
    """Largest rise of robust accuracy from one budget to the next larger one.

    Args:
        curve: eps -> id of the clip -> whether it is still classified correctly.
    """
    name, says = "curve_not_monotone", "accuracy rises with the budget somewhere: the attack gets lost there"
    steps = []
    for smaller, larger in itertools.pairwise(sorted(curve)):
        ids = [example for example in curve[smaller] if example in curve[larger]]
        steps.append(([curve[larger][i] for i in ids], [curve[smaller][i] for i in ids]))
    # One test per pair of budgets: together they fail by chance with probability ALPHA.
    indicators = [more_often(name, later, earlier, 0.02, says, ALPHA / len(steps)) for later, earlier in steps]
    measured = [indicator for indicator in indicators if indicator.clips]
    if not measured:
        return unmeasured(name, "no two budgets of the same clips")
    return max(measured, key=lambda indicator: (indicator.failed, indicator.value))


def sanity_verdict(indicators: Sequence[Indicator]) -> str:
    """One line: whether the numbers can be trusted, and if not, the first reasons. What the wav loses is said apart:
    an inversion loses successes by nature, and the wav's column counts what is left."""
    lost = [i for i in indicators if i.failed and i.name == "lost_on_wav"]
    signs = [i for i in indicators if i.failed and i not in lost]
    wav = "".join(f"; {100 * i.value:.0f} % of the successes are lost on the wav: judge by its column" for i in lost)
    if not signs:
        measured = [i for i in indicators if not math.isnan(i.value) and i not in lost]
        if all(i.name in ("lost_on_wav", "infeasible", "empty_budget") for i in measured):
            return f"not checked for signs of failure; robust accuracy is only an upper bound{wav}"
        clips = max(i.clips for i in measured)
        checks = f"{len(measured)} checks on up to {clips} clips"
        return f"no sign of failure in {checks}; robust accuracy is still only an upper bound{wav}"
    reasons = "; ".join(f"{i.name} = {i.value:.3g} on {i.clips} clips ({i.says})" for i in signs)
    return f"DO NOT TRUST these numbers, {len(signs)} sign(s) of a failed attack: {reasons}{wav}"
