"""The bank of faults in a tiny form: every fault is caught, no sound evaluation is called a failure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments import planted_faults
from experiments.planted_faults import BEGIN, END, FAULTS, PAGE, SOUND, Case, Clips, line
from src.evaluation.indicators import Indicator, share
from src.evaluation.sanity_checks import check
from src.stages.front_ends import log_mel
from src.victims.victim import Victim

EPS = 0.0008
SLOW = ("APGD in l1", "AutoAttack", "HopSkipJump", "CW", "NES", "Square", "magnitude", "EOT")
"""Left to the script, which runs all of them."""


@pytest.fixture(scope="module")
def few_clips(trained_net: tuple[Victim, Tensor, Tensor]) -> Clips:
    """The middle quarter of a second of 12 clips, with the labels that the model gives them: four times faster.
    The margins of this net are spread widely, so that the median of the bearable ones is lower."""
    trained, x, _ = trained_net
    x = x[:12, 6000:10000]
    stages = log_mel(sample_rate=16000, n_samples=4000, normalize="clip_mean")
    victim = Victim(stages, trained.classifier, classes=trained.classes, sample_rate=16000, n_samples=4000).frozen()  # type: ignore[arg-type]
    with torch.no_grad():
        y = victim(x).argmax(1)
    return Clips(victim, x, y, torch.ones_like(x, dtype=torch.bool), eps=EPS, margins=(30.0, 330.0))


def few(cases: tuple[Case, ...]) -> list[Case]:
    return [case for case in cases if not any(name in case.name for name in SLOW) or case.signs]


@pytest.mark.parametrize("case", [*few(FAULTS), *few(SOUND)], ids=lambda case: case.name)
def test_every_fault_is_caught_and_no_sound_evaluation_is(case: Case, few_clips: Clips) -> None:
    indicators = check(case.build(few_clips), queries=50, steps=20)
    assert case.as_wanted(indicators), line(case, indicators)


def test_case_without_its_fault_shows_no_sign(few_clips: Clips) -> None:
    """What is caught is the fault: the same stage and attack without it pass."""
    identity = planted_faults.Front(lambda x: x)
    indicators = check(few_clips.evaluation(defenses=[identity]), queries=50, steps=20)
    assert not [i for i in indicators if i.failed]


def test_bank_is_large_and_every_indicator_of_a_run_is_wanted_somewhere() -> None:
    assert len(FAULTS) >= 12
    assert len(SOUND) >= 12
    assert len({case.name for case in (*FAULTS, *SOUND)}) == len(FAULTS) + len(SOUND)
    wanted = {sign for case in FAULTS for sign in case.signs}
    assert wanted >= {"zero_gradient", "incomplete", "reach", "silent_success", "not_adaptive", "not_finite",
                      "unbounded_accuracy", "transfer_is_better", "reference_is_better"}  # fmt: skip


def test_line_says_what_failed() -> None:
    fails, passes = share("reach", [True] * 8, 0.5, ""), share("other", [False] * 8, 0.5, "")
    fault, sound = (Case("name", lambda clips: clips, signs) for signs in (("reach",), ()))  # type: ignore[arg-type, return-value]
    assert line(fault, [fails, passes]) == "| name | caught | **reach** 1 |"
    assert line(fault, [passes]) == "| name | **WRONG** | - |"
    assert line(sound, [fails]) == "| name | **WRONG** | reach 1 |"
    assert line(sound, [passes]) == "| name | passed | - |"
    assert not fault.as_wanted([Indicator("other", 1.0, 0.5, True, "")]), "caught by an indicator that is meant for it"


def test_page_has_every_case_and_no_wrong_one() -> None:
    table = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    for case in FAULTS:
        assert f"| {case.name} | caught |" in table
    for case in SOUND:
        assert f"| {case.name} | passed | - |" in table


def test_script_replaces_the_table(few_clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "checks.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    monkeypatch.setattr(planted_faults, "PAGE", page)
    monkeypatch.setattr(planted_faults, "load", lambda *args: few_clips)
    monkeypatch.setattr(planted_faults, "FAULTS", FAULTS[:1])
    monkeypatch.setattr(planted_faults, "SOUND", ())
    monkeypatch.setattr("sys.argv", ["planted_faults.py", "model.pt", "data"])
    assert planted_faults.main() == 0
    text = page.read_text()
    assert f"| {FAULTS[0].name} | caught | **zero_gradient** 1 |" in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
