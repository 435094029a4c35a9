"""Tables of a transfer study (Subramanian et al. 2020) from its rows, one per clip and target model: clips that were
crafted on a substitute, aimed at a target class, and then scored on other models. Every result is that of the wav.

A are the clips whose attack succeeded on the substitute; I those of A that the target model classifies correctly
without the attack. correct % = |I| / |A|; transfer % = share of I that the target model gets wrong under the attack;
target % = share of I that it takes for the target class. Controls, which do not attack, have all clips as A."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from src.evaluation.accuracy import wilson
from src.evaluation.judge import errs
from src.evaluation.summary import Row, by_run, is_true


@dataclass(frozen=True)
class Pair:
    """What one attack on one substitute did to one target model.

    Attributes:
        clips: number of crafted clips.
        succeeded: |A|, of the clips that the target model has been asked about: all of them once the rows are complete.
        interest: the rows of I.
        right: the rows of all clips that the target model classifies correctly, whether in A or not.
        on_substitute: clip -> its row with the substitute itself as the judge.
    """

    substitute: str
    attack: str
    eps: str
    target_model: str
    clips: int
    succeeded: int
    interest: Sequence[Row]
    right: Sequence[Row]
    on_substitute: Mapping[str, Row]

    @property
    def run(self) -> tuple[str, str]:
        """The attack and its budget."""
        return self.attack, self.eps


def succeeded(row: Row) -> bool:
    """Whether an attack reached its target on the wav. The clip may have been misclassified before."""
    return is_true(row, "feasible") and int(row["target"]) >= 0 and row["prediction_wav"] == row["target"]


def transfers(row: Row) -> bool:
    """Whether a model that was right is wrong about the wav."""
    return is_true(row, "feasible") and is_true(row, "correct") and errs(int(row["prediction_wav"]), int(row["label"]))


def hits_target(row: Row) -> bool:
    """Whether a model that was right takes the wav for the target class."""
    return transfers(row) and succeeded(row)


def pairs(rows: Sequence[Row], controls: Collection[str] = ()) -> list[Pair]:
    """Every attack on every substitute with every target model, the substitute itself first, in the order of the rows.

    Args:
        rows: of judged clips; each substitute is also a judge of its clips.
        controls: names of the attacks that are controls.
    """
    found = []
    for (substitute, attack, eps), of_run in by_run(rows):
        by_judge: dict[str, list[Row]] = {substitute: []}
        for row in of_run:
            by_judge.setdefault(row["judge"], []).append(row)
        on_substitute = {row["id"]: row for row in by_judge[substitute]}
        a = {name for name, row in on_substitute.items() if attack in controls or succeeded(row)}
        for judge, judged in by_judge.items():
            right = [row for row in judged if is_true(row, "correct")]
            interest = [row for row in right if row["id"] in a]
            of_a = sum(row["id"] in a for row in judged)
            found.append(Pair(substitute, attack, eps, judge, len(on_substitute), of_a, interest, right, on_substitute))
    return found


def share(name: str, count: int, n: int) -> dict[str, Any]:
    """Percentage of a count with its 95 % Wilson interval, as columns; NaN of nothing."""
    low, high = wilson(count, n) if n else (math.nan, math.nan)
    percent = 100 * count / n if n else math.nan
    return {f"{name} %": percent, f"{name} low": 100 * low, f"{name} high": 100 * high, f"{name} clips": count}


def success_table(found: Sequence[Pair]) -> list[dict[str, Any]]:
    """One line per attack on each substitute: how often it succeeds there, how loud it is, and why it stopped."""
    lines = []
    for pair in found:
        if pair.target_model != pair.substitute:
            continue
        rows = list(pair.on_substitute.values())
        hit = [row for row in rows if succeeded(row)]
        snr, infinite = finite(hit, "snr")
        reasons = Counter(row["stop"] for row in rows if row["stop"])
        lines.append(
            {
                "substitute": pair.substitute,
                "attack": pair.attack,
                "eps": pair.eps,
                "clips": pair.clips,
                **share("success", len(hit), len(rows)),
                "SNR dB": fmean(snr) if snr else math.nan,
                "unchanged": infinite,
                "stopped by": ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()),
            }
        )
    return lines


def transfer_table(found: Sequence[Pair], ensemble: Collection[str] = ()) -> list[dict[str, Any]]:
    """Tables 2 to 5: one line per substitute, attack, eps and target model; the substitute itself is the white box, and
    so are the models of the ensemble that is attacked together with it.
    `white box` columns are the same attack on the target model itself. The last columns are of all clips that the
    target model had right, so that attacks with another A can be compared."""
    white_box = {(pair.target_model, pair.run): pair for pair in found if pair.target_model == pair.substitute}
    lines = []
    for pair in found:
        n, own = len(pair.interest), white_box.get((pair.target_model, pair.run))
        lines.append(
            {
                "substitute": pair.substitute,
                "attack": pair.attack,
                "eps": pair.eps,
                "target model": pair.target_model,
                "white box": pair.target_model in (pair.substitute, *ensemble),
                "clips": pair.clips,
                "A": pair.succeeded,
                "I": n,
                **{key: value for key, value in share("correct", n, pair.succeeded).items() if "clips" not in key},
                **share("transfer", sum(map(transfers, pair.interest)), n),
                **share("target", sum(map(hits_target, pair.interest)), n),
                "white box transfer %": percent(own.right, transfers) if own else math.nan,
                "white box target %": percent(own.right, hits_target) if own else math.nan,
                "right": len(pair.right),
                "transfer of right %": percent(pair.right, transfers),
                "target of right %": percent(pair.right, hits_target),
            }
        )
    return lines


def percent(rows: Sequence[Row], test: Any) -> float:
    """Percentage of rows for which a test holds; NaN of none."""
    return 100 * sum(map(test, rows)) / len(rows) if rows else math.nan


def label_table(found: Sequence[Pair], classes: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Transfer by the true label: one line per substitute, attack, eps, target model and label of which there are clips
    in I, the label with the highest transfer % first; of equal ones that with more clips.

    Args:
        classes: of each substitute, in which its rows count.
    """
    lines = []
    for pair in found:
        if pair.target_model == pair.substitute:
            continue
        by_label: dict[int, list[Row]] = {}
        for row in pair.interest:
            by_label.setdefault(int(row["label"]), []).append(row)
        counts = {label: (sum(map(transfers, rows)), len(rows)) for label, rows in by_label.items()}
        order = sorted(counts, key=lambda label: (-counts[label][0] / counts[label][1], -counts[label][1], label))
        for rank, label in enumerate(order, 1):
            count, n = counts[label]
            lines.append(
                {"substitute": pair.substitute, "attack": pair.attack, "eps": pair.eps,
                 "target model": pair.target_model, "rank": rank, "label": classes[pair.substitute][label],
                 "I": n, **share("transfer", count, n)}
            )  # fmt: skip
    return lines


