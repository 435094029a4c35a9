"""A trained model as the teacher of another one: through its own front end, in evaluation mode, its weights fixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.datasets.store import Clips
from src.files import sha256_of
from src.registry import METHODS, keys_of
from src.victims import checkpoint
from src.victims.victim import Victim

KEY = "teacher"
"""The key of a training method that learns from a teacher: the name of its model file."""


@dataclass(frozen=True)
class Teacher:
    """A model whose outputs are learned.

    Attributes:
        name: file name without the extension.
        weights: SHA-256 of the file.
        victim: a frozen copy of the model.
    """

    name: str
    weights: str
    victim: Victim

    def identity(self) -> dict[str, str]:
        """What a checkpoint says of the teacher of its model."""
        return {"name": self.name, "weights": self.weights}


def has_teacher(method: str) -> bool:
    """Whether a training method learns from a teacher."""
    return any(key.name == KEY for key in keys_of(METHODS[method]))


def load_teacher(method: str, options: Mapping[str, Any], model_dir: Path, train: Clips) -> Teacher | None:
    """The teacher that the options of a training method name; None where the method has none.

    Args:
        train: the training clips, with the classes of the model that is trained.

    Raises:
        FileNotFoundError: no such model; lists those there are.
        ValueError: no teacher is named, it does not fit the clips, or its answers are random.
    """
    if not has_teacher(method):
        return None
    name = options.get(KEY, "")
    if not name:
        raise ValueError(f"method = {method} needs a model to learn from: set TRAINING.{method}.{KEY} to its name")
    path = model_dir / f"{name}.pt"
    victim, _ = checkpoint.load(path)
    checkpoint.check_fits(victim, path, sample_rate=train.sample_rate, n_samples=train.n_samples)
    if victim.classes != train.classes:
        raise ValueError(
            f"{path}: the teacher's classes ({', '.join(victim.classes)}) are not those of the training clips in their "
            f"order ({', '.join(train.classes)})"
        )
    randomized = [stage.name for stage in victim.stages if stage.randomized]
    if randomized:
        raise ValueError(f"{path}: the answers of this teacher are random ({randomized[0]}); name one without that")
    return Teacher(name, sha256_of(path), victim.frozen())
