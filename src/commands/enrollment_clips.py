"""Clips that speakers are enrolled with: those in which somebody speaks, and how many of each speaker."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from src.datasets.store import Clips
from src.random_streams import derive_seed

SILENCE = 10 ** (-70 / 20)
"""Root mean square of a clip, in units of full scale, below which nobody speaks."""
SHORTEST = 0.5
"""Seconds of speech below which a clip says little about who speaks."""


def usable(clips: Clips) -> Clips:
    """The clips in which somebody speaks: at least SHORTEST seconds long and not silent. Says how many are left out.

    Raises:
        ValueError: there is none.
    """
    seconds = clips.lengths / clips.sample_rate
    power = torch.stack([clips.waveforms([i])[0, : clips.lengths[i]].square().mean() for i in range(len(clips))])
    speech = (seconds >= SHORTEST) & (power.sqrt() >= SILENCE)
    if speech.all():
        return clips
    unusable = f"silent or shorter than {SHORTEST:g} s"
    if not speech.any():
        raise ValueError(f"all {len(clips)} clips of a split are {unusable}: {clips.ids[0]} ...")
    print(f"left out: {int((~speech).sum())} of {len(clips)} clips, {unusable}")
    return clips.select(speech.nonzero().flatten())


def drawn(clips: Clips, speakers: Sequence[str], utterances: int, seed: int) -> Clips:
    """`utterances` clips of each of these speakers, all for 0, in a seeded order: fewer are the first of more.

    Args:
        clips: usable ones.

    Raises:
        ValueError: a speaker has fewer, or none.
    """
    rows: list[int] = []
    for name in speakers:
        mine = (clips.labels == clips.classes.index(name)).nonzero().flatten()
        if not len(mine):
            raise ValueError(
                f"speaker {name} has no usable audio: every clip to enroll is silent or shorter than {SHORTEST:g} s"
            )
        if len(mine) < utterances:
            raise ValueError(f"utterances = {utterances}: speaker {name} has only {len(mine)} usable clips to enroll")
        order = torch.Generator().manual_seed(derive_seed(seed, name, "enroll"))
        rows += mine[torch.randperm(len(mine), generator=order)[: utterances or None]].tolist()
    return clips.select(rows)
