"""Minimum-norm L2 attacks at 200 gradient passes against foolbox's DDN with an initial radius fit for audio: median L2
and seconds on the same model and clips, one thread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel
from src.victims.victim import Victim

OURS: dict[str, tuple[str, dict[str, int]]] = {
    "DDN 200": ("ddn", {"steps": 200}),
    "FMN 200": ("fmn", {"steps": 200}),
    "DeepFool, 10 x 9 candidates + 100": ("deepfool", {"steps": 10, "candidates": 9, "refine": 100}),
    "CW 4 x 50": ("cw", {"search_steps": 4, "steps": 50}),
}


def peers(model: torch.nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[], Tensor]]:
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(-1, 1), device="cpu")
    attacks = {
        "foolbox DDN 200, init_eps .05": foolbox.attacks.DDNAttack(init_epsilon=0.05, steps=200),
    }
    return {name: lambda attack=attack: attack(wrapped, x, y, epsilons=None)[1] for name, attack in attacks.items()}


def run(victim: Victim, x: Tensor, repeats: int) -> list[dict[str, Any]]:
    """Rows: median L2 and median seconds of each of ours against its peer; ratio = peer / ours.

    Args:
        victim: trained; its prediction is the label of a clip.
        x: waveforms [batch, time].
        repeats: timed runs of each attack.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        plain, frozen = victim.eval().requires_grad_(False), victim.frozen()
        y = plain(x).argmax(1)

        def measure(work: Callable[[], Tensor]) -> tuple[float, float]:
            times = []
            for _ in range(repeats):
                start = time.perf_counter()
                x_adv = work()
                times.append(time.perf_counter() - start)
            size = torch.where(plain(x_adv).argmax(1) != y, (x_adv - x).norm(dim=1), torch.inf)
            return float(size.median()), statistics.median(times)

        theirs = {name: measure(work) for name, work in peers(plain, x, y).items()}
        rows = []
        for title, (name, keys) in OURS.items():
            size, seconds = measure(
                lambda name=name, keys=keys: ATTACKS[name](  # type: ignore[misc]
                    frozen, x, y, ThreatModel("l2", bounds=(-1.0, 1.0)),
                    rng=RandomStreams(0, [str(i) for i in range(len(x))], "bench"), targeted=False, **keys,
                )
            )  # fmt: skip
            peer = "foolbox DDN 200, init_eps .05"
            for unit, our_value, peer_value in (("median L2", size, theirs[peer][0]), ("s", seconds, theirs[peer][1])):
                rows.append({
                    "benchmark": "minimum norm", "what": f"{title} against {peer}", "ours": our_value,
                    "peer": peer_value, "unit": unit, "ratio": peer_value / our_value,
                })  # fmt: skip
        return rows
    finally:
        torch.set_num_threads(threads)
