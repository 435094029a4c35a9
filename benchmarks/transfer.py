"""The targeted CW of the transfer study on a batch, against the same algorithm as one writes it down first: one clip
after the other, Adam of torch, and the stop rules asked at every step. Both hand out the same clips, to rounding."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from src.attacks.spec import Report
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel
from src.victims.victim import Victim

KEYS: dict[str, float] = {
    "learning_rate": 0.001, "c": 0.1, "confidence": 20.0, "min_snr": 20.0, "probability": 0.95
}  # fmt: skip
REFERENCE_CLIPS = 8
"""Clips that the loop is timed on; its time per clip does not depend on their number."""


def one_clip(
    model: torch.nn.Module,
    x: Tensor,
    target: int,
    *,
    steps: int,
    learning_rate: float,
    c: float,
    confidence: float,
    min_snr: float,
    probability: float,
) -> tuple[Tensor, str]:
    """The attack on one clip x [time], as a loop: the adversarial clip and why it stopped."""
    level = float(x.norm())
    delta = torch.zeros_like(x, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=learning_rate * level / math.sqrt(len(x)))
    last = x
    for _ in range(steps + 1):
        with torch.no_grad():
            delta.copy_((x + delta).clamp(-1, 1) - x)
        if float(delta.detach().norm()) > level * 10 ** (-min_snr / 20):
            return last, "snr"
        logits = model((x + delta)[None])[0]
        last = (x + delta).detach()
        if float(logits.detach().softmax(0)[target]) > probability:
            return last, "probability"
        others = torch.cat([logits[:target], logits[target + 1 :]])
        loss = c * level * (others.max() - logits[target] + confidence).clamp_min(0)
        if bool(delta.any()):  # the norm has no gradient at 0
            loss = loss + delta.norm()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return last, "steps"


def run(victim: Victim, x: Tensor, steps: int = 300) -> list[dict[str, Any]]:
    """Rows: clips per second of the loop and of the batch, for the device of the victim; ratio = ours / peer. `note`
    has how far the adversarial clips of both are apart, and how many stopped for the same reason.

    Args:
        victim: trained.
        x: waveforms [batch, time].
        steps: largest number of steps.
    """
    threads, home = torch.get_num_threads(), victim.device
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        plain, x = victim.to(device).eval().requires_grad_(False), x.to(device)
        frozen = plain.frozen()
        target = (plain(x).argmax(1) + 1 + torch.arange(len(x), device=device) % 3) % len(victim.classes)
        threat, report = ThreatModel("l2", bounds=(-1.0, 1.0)), Report()
        rng = RandomStreams(0, [str(i) for i in range(len(x))], "bench")
        start = _now(device)
        batched = ATTACKS["cw_transfer"](
            frozen, x, target, threat, report=report, rng=rng, targeted=True, steps=steps, **KEYS
        )
        ours = len(x) / (_now(device) - start)
        few = range(min(REFERENCE_CLIPS, len(x)))
        start = _now(device)
        singly = [one_clip(plain, x[i], int(target[i]), steps=steps, **KEYS) for i in few]
        peer = len(singly) / (_now(device) - start)
    finally:
        torch.set_num_threads(threads)
        victim.to(home)
    apart = max(float((batched[i] - clip).norm() / (clip - x[i]).norm()) for i, (clip, _) in enumerate(singly))
    same = sum(report["stop"][i] == why for i, (_, why) in enumerate(singly))
    return [{
        "benchmark": "transfer", "what": f"targeted CW with stop rules, {len(x)} clips, {device.type}", "ours": ours,
        "peer": peer, "unit": "clips/s", "ratio": ours / peer,
        "note": f"peer: one clip at a time; {same} of {len(singly)} stop for the same reason, perturbations at most "
        f"{apart:.2g} of their norm apart",
    }]  # fmt: skip


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
