"""What a run works on: the trained models that were asked for, behind the configured defenses, and the clips of the
split that n_test draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.config import Config
from src.datasets.store import Clips
from src.files import sha256_of
from src.random_streams import derive_seed
from src.victims import checkpoint
from src.victims.stage import WAVEFORM
from src.victims.victim import Victim

SYNTHETIC = "SYNTHETIC SPEECH: a speech synthesizer spoke these clips."


@dataclass(frozen=True)
class Trained:
    """One trained model.

    Attributes:
        name: file name without the extension.
        weights: SHA-256 of the file.
        victim: front end, defenses and classifier.
        facts: training facts stored with it.
    """

    name: str
    weights: str
    victim: Victim
    facts: dict[str, object]


def models(
    config: Config, names: Sequence[str] | None, clips: Clips, defenses: Sequence[Mapping[str, Any]] | None = None
) -> list[Trained]:
    """The named models, or all in model_dir, each checked against the clips and behind its defenses.

    Args:
        defenses: as checkpoint.defend takes them; None for those of [DEFENSE].

    Raises:
        OSError: no such model, or none at all.
        ValueError: a file is not a checkpoint, or the model was trained for other clips or behind other defenses.
    """
    folder = config.results.model_dir
    paths = [folder / f"{name}.pt" for name in names or ()] or sorted(folder.glob("*.pt"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no trained models here; run train_model.py first")
    wanted = configured_defenses(config) if defenses is None else defenses
    trained = []
    for path in paths:
        victim, facts = checkpoint.load(path)
        checkpoint.check_fits(victim, path, sample_rate=clips.sample_rate, n_samples=clips.n_samples)
        try:
            clips.relabeled(victim.classes)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        trained.append(Trained(path.stem, sha256_of(path), behind(victim, wanted, path), facts))
    return trained


def configured_defenses(config: Config, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The defenses of [DEFENSE], or these, in order, one entry per place where each stands."""
    entries = []
    for name in config.defense.names if names is None else names:
        options = config.component("DEFENSE", name)
        places = options.pop("at", (WAVEFORM,))
        entries += [{"name": name, "options": options, "at": place} for place in places]
    return entries


def behind(victim: Victim, wanted: Sequence[Mapping[str, Any]], path: Path) -> Victim:
    """The victim behind the wanted defenses. One that was trained behind defenses keeps them.

    Raises:
        ValueError: it was trained behind others, or a defense cannot stand where it is wanted.
    """
    trained = checkpoint.defenses_of(victim)
    if not wanted or trained == list(wanted):
        return victim
    if trained:
        raise ValueError(
            f"{path}: this model was trained behind {describe(trained)}, [DEFENSE] asks for {describe(wanted)}; "
            "leave [DEFENSE] names empty to take it as it was trained"
        )
    return checkpoint.defend(victim, wanted)


def describe(defenses: Sequence[Mapping[str, Any]]) -> str:
    """Defenses as titles name them: 'quantize, median at log_mel'."""
    return ", ".join(d["name"] if d["at"] == WAVEFORM else f"{d['name']} at {d['at']}" for d in defenses)


def drawn(config: Config, clips: Clips) -> Tensor:
    """Positions of n_test clips in a seeded random order: a smaller n_test draws the first of them."""
    order = torch.Generator().manual_seed(derive_seed(config.data.seed, "n_test"))
    return torch.randperm(len(clips), generator=order)[: config.data.n_test]