PLACES = ("first", "second", "third")


def top_labels(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Table 6: the labels with the highest transfer % of each line of the transfer table, with counts; from the lines
    of `label_table`."""
    columns = ("substitute", "attack", "eps", "target model")
    table: dict[tuple[str, ...], dict[str, Any]] = {}
    for line in lines:
        key = tuple(line[column] for column in columns)
        row = table.setdefault(key, {**dict(zip(columns, key, strict=True)), **dict.fromkeys(PLACES, "")})
        if line["rank"] <= len(PLACES):
            text = f"{line['label']} {line['transfer %']:.1f} % ({line['transfer clips']} of {line['I']})"
            row[PLACES[line["rank"] - 1]] = text
    return list(table.values())


def difference_table(found: Sequence[Pair]) -> list[dict[str, Any]]:
    """Table 7: mean and standard deviation, over the clips of I that transferred (s) and those that did not (f), of the
    probability that the substitute and the target model give their label of the clip without the attack, and of the
    SNR in dB of the perturbation. A clip without any perturbation has no SNR; those of I are counted."""
    lines = []
    for pair in found:
        if pair.target_model == pair.substitute:
            continue
        split = {"s": [r for r in pair.interest if transfers(r)], "f": [r for r in pair.interest if not transfers(r)]}
        line: dict[str, Any] = {
            "substitute": pair.substitute, "attack": pair.attack, "eps": pair.eps, "target model": pair.target_model,
        } | {f"clips {which}": len(rows) for which, rows in split.items()}  # fmt: skip
        for title, column in (
            ("substitute probability", "clean_probability"),
            ("target model probability", "clean_probability"),
            ("SNR", "snr"),
        ):  # fmt: skip
            for which, rows in split.items():
                of_substitute = title.startswith("substitute")
                values, _ = finite([pair.on_substitute[r["id"]] for r in rows] if of_substitute else rows, column)
                line[f"{title} {which}"] = fmean(values) if values else math.nan
                line[f"{title} {which} sd"] = stdev(values) if len(values) > 1 else math.nan
        lines.append({**line, "unchanged": finite(pair.interest, "snr")[1]})
    return lines


def finite(rows: Sequence[Row], column: str) -> tuple[list[float], int]:
    """The finite values of a column, and how many are infinite."""
    values = [float(row[column]) for row in rows]
    return [value for value in values if math.isfinite(value)], sum(map(math.isinf, values))


def label_counts(pair: Pair, n_classes: int) -> dict[str, list[int]]:
    """Figure 2: how many clips have each true label and each target class, all of them and those of A."""
    rows = list(pair.on_substitute.values())
    hit = [row for row in rows if succeeded(row)]
    return {
        f"{column}, {which}": [sum(int(row[column]) == k for row in of) for k in range(n_classes)]
        for column in ("label", "target")
        for which, of in (("all", rows), ("A", hit))
    }


def matrix(lines: Sequence[Mapping[str, Any]], column: str) -> tuple[list[str], list[str], list[list[Any]]]:
    """Substitutes, target models and one value per pair of them from lines of the transfer table; NaN where there is no
    line. Models that are both come first, so that the white boxes are on the diagonal."""
    substitutes = list(dict.fromkeys(line["substitute"] for line in lines))
    judges = list(dict.fromkeys(line["target model"] for line in lines))
    both = [name for name in substitutes if name in judges]
    targets = both + [name for name in judges if name not in both]
    values = {(line["substitute"], line["target model"]): line[column] for line in lines}
    return substitutes, targets, [[values.get((s, t), math.nan) for t in targets] for s in substitutes]


def most_transferable(found: Sequence[Pair], most: int, controls: Collection[str] = ()) -> list[dict[str, Any]]:
    """For each substitute the clips that transfer to the most target models, of all its attacks; of equal ones those
    that hit the target more often, then those with the highest SNR. A clip that transfers to none is not among them."""
    ranked: dict[str, list[dict[str, Any]]] = {}
    for substitute, attack, eps in dict.fromkeys((pair.substitute, *pair.run) for pair in found):
        others = [p for p in found if (p.substitute, *p.run) == (substitute, attack, eps)]
        others = [p for p in others if p.target_model != substitute and attack not in controls]
        asked = Counter(row["id"] for pair in others for row in pair.interest)
        fooled: dict[str, list[tuple[str, Row]]] = {}
        for pair in others:
            for row in pair.interest:
                if transfers(row):
                    fooled.setdefault(row["id"], []).append((pair.target_model, row))
        for name, models in fooled.items():
            own = others[0].on_substitute[name]
            ranked.setdefault(substitute, []).append(
                {
                    "substitute": substitute, "attack": attack, "eps": eps, "id": name, "SNR dB": float(own["snr"]),
                    "fooled": len(models), "at the target": sum(hits_target(row) for _, row in models),
                    "of": asked[name],
                    "models": ", ".join(model for model, _ in models),
                }
            )  # fmt: skip
    lines = []
    for of_substitute in ranked.values():
        order = sorted(of_substitute, key=lambda c: (-c["fooled"], -c["at the target"], -c["SNR dB"], c["id"]))
        lines += order[:most]
    return lines
