"""The worst case over several attacks, from rows alone: a clip is robust where it survives every one on the wav."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from src import config
from src.commands import attack as attack_commands
from src.commands import sanity
from src.evaluation import ATTACK_FIELDS, summary, worst_case
from src.evaluation.accuracy import wilson
from src.output.results import cell
from tests.conftest import call, rows
from tests.test_wiring_stores import CPU, make_victim, trained


def row(attack: str, clip: int, broken: bool, eps: str = "0.1", **changes: object) -> dict[str, str]:
    """A row of a clip of class 1 that the model has right, and an attack that breaks it or does not."""
    values = dict.fromkeys(ATTACK_FIELDS, 0) | {
        "model": "m", "attack": attack, "eps": eps, "norm": "linf", "id": f"clip{clip}", "label": 1, "target": -1,
        "correct": True, "feasible": True, "prediction": 1, "prediction_inversion": 1, "budget": 0.1, "distance": 0.1,
        "l2": 2.0, "linf": 0.1, "snr": 20.0, "forwards": 10, "backwards": 5, "seconds": 0.5,
        "prediction_stage": 0 if broken else 1, "prediction_wav": 0 if broken else 1, "share_wav": float(broken),
        "success_stage": broken, "success_audio": broken, "success_wav": broken,
    }  # fmt: skip
    return {key: cell(value) for key, value in (values | changes).items()}


def run(attack: str, broken: str, eps: str = "0.1", **changes: object) -> list[dict[str, str]]:
    """Rows of one attack; broken has one letter per clip, x where the attack breaks it."""
    return [row(attack, clip, letter == "x", eps, **changes) for clip, letter in enumerate(broken)]


ORDER = ["pgd", "square", "nes", "random_signs"]
THREE = run("pgd", "xx..") + run("square", ".xx.") + run("nes", ".x..") + run("random_signs", "....")


def test_a_clip_is_robust_where_it_survives_every_attack() -> None:
    (case,) = worst_case.combined(THREE, ORDER, {"random_signs"})
    assert [case.winners(f"clip{i}") for i in range(4)] == [["pgd"], ["pgd", "square", "nes"], ["square"], []]
    (line,) = summary.table(worst_case.rows_of([case]))
    assert (line["attack"], line["eps"], line["norm"], line["clips"]) == ("worst case", "0.1", "linf", 4)
    assert (line["clean accuracy"], line["robust accuracy"], line["on wav"]) == (1.0, 0.25, 0.25)
    assert (line["low"], line["high"]) == wilson(1, 4)
    assert (line["forwards"], line["backwards"], line["s/clip"]) == (40, 20, 2.0), "the cost of all attacks"
    for attack in ("pgd", "square", "nes", "random_signs"):
        (alone,) = summary.table([r for r in THREE if r["attack"] == attack])
        assert line["robust accuracy"] <= alone["robust accuracy"]


def test_a_single_draw_is_that_of_the_attack_that_breaks_most_draws() -> None:
    """A randomized model: 5 % of the draws of one attack, 40 % of the other, no majority."""
    shares = {"pgd": 0.05, "square": 0.4, "random_signs": 0.0}
    table = [row(attack, 0, False, share_wav=share) for attack, share in shares.items()]
    far = row("cw", 0, True, "inf", norm="l2", linf=0.5, share_wav=1.0, budget=float("inf"))
    found = worst_case.combined([*table, far], [*shares, "cw"], {"random_signs"})
    (line,) = summary.table(worst_case.rows_of(found))
    assert (line["on wav"], line["on wav, one draw"]) == (1.0, pytest.approx(0.6))


def test_a_target_that_any_attack_reaches_is_reached() -> None:
    """The first attack leads the clip astray, the second to its target."""
    astray = row("pgd", 0, True, target=2, prediction_wav=0, success_stage=False, success_wav=False)
    aimed = row("square", 0, True, target=2, prediction_wav=2)
    (line,) = summary.table(worst_case.rows_of(worst_case.combined([astray, aimed], ORDER, ())))
    assert (line["on wav"], line["success"]) == (0.0, 1.0)


def test_a_clip_that_survives_is_described_by_the_first_attack() -> None:
    table = [
        row(attack, 0, False, snr=snr) for attack, snr in (("pgd", 30.0), ("square", 25.0), ("random_signs", 20.0))
    ]
    (line,) = summary.table(worst_case.rows_of(worst_case.combined(table, ORDER, {"random_signs"})))
    assert line["snr"] == 30.0


def test_the_table_says_which_attack_won() -> None:
    found = worst_case.combined(THREE, ORDER, {"random_signs"})
    lines = {line["attack"]: [line[key] for key in ("broken", "first", "alone")] for line in worst_case.table(found)}
    assert lines == {"pgd": [2, 2, 1], "square": [2, 1, 1], "nes": [1, 0, 0], "random_signs": [0, 0, 0]}
    assert worst_case.note(found[0]) == "m, linf 0.1: worst case by pgd 2 (1 alone), square 1 (1 alone)"
    other = worst_case.combined(THREE, ["nes", "square", "pgd", "random_signs"], {"random_signs"})
    assert worst_case.note(other[0]).endswith("nes 1 (0 alone), square 1 (1 alone), pgd 1 (1 alone)"), "in their order"


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, True),
        ({"feasible": False}, False),
        ({"correct": False}, False),
        ({"prediction_wav": 1}, False),
        ({"prediction_stage": 1, "success_stage": False}, True),
        ({"prediction_wav": -1}, False),
    ],
)
def test_what_counts_is_the_feasible_wav(changes: dict[str, object], counts: bool) -> None:
    (case,) = worst_case.combined(run("pgd", "....") + run("square", "x...", **changes), ORDER, ())
    assert case.breaks("clip0", "square") is counts


def test_budgets_and_models_are_apart() -> None:
    two = run("pgd", "x.") + run("square", "..") + run("pgd", "xx", "0.2") + run("square", "xx", "0.2")
    other = [{**r, "model": "n", "eps": "30 dB"} for r in run("pgd", "..") + run("square", ".x")]
    lines = summary.table(worst_case.rows_of(worst_case.combined(two + other, ORDER, ())))
    assert [(line["model"], line["eps"], line["robust accuracy"]) for line in lines] == [
        ("m", "0.1", 0.5), ("m", "0.2", 0.0), ("n", "30 dB", 0.5)
    ]  # fmt: skip


def test_one_attack_and_its_control_are_no_worst_case() -> None:
    assert worst_case.combined(run("pgd", "x.") + run("random_signs", ".."), ORDER, {"random_signs"}) == []
    assert worst_case.combined(run("cw", "x.", "inf"), ["cw"], ()) == []


@pytest.mark.parametrize(("size", "within"), [(0.05, True), (0.1, True), (0.1000001, True), (0.11, False)])
def test_a_smallest_perturbation_counts_where_it_is_within_the_budget(size: float, within: bool) -> None:
    budgeted = run("pgd", "..") + run("square", "..")
    l2 = run("cw", "x.", "inf", norm="l2", linf=size, distance=3.0, budget=float("inf"))
    linf = run("fmn", "x.", "inf", distance=size, linf=9.0, budget=float("inf"))
    for smallest in (l2, linf):
        (case,) = worst_case.combined(budgeted + smallest, ["pgd", "square", "cw", "fmn"], ())
        assert bool(case.winners("clip0")) is within
        assert [r["eps"] for r in worst_case.rows_of([case])] == ["0.1", "0.1"]


def test_a_norm_without_a_column_does_not_count() -> None:
    budgeted = [{**r, "norm": "l1"} for r in run("pgd", ".") + run("square", ".")]
    (case,) = worst_case.combined(budgeted + run("cw", "x", "inf", norm="l2"), ["pgd", "square", "cw"], ())
    assert not case.winners("clip0")


def test_a_black_box_that_does_better_betrays_a_hidden_gradient() -> None:
    clips = 20
    weak, strong = "x" * 2 + "." * (clips - 2), "x" * 12 + "." * (clips - 12)
    sign = worst_case.misled(run("pgd", weak) + run("square", strong), ["pgd"], ["square"])
    assert (sign.name, sign.failed, sign.value, sign.clips) == ("gradient_is_misled", True, 0.5, clips)
    assert "square breaks clips that no gradient attack does (eps 0.1)" in sign.says
    assert not worst_case.misled(run("pgd", strong) + run("square", weak), ["pgd"], ["square"]).failed
    chance = worst_case.misled(run("pgd", "x..........") + run("square", "..x.x......"), ["pgd"], ["square"])
    assert not chance.failed, "one clip of eleven more is chance"


def test_the_union_of_the_gradient_attacks_is_what_must_be_beaten() -> None:
    halves = run("pgd", "x" * 6 + "." * 6) + run("apgd", "." * 6 + "x" * 6)
    assert not worst_case.misled(halves + run("square", "x" * 12), ["pgd", "apgd"], ["square"]).failed
    assert worst_case.misled(halves + run("square", "x" * 12), ["pgd"], ["square"]).failed


def test_the_test_accounts_for_how_many_black_boxes_were_tried() -> None:
    """Five wins to none: p = .031 once, but not among four."""
    five = run("pgd", "." * 10) + run("square", "x" * 5 + "." * 5)
    assert worst_case.misled(five, ["pgd"], ["square"]).failed
    more = five + [r for k in range(3) for r in run(f"other{k}", "." * 10)]
    assert not worst_case.misled(more, ["pgd"], ["square", "other0", "other1", "other2"]).failed


@pytest.mark.parametrize(("gradients", "others"), [(["pgd"], []), ([], ["square"])])
def test_nothing_to_compare(gradients: list[str], others: list[str]) -> None:
    assert worst_case.misled(run("pgd", "x") + run("square", "x"), gradients, others).clips == 0


def test_in_tables_plot_and_manifest(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [
        "ATTACK.names=fgsm,square", "ATTACK.square.queries=30", "ATTACK.eps=0.001", "ATTACK.checks=0",
        "ATTACK.wavs=0", "DATA.n_test=4", "RESULTS.results_dir=worst",
    ]  # fmt: skip
    assert call(workspace, monkeypatch, "attack.py", *(part for key in keys for part in ("--set", key))) == 0
    folder = workspace / "worst/attack"
    table = {line["attack"]: line for line in rows(folder / "summary.csv")}
    assert list(table) == ["fgsm", "square", "random_signs", "worst case"]
    assert float(table["worst case"]["robust accuracy"]) <= min(
        float(table[name]["robust accuracy"]) for name in ("fgsm", "square")
    )
    assert {point["attack"] for point in rows(folder / "security.csv")} == set(table)
    assert {line["attack"] for line in rows(folder / "worst_case.csv")} == {"fgsm", "square", "random_signs"}
    assert "worst case" in (folder / "summary.md").read_text()
    assert "worst case by" in capsys.readouterr().out
    (title,) = json.loads((folder / "manifest.json").read_text())["signs"]
    assert title == "resnet, worst case"


@pytest.mark.parametrize(
    ("names", "compared"),
    [
        ("pgd,square", True),
        ("pgd,transfer", True),
        ("square,transfer", False),
        ("snr_pgd,square", False),
        ("pgd,random_signs", False),
        ("cw,square", False),
    ],
)
def test_gradient_attacks_are_told_from_transfers_and_black_boxes(tmp_path: Path, names: str, compared: bool) -> None:
    """Behind quantize a transfer is no gradient attack; an attack that limits itself cannot be beaten."""
    path = tmp_path / "config.ini"
    path.write_text("[ATTACK]\nspeech = no\neps = 0.1\n[ATTACK.transfer]\nattack = pgd\ngradient = undefended\n")
    loaded = config.load(path, [f"ATTACK.names={names}"])
    defended = attack_commands.attacked_model(loaded, trained("m", victim=make_victim({"name": "quantize"})), CPU)
    smallest = {"cw": {"eps": "inf", "norm": "l2"}}
    table = [r for name in names.split(",") for r in run(name, "x...", **smallest.get(name, {}))]
    assert bool(sanity.over_attacks(loaded, defended, table).clips) is compared
    plain = attack_commands.attacked_model(loaded, trained("m"), CPU)
    transfer_counts = compared and "transfer" not in names
    assert bool(sanity.over_attacks(loaded, plain, table).clips) is (transfer_counts or names == "square,transfer")
