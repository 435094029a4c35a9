"""What a fitted attack learned, as one file: the tensors, and the model, budget, representation and clips that it was
fitted to. Nothing in it is executed: tensors and plain values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from torch import Tensor

from src.victims import checkpoint


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedAttack:
    """The result of `RegisteredAttack.fit`.

    Attributes:
        attack: its registered name.
        victim: name of the model that it was fitted against.
        weights: SHA-256 of the file of that model.
        stage: the attacked representation.
        norm: of the perturbation.
        eps: the budget as the config gives it.
        targeted: whether it aims at target labels.
        options: fingerprint of the config keys.
        clips: fingerprint of the clips that it was fitted to.
        tensors: what it learned.
    """

    attack: str
    victim: str
    weights: str
    stage: str
    norm: str
    eps: str
    targeted: bool
    options: str
    clips: str
    tensors: Mapping[str, Tensor]

    def fits(self, weights: str) -> bool:
        """Whether it was fitted against the model of this file. Applying it to another one is a transfer attack."""
        return self.weights == weights


def save(path: Path, fitted: FittedAttack) -> None:
    """Write a fitted attack atomically.

    Raises:
        OSError: cannot write.
    """
    facts = {field.name: getattr(fitted, field.name) for field in fields(fitted)}
    tensors = {name: tensor.cpu() for name, tensor in fitted.tensors.items()}
    checkpoint.write(path, {"format": checkpoint.FORMAT, "fitted_attack": {**facts, "tensors": tensors}})


def load(path: Path) -> FittedAttack:
    """A fitted attack from its file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a fitted attack, or damaged.
    """
    content = checkpoint.read(path)
    try:
        return FittedAttack(**content["fitted_attack"])
    except (KeyError, TypeError):
        raise ValueError(f"{path}: not a fitted attack") from None
