"""Attacks for which no library has a counterpart for classifiers (ART's psychoacoustic attack needs a speech
recognizer), against plain PGD at the same L_inf budget, at what each was made for: over the air, the share of fresh
playbacks that are misclassified; psychoacoustic, the share of time-frequency bins above the masking threshold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from src.attacks.audio.over_the_air import fft_length, play, playback
from src.attacks.audio.psychoacoustic import Masking
from src.attacks.registration import spec_of
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel
from src.victims.victim import Victim

ROOM: dict[str, Any] = {"shift_s": 0.1, "reverberation_s": 0.3, "low_hz": 150.0, "high_hz": 6000.0, "level_db": 6.0}
"""The playbacks that over_the_air trains on by default; those that judge it are drawn anew."""


def run(
    victims: Mapping[str, Victim], x: Tensor, labels: Tensor, eps: float = 0.0005, steps: int = 40, rooms: int = 20
) -> list[dict[str, Any]]:
    """Two rows per model; `peer` is PGD of as many steps without early exit.

    Args:
        victims: by name.
        x: waveforms [batch, time].
        labels: [batch]; clips that a model misclassifies are left out.
        eps: the budget.
        rooms: fresh playbacks per clip.
    """
    rows = []
    for model_name, victim in victims.items():
        frozen = victim.eval().requires_grad_(False).frozen()
        with torch.no_grad():
            right = frozen(x).argmax(1) == labels
        clips, y, rate = x[right], labels[right], victim.sample_rate
        ids = [str(i) for i in range(len(clips))]

        def attack(name: str, **keys: Any) -> Tensor:
            supplied = {"sample_rate": rate} if spec_of(name).needs_sample_rate else {}  # noqa: B023
            x_adv = ATTACKS[name](
                frozen, clips, y, ThreatModel("linf", eps, (-1.0, 1.0)),  # noqa: B023
                rng=RandomStreams(0, ids, name), targeted=False, steps=steps, **supplied, **keys,  # noqa: B023
            )  # fmt: skip
            return (x_adv * 32768).round().clamp(-32768, 32767) / 32768

        @torch.no_grad()
        def over_the_air(x_adv: Tensor) -> float:
            rng, wrong = RandomStreams(0, ids, "judge"), 0.0  # noqa: B023
            for _ in range(rooms):
                response = playback(x_adv, rng, sample_rate=rate, **ROOM)  # noqa: B023
                heard = play(x_adv, response, fft_length(x_adv, rate, ROOM["shift_s"], ROOM["reverberation_s"]))  # noqa: B023
                wrong += float((frozen(heard).argmax(1) != y).float().mean()) / rooms  # noqa: B023
            return wrong

        @torch.no_grad()
        def success(x_adv: Tensor) -> Tensor:
            return frozen(x_adv).argmax(1) != y  # noqa: B023

        plain = attack("pgd", early_exit=False)
        robust, hidden = attack("over_the_air", **ROOM), attack("psychoacoustic")
        played = [over_the_air(z) for z in (robust, plain, clips)]
        rows.append({
            "benchmark": "audio attacks", "what": f"over_the_air on {model_name}, L_inf {eps:g}, against PGD-{steps}",
            "ours": played[0], "peer": played[1], "unit": "share of playbacks misclassified",
            "ratio": played[0] / max(played[1], 1e-9), "note": f"clean clips {played[2]:.2f}",
        })  # fmt: skip
        masking, both = Masking.of(clips, rate, 2048), success(hidden) & success(plain)
        audible = [float(masking.share(z - clips)[both].mean()) for z in (hidden, plain)]
        rows.append({
            "benchmark": "audio attacks", "what": f"psychoacoustic on {model_name}, L_inf {eps:g}, against PGD-{steps}",
            "ours": audible[0], "peer": audible[1], "unit": "share of bins above the masking threshold",
            "ratio": audible[1] / max(audible[0], 1e-9),
            "note": f"success {success(hidden).float().mean():.2f} against {success(plain).float().mean():.2f}; "
                    f"the shares are of {int(both.sum())} clips that both fool",
        })  # fmt: skip
    return rows
