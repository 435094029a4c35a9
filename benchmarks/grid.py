"""What it costs that attacks see the 16-bit clips that will be written: the same attack with and without the grid, both
judged on the rounded clips; passes, seconds, accuracy and, for the smallest perturbations, the median L2 norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import in_turns
from src.evaluation.call_counter import CallCounter
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel
from src.victims.victim import Victim

STEP = 1 / 32768
CASES: tuple[tuple[str, str, float, dict[str, Any]], ...] = (
    ("pgd", "linf", 2e-4, {}),
    ("pgd", "linf", 5e-4, {}),
    ("pgd", "l2", 0.02, {}),
    ("apgd", "linf", 2e-4, {}),
    ("apgd", "l2", 0.02, {}),
    ("ddn", "l2", float("inf"), {}),
    ("cw", "l2", float("inf"), {}),
)
"""Attack, norm, eps and keys."""


def run(
    victim: Victim,
    x: Tensor,
    repeats: int,
    cases: tuple[tuple[str, str, float, dict[str, Any]], ...] = CASES,
) -> list[dict[str, Any]]:
    """Rows of seconds, of passes and, for the smallest perturbations, of the median L2 norm; ours is with the grid.

    Args:
        x: clips on the grid, [batch, time].
    """
    plain, frozen = victim.eval().requires_grad_(False), victim.frozen()
    y = plain(x).argmax(1)
    ids = [str(i) for i in range(len(x))]
    rows = []
    for name, norm, eps, keys in cases:
        threats = [ThreatModel(norm, eps, (-1.0, 1 - STEP), grid=grid) for grid in (STEP, None)]

        def attack(threat: ThreatModel, counter: CallCounter, name: str = name, keys: Any = keys) -> Tensor:
            streams = RandomStreams(0, ids, "bench")
            return ATTACKS[name](counter, x, y, threat, rng=streams, targeted=False, **keys)

        made, passes = [], []
        for threat in threats:
            counter = CallCounter.start(frozen, len(x))
            made.append(attack(threat, counter))
            passes.append(float((counter.forwards + counter.backwards).sum()) / len(x))
        works = [lambda threat=threat: attack(threat, CallCounter.start(frozen, len(x))) for threat in threats]  # type: ignore[misc]
        seconds = in_turns(works, repeats)
        fooled = [[plain(z).argmax(1) != y for z in (x_adv, (x_adv / STEP).round() * STEP)] for x_adv in made]
        (ours, ours_wav), (theirs, theirs_wav) = fooled
        stage, wav, other_stage, other_wav = (1 - hit.float().mean() for hit in (ours, ours_wav, theirs, theirs_wav))
        note = (
            f"accuracy at the stage / on the wav {stage:.2f} / {wav:.2f}, without {other_stage:.2f} / {other_wav:.2f}"
        )
        what = f"{name}, {norm}" + (f", eps {eps:g}" if eps < float("inf") else "")
        measured = [("s", *seconds, note), ("passes per clip", *passes, "")]
        if eps == float("inf"):
            sizes = [
                float(torch.where(hit, (x_adv - x).norm(dim=1), torch.inf).median())
                for x_adv, hit in zip(made, (ours, theirs), strict=True)
            ]
            measured.append(("median L2", *sizes, ""))
        for unit, our_value, peer_value, text in measured:
            rows.append(
                {"benchmark": "grid", "what": f"{what}, against the same without the grid", "ours": our_value,
                 "peer": peer_value, "unit": unit, "ratio": peer_value / our_value, "note": text}
            )  # fmt: skip
    return rows
