"""The trained models of a run, and the seeded draw of n_test clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from src.config import Config
from src.datasets.store import Clips
from src.files import sha256_of
from src.random_streams import derive_seed
from src.victims import checkpoint
from src.victims.victim import Victim

SYNTHETIC = "SYNTHETIC SPEECH: a speech synthesizer spoke these clips."


@dataclass(frozen=True)
class Trained:
    """One trained model.

    Attributes:
        name: file name without the extension.
        weights: SHA-256 of the file.
        victim: front end and classifier.
        facts: training facts stored with it.
    """

    name: str
    weights: str
    victim: Victim
    facts: dict[str, object]


def models(config: Config, names: Sequence[str] | None, clips: Clips) -> list[Trained]:
    """The named models, or all in model_dir, each checked against the clips.

    Raises:
        OSError: no such model, or none at all.
        ValueError: a file is not a checkpoint, or the model was trained for other clips.
    """
    folder = config.results.model_dir
    paths = [folder / f"{name}.pt" for name in names or ()] or sorted(folder.glob("*.pt"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no trained models here; run train_model.py first")
    trained = []
    for path in paths:
        victim, facts = checkpoint.load(path)
        checkpoint.check_fits(
            victim, path, classes=clips.classes, sample_rate=clips.sample_rate, n_samples=clips.n_samples
        )
        trained.append(Trained(path.stem, sha256_of(path), victim, facts))
    return trained


def drawn(config: Config, clips: Clips) -> Tensor:
    """Positions of n_test clips in a seeded random order: a smaller n_test draws the first of them."""
    order = torch.Generator().manual_seed(derive_seed(config.data.seed, "n_test"))
    return torch.randperm(len(clips), generator=order)[: config.data.n_test]
