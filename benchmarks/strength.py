"""APGD against ART's AutoProjectedGradientDescent at the same budget and steps: robust accuracy and seconds, on all
trained models of a folder (such as an undefended, a gradient-penalized and a PGD-trained one)."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel
from src.victims.victim import Victim


def run(victims: Mapping[str, Victim], x: Tensor, labels: Tensor, eps: float = 0.0003, steps: int = 100) -> list[dict]:
    """Two rows per model: robust accuracy (lower is the stronger attack; ratio = peer / ours) and seconds.

    Args:
        victims: by name.
        x: waveforms [batch, time]; those that a model misclassifies count as successes of both attacks.
        labels: [batch].
    """
    from art.attacks.evasion import AutoProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    rows = []
    for name, victim in victims.items():
        plain, frozen = victim.eval().requires_grad_(False), victim.frozen()
        estimator = PyTorchClassifier(
            plain,
            nn.CrossEntropyLoss(),
            tuple(x.shape[1:]),
            len(victim.classes),
            clip_values=(-1.0, 1.0),
            device_type="cpu",
        )
        peer = AutoProjectedGradientDescent(
            estimator, norm="inf", eps=eps, eps_step=2 * eps, max_iter=steps, nb_random_init=1, batch_size=len(x),
            loss_type="cross_entropy", verbose=False,
        )  # fmt: skip
        start = time.perf_counter()
        theirs = torch.from_numpy(peer.generate(x.numpy(), labels.numpy()))
        middle = time.perf_counter()
        ours = ATTACKS["apgd"](
            frozen, x, labels, ThreatModel("linf", eps, (-1.0, 1.0)), steps=steps, targeted=False,
            rng=RandomStreams(0, [str(i) for i in range(len(x))], "bench"),
        )  # fmt: skip
        seconds = (time.perf_counter() - middle, middle - start)
        robust = [float((plain(z).argmax(1) == labels).float().mean()) for z in (ours, theirs)]
        task = f"APGD-{steps}, eps {eps:g}, on {name}, against ART's"
        for unit, (our_value, peer_value) in (("robust accuracy", robust), ("s", seconds)):
            ratio = peer_value / our_value if our_value else float(peer_value == 0) or float("inf")
            rows.append(
                {
                    "benchmark": "strength",
                    "what": task,
                    "ours": our_value,
                    "peer": peer_value,
                    "unit": unit,
                    "ratio": ratio,
                }
            )
    return rows
