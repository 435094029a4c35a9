"""The arithmetic of the tables of a transfer study, on rows that are made by hand."""

from __future__ import annotations

import math
from statistics import mean, stdev

import pytest
from scipy.stats import binomtest

from src.evaluation import transfer

CLASSES = ("dog", "rain", "bell")


def row(judge: str, example: str, label: int, target: int, clean: int, wav: int, **more: object) -> dict[str, str]:
    """A row as RowFile holds it: text."""
    values = {
        "model": "sub", "attack": "cw", "eps": "inf", "id": example, "judge": judge, "label": label, "target": target,
        "prediction": clean, "prediction_wav": wav, "correct": int(clean == label), "feasible": 1, "snr": 30.0,
        "clean_probability": 0.5, "stop": "", **more,
    }  # fmt: skip
    return {key: str(value) for key, value in values.items()}


ROWS = [
    # On the substitute: a, b, c and e reach their target (e was misclassified before), d does not, f is not feasible.
    row("sub", "a", 0, 1, 0, 1, snr=20, clean_probability=0.9, stop="snr"),
    row("sub", "b", 0, 2, 0, 2, snr=30, clean_probability=0.8, stop="probability"),
    row("sub", "c", 1, 2, 1, 2, snr=40, clean_probability=0.7, stop="probability"),
    row("sub", "d", 1, 0, 1, 1, snr=19, clean_probability=0.6, stop="steps"),
    row("sub", "e", 2, 0, 0, 0, snr=math.inf, clean_probability=0.5, stop="probability"),
    row("sub", "f", 2, 0, 2, 0, feasible=0, clean_probability=0.4),
    # The target model: a hits the target, b another class, c stays right, d is wrong but not in A, e right and stays.
    row("other", "a", 0, 1, 0, 1, snr=20, clean_probability=0.95),
    row("other", "b", 0, 2, 0, 1, snr=30, clean_probability=0.85),
    row("other", "c", 1, 2, 1, 1, snr=40, clean_probability=0.75),
    row("other", "d", 1, 0, 1, 0, snr=19, clean_probability=0.65),
    row("other", "e", 2, 0, 2, 2, snr=math.inf, clean_probability=0.55),
    row("other", "f", 2, 0, 2, 0, feasible=0, clean_probability=0.45),
    # Another one had a wrong before, and b has no finite logits under the attack.
    row("third", "a", 0, 1, 2, 1, clean_probability=0.1),
    row("third", "b", 0, 2, 0, -1, clean_probability=0.2),
    row("third", "c", 1, 2, 1, 2, snr=40, clean_probability=0.3),
    row("third", "d", 1, 0, 1, 1, clean_probability=0.4),
    row("third", "e", 2, 0, 1, 0, clean_probability=0.5),
    row("third", "f", 2, 0, 2, 2, feasible=0, clean_probability=0.6),
]


def line(table: list[dict[str, object]], **wanted: object) -> dict[str, object]:
    (found,) = [entry for entry in table if all(entry[key] == value for key, value in wanted.items())]
    return found


def test_clips_of_interest() -> None:
    found = {pair.target_model: pair for pair in transfer.pairs(ROWS)}
    assert list(found) == ["sub", "other", "third"]
    assert {pair.succeeded for pair in found.values()} == {4}
    assert [r["id"] for r in found["other"].interest] == ["a", "b", "c", "e"]
    assert [r["id"] for r in found["third"].interest] == ["b", "c"]
    assert [r["id"] for r in found["sub"].interest] == ["a", "b", "c"], "e was misclassified"
    assert [r["id"] for r in found["third"].right] == ["b", "c", "d", "f"]


def test_transfer_by_target_model() -> None:
    table = transfer.transfer_table(transfer.pairs(ROWS))
    other = line(table, **{"target model": "other"})
    assert (other["clips"], other["A"], other["I"]) == (6, 4, 4)
    assert (other["correct %"], other["transfer %"], other["target %"]) == (100, 50, 25)
    assert (other["transfer clips"], other["target clips"]) == (2, 1)
    interval = binomtest(2, 4).proportion_ci(0.95, "wilson")
    assert (other["transfer low"], other["transfer high"]) == pytest.approx((100 * interval.low, 100 * interval.high))
    assert other["right"] == 6
    assert other["transfer of right %"] == pytest.approx(100 * 3 / 6), "a, b and d; f is not feasible"
    assert other["target of right %"] == pytest.approx(100 * 2 / 6)
    third = line(table, **{"target model": "third"})
    assert (third["I"], third["correct %"], third["transfer %"], third["target %"]) == (2, 50, 50, 50)
    white_box = line(table, **{"target model": "sub"})
    assert white_box["white box"] is True
    assert other["white box"] is False
    assert white_box["transfer %"] == 100
    assert math.isnan(other["white box target %"]), "nothing was crafted on it"
    assert white_box["white box target %"] == pytest.approx(100 * 3 / 5), "of all that it had right: a to d and f"


def test_a_model_of_the_ensemble_is_a_white_box() -> None:
    alone = transfer.transfer_table(transfer.pairs(ROWS))
    together = transfer.transfer_table(transfer.pairs(ROWS), ["other"])
    assert [line["target model"] for line in alone if line["white box"]] == ["sub"]
    assert all(line["white box"] for line in together if line["target model"] in ("sub", "other"))


def test_a_target_model_stands_beside_its_own_white_box() -> None:
    own = [{**r, "model": "other"} for r in ROWS if r["judge"] == "other"]
    table = transfer.transfer_table(transfer.pairs([*ROWS, *own]))
    other = line(table, **{"substitute": "sub", "target model": "other"})
    assert other["white box transfer %"] == pytest.approx(100 * 3 / 6)
    assert other["white box target %"] == pytest.approx(100 * 2 / 6)


