"""`standard` and `quick` against the full `autoattack`, on all trained models of a folder, each at a budget where a
good part of its clips still stands: robust accuracy of the 16-bit clips, passes and seconds per clip."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from src.evaluation.call_counter import CallCounter
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel
from src.victims.victim import Victim

EPS = {"resnet": 2e-4, "resnet_penalty_0.02": 3e-4, "resnet_pgd": 5e-4}
"""linf budgets by name of the model; 3e-4 for others."""
STEP = 1 / 32768


def run(
    victims: Mapping[str, Victim], x: Tensor, labels: Tensor, options: Mapping[str, Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Three rows per model and attack; the peer is autoattack.

    Args:
        victims: by name.
        x: waveforms on the 16-bit grid, [batch, time].
        labels: [batch].
        options: keys of the attacks by their names.
    """
    rows = []
    for name, victim in victims.items():
        plain, frozen = victim.eval().requires_grad_(False), victim.frozen()
        right = plain(x).argmax(1) == labels
        z, y = x[right], labels[right]
        eps = EPS.get(name, 3e-4)
        threat = ThreatModel("linf", eps, (-1.0, 1 - STEP), grid=STEP)
        measured = {}
        for attack in ("autoattack", "standard", "quick"):
            counter, start = CallCounter.start(frozen, len(z)), time.perf_counter()
            x_adv = ATTACKS[attack](
                counter, z, y, threat, rng=RandomStreams(0, [str(i) for i in range(len(z))], "bench"), targeted=False,
                **(options or {}).get(attack, {}),
            )  # fmt: skip
            seconds = (time.perf_counter() - start) / max(1, len(z))
            robust = float((plain(x_adv).argmax(1) == y).sum()) / len(x)
            backwards, forwards = (float(count.float().mean()) for count in (counter.backwards, counter.forwards))
            note = f"{backwards:.0f} backward and {forwards:.0f} forward passes per clip"
            measured[attack] = (robust, backwards, seconds, note)
        for attack in ("standard", "quick"):
            ours, peer = measured[attack], measured["autoattack"]
            for i, unit in enumerate(("robust accuracy", "backward passes per clip", "s per clip")):
                rows.append(
                    {"benchmark": "default evaluation", "what": f"{attack}, eps {eps:g}, on {name}, against autoattack",
                     "ours": ours[i], "peer": peer[i], "unit": unit, "note": "" if i else f"{ours[3]}; {peer[3]}",
                     "ratio": float(peer[i]) / float(ours[i]) if ours[i] else float(peer[i] == 0) or float("inf")}
                )  # fmt: skip
    return rows
