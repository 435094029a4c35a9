"""The worst case over several attacks: a clip counts as robust where it survives every one of them, each judged on the
wav. A defense is as good as that, and no better than its strongest attack shows. Computed from rows alone, dictionaries
of strings as results.RowFile holds them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from src.evaluation.indicators import ALPHA, Indicator, more_often, unmeasured
from src.evaluation.summary import Row, is_true, still_right
from src.threat import ROUNDED

NAME = "worst case"
"""In the column of the attack; no attack can have it, for a name has no space."""
SUMMED = ("forwards", "backwards", "seconds")
"""Columns that add up over the attacks."""


@dataclass(frozen=True)
class Case:
    """One model under every attack with one budget.

    Attributes:
        model, norm, eps: of the rows.
        attempts: id of the clip -> attack -> its row, in the order of the attacks; those of minimum-norm attacks too.
    """

    model: str
    norm: str
    eps: str
    attempts: Mapping[str, Mapping[str, Row]]

    def breaks(self, example: str, attack: str) -> bool:
        """Whether this attack breaks a clip that the model has right: feasible, on the wav, and within the budget."""
        row = self.attempts[example].get(attack)
        return row is not None and self.within(example, row) and is_true(row, "correct") and not still_right(row, "wav")

    def within(self, example: str, row: Row) -> bool:
        """Whether the change that this row is about has the size of the budget, which a smallest one need not have."""
        if row["eps"] != "inf":
            return True
        column = "distance" if row["norm"] == self.norm else self.norm
        budget = next(float(other["budget"]) for other in self.attempts[example].values() if other["eps"] == self.eps)
        return column in row and float(row[column]) <= budget * (1 + ROUNDED)

    def winners(self, example: str) -> list[str]:
        """The attacks that break a clip, in their order."""
        return [attack for attack in self.attempts[example] if self.breaks(example, attack)]


def cases(rows: Sequence[Row], order: Sequence[str]) -> list[Case]:
    """One per model and budget.

    Args:
        rows: of one or several models under several attacks.
        order: the attacks, the one first that a clip is counted for where several break it.
    """
    budgets = dict.fromkeys((row["model"], row["norm"], row["eps"]) for row in rows if row["eps"] != "inf")
    found = []
    for model, norm, eps in budgets:
        of_case = [row for row in rows if row["model"] == model and row["eps"] in (eps, "inf")]
        attempts: dict[str, dict[str, Row]] = {row["id"]: {} for row in of_case if row["eps"] == eps}
        for row in sorted(of_case, key=lambda row: order.index(row["attack"])):
            if row["id"] in attempts:
                attempts[row["id"]][row["attack"]] = row
        found.append(Case(model, norm, eps, attempts))
    return found


def combined(rows: Sequence[Row], order: Sequence[str], controls: Collection[str]) -> list[Case]:
    """The cases in which at least two attacks have the budget; a control alone makes no second one."""

    def attacks(case: Case) -> set[str]:
        attempts = [row for attempts in case.attempts.values() for row in attempts.values()]
        return {row["attack"] for row in attempts if row["eps"] == case.eps} - set(controls)

    return [case for case in cases(rows, order) if len(attacks(case)) > 1]


def rows_of(found: Sequence[Case]) -> list[dict[str, str]]:
    """One row per case and clip, for the tables and curves of evaluation.summary: that of the first attack that breaks
    the clip, of those that reach their target where one does, or of the first with the budget. It is judged on the wav
    in every column, in a single draw by the attack that breaks it in most draws, and its calls are those of all attacks
    together."""
    made = []
    for case in found:
        for example, attempts in case.attempts.items():
            winners = case.winners(example)
            with_budget = [attack for attack, row in attempts.items() if row["eps"] == case.eps]
            aimed = [attack for attack in winners if is_true(attempts[attack], "success_wav")]
            row = attempts[(aimed or winners or with_budget)[0]]
            on_wav = {"prediction_stage": row["prediction_wav"], "success_stage": row["success_wav"]}
            share = max(float(other["share_wav"]) for other in attempts.values() if case.within(example, other))
            totals = {"share_wav": f"{share:.6g}", **{column: _sum(attempts, column) for column in SUMMED}}
            made.append({**row, **on_wav, **totals, "attack": NAME, "eps": case.eps, "norm": case.norm})
    return made


def _sum(attempts: Mapping[str, Row], column: str) -> str:
    return f"{sum(float(row[column]) for row in attempts.values()):.6g}"


def table(found: Sequence[Case]) -> list[dict[str, Any]]:
    """One line per case and attack: how many clips it breaks, how many of them no earlier attack does, and how many no
    other attack at all does."""
    lines: list[dict[str, Any]] = []
    for case in found:
        winners = [case.winners(example) for example in case.attempts]
        for attack in dict.fromkeys(attack for attempts in case.attempts.values() for attack in attempts):
            won = [names for names in winners if attack in names]
            counts = {"broken": len(won), "first": sum(names[0] == attack for names in won)}
            alone = sum(names == [attack] for names in won)
            heads: dict[str, Any] = {"model": case.model, "norm": case.norm, "eps": case.eps, "attack": attack}
            lines.append({**heads, "clips": len(winners), **counts, "alone": alone})
    return lines


def note(case: Case) -> str:
    """One line: which attacks the worst case is made of."""
    lines = [line for line in table([case]) if line["first"]]
    shares = ", ".join(f"{line['attack']} {line['first']} ({line['alone']} alone)" for line in lines)
    return f"{case.model}, {case.norm} {case.eps}: worst case by {shares or 'no attack'}"


def misled(rows: Sequence[Row], gradient_attacks: Sequence[str], others: Sequence[str]) -> Indicator:
    """How many more clips of one model a black-box attack or a transfer breaks than all gradient attacks together,
    where the difference is largest: the sign of a defense that hides its gradient.

    Args:
        gradient_attacks: the attacks that follow the gradient of the defended model.
        others: black boxes, and attacks transferred from the undefended model.
    """
    name = "gradient_is_misled"
    order = [*gradient_attacks, *others]
    compared = []
    found = cases([row for row in rows if row["attack"] in order], order) if gradient_attacks and others else []
    for case in found:
        norms = {attack: row["norm"] for attempts in case.attempts.values() for attack, row in attempts.items()}
        if not any(norms.get(attack) == case.norm for attack in gradient_attacks):
            continue  # an attack that minimizes another norm need not win in this one
        usual = [any(case.breaks(clip, attack) for attack in gradient_attacks) for clip in case.attempts]
        for attack in (attack for attack in others if attack in norms):
            hits = [case.breaks(clip, attack) for clip in case.attempts]
            says = (
                f"{attack} breaks clips that no gradient attack does (eps {case.eps}): the defense hides its gradient"
            )
            compared.append((hits, usual, says))
    # One test per black box and budget: together they fail by chance with probability ALPHA.
    alpha = ALPHA / max(len(compared), 1)
    signs = [more_often(name, hits, usual, 0.02, says, alpha) for hits, usual, says in compared]
    if not signs:
        return unmeasured(name, "no gradient attack beside a black box or a transfer")
    return max(signs, key=lambda sign: (sign.failed, sign.value))