def test_the_rows_of_an_interrupted_run_are_shares_of_what_was_asked() -> None:
    some = [r for r in ROWS if r["judge"] == "sub" or r["id"] in "acd"]
    other = line(transfer.transfer_table(transfer.pairs(some)), **{"target model": "other"})
    assert (other["clips"], other["A"], other["I"], other["correct %"]) == (6, 2, 2, 100)


def test_a_control_has_all_clips() -> None:
    found = {pair.target_model: pair for pair in transfer.pairs(ROWS, controls={"cw"})}
    assert found["other"].succeeded == 6
    assert len(found["other"].interest) == 6
    assert transfer.most_transferable(list(found.values()), 5, {"cw"}) == []


def test_without_clips_of_interest_shares_are_undefined() -> None:
    failed = [{**r, "prediction_wav": r["prediction"]} for r in ROWS if r["id"] in "abcd"]
    table = transfer.transfer_table(transfer.pairs(failed))
    other = line(table, **{"target model": "other"})
    assert (other["A"], other["I"]) == (0, 0)
    assert all(math.isnan(other[f"{name} {end}"]) for name in ("correct", "transfer", "target") for end in ("%", "low"))
    assert transfer.top_labels(transfer.label_table(transfer.pairs(failed), {"sub": CLASSES})) == []


def test_success_on_the_substitute() -> None:
    (success,) = transfer.success_table(transfer.pairs(ROWS))
    assert (success["clips"], success["success clips"], success["success %"]) == (6, 4, pytest.approx(100 * 4 / 6))
    assert success["SNR dB"] == pytest.approx(mean([20, 30, 40]))
    assert success["unchanged"] == 1
    assert success["stopped by"] == "probability 3, snr 1, steps 1"


def test_labels_by_transfer() -> None:
    lines = transfer.label_table(transfer.pairs(ROWS), {"sub": CLASSES})
    of_other = [
        (entry["label"], entry["transfer clips"], entry["I"]) for entry in lines if entry["target model"] == "other"
    ]
    assert of_other == [("dog", 2, 2), ("rain", 0, 1), ("bell", 0, 1)]
    top = line(transfer.top_labels(lines), **{"target model": "third"})
    assert (top["first"], top["second"], top["third"]) == ("rain 100.0 % (1 of 1)", "dog 0.0 % (0 of 1)", "")
    assert {entry["target model"] for entry in lines} == {"other", "third"}, "no transfer to the substitute itself"


def test_of_equal_labels_the_one_with_more_clips_is_first() -> None:
    more = [{**r, "id": r["id"] * 2} for r in ROWS if r["id"] == "c" and r["judge"] != "third"]
    lines = transfer.label_table(transfer.pairs([*ROWS, *more]), {"sub": CLASSES})
    of_other = [(entry["rank"], entry["label"], entry["I"]) for entry in lines if entry["target model"] == "other"]
    assert of_other == [(1, "dog", 2), (2, "rain", 2), (3, "bell", 1)]


def test_what_differs_between_transferred_and_failed() -> None:
    other = line(transfer.difference_table(transfer.pairs(ROWS)), **{"target model": "other"})
    assert (other["clips s"], other["clips f"], other["unchanged"]) == (2, 2, 1)
    assert other["substitute probability s"] == pytest.approx(mean([0.9, 0.8]))
    assert other["substitute probability s sd"] == pytest.approx(stdev([0.9, 0.8]))
    assert other["substitute probability f"] == pytest.approx(mean([0.7, 0.5]))
    assert other["target model probability s"] == pytest.approx(mean([0.95, 0.85]))
    assert other["target model probability f"] == pytest.approx(mean([0.75, 0.55]))
    assert (other["SNR s"], other["SNR s sd"]) == pytest.approx((25, stdev([20, 30])))
    assert other["SNR f"] == 40, "an unchanged clip has no SNR"
    assert math.isnan(other["SNR f sd"])


def test_label_counts() -> None:
    (own, *_) = transfer.pairs(ROWS)
    assert transfer.label_counts(own, 3) == {
        "label, all": [2, 2, 2], "label, A": [2, 1, 1], "target, all": [3, 1, 2], "target, A": [1, 1, 2],
    }  # fmt: skip


def test_matrix_has_white_boxes_on_the_diagonal() -> None:
    lines = [
        {"substitute": s, "target model": t, "n": 10 * i + j}
        for i, s in enumerate(("vgg", "crnn"))
        for j, t in enumerate((s, "wave", "vgg" if s == "crnn" else "crnn"))
    ]
    substitutes, targets, values = transfer.matrix([*lines[:1], lines[1], *lines[3:]], "n")
    assert (substitutes, targets) == (["vgg", "crnn"], ["vgg", "crnn", "wave"])
    assert values[1] == [12, 10, 11]
    assert values[0][0] == 0
    assert math.isnan(values[0][1])


def test_the_most_transferable_clips() -> None:
    chosen = transfer.most_transferable(transfer.pairs(ROWS), 5)
    assert [(c["id"], c["fooled"], c["at the target"], c["of"]) for c in chosen] == [
        ("c", 1, 1, 2), ("a", 1, 1, 1), ("b", 1, 0, 2),
    ]  # fmt: skip
    assert [c["models"] for c in chosen] == ["third", "other", "other"]
    assert [c["id"] for c in transfer.most_transferable(transfer.pairs(ROWS), 1)] == ["c"]
    both = [{**r, "prediction_wav": "2"} if (r["judge"], r["id"]) == ("third", "b") else r for r in ROWS]
    assert transfer.most_transferable(transfer.pairs(both), 1)[0]["models"] == "other, third"
