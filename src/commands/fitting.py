"""What the attacks of attack.py take from training or validation clips before they attack test clips: fitted attacks
learn from them, and keep the result as a file in `fitted`, beside the rows; others begin at them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from src.attacks.fitted import FittedAttack, load, save
from src.budget import Budget
from src.commands.selection import Trained, configured_defenses
from src.config import Config
from src.datasets import store
from src.datasets.store import Clips
from src.evaluation import Crafter, threat_norm
from src.files import fingerprint
from src.random_streams import derive_seed


def clips(config: Config) -> Clips:
    """At most fit_clips clips of fit_split, drawn with the seed of the data, in the order of the store."""
    split = store.load(config.data.data_dir, config.attack.fit_split)
    generator = torch.Generator().manual_seed(derive_seed(config.data.seed, "fit_clips"))
    return split.select(torch.randperm(len(split), generator=generator)[: config.attack.fit_clips].sort().values)


def examples(config: Config, name: str) -> Clips | None:
    """The clips that an attack towards a target may begin at; None for an attack that needs none.

    Raises:
        OSError: no prepared clips of fit_split.
    """
    begins_there = config.attack.targeted and config.attack.spec(name).takes_examples
    return clips(config) if begins_there else None


def tensors(
    config: Config,
    crafter: Crafter,
    model: Trained,
    name: str,
    eps: Budget | None,
    folder: Path,
    ensemble: Mapping[str, str] | None = None,
) -> Mapping[str, Tensor] | None:
    """What a fitted attack learned against this model: read from its file, or fitted now and written there. None for
    an attack that is not fitted.

    Args:
        ensemble: models that are attacked together with this one, name -> SHA-256 of their weights.

    Raises:
        OSError: no prepared clips of fit_split, or the file cannot be written.
    """
    if not config.attack.spec(name).fitted:
        return None
    settings, options, fit_clips = config.attack, config.component("ATTACK", name), clips(config)
    used = ("mask", "silence_db", "adaptive", "eot_draws", "seed")
    depends = {**options, **{key: getattr(settings, key) for key in used}, "defenses": configured_defenses(config)}
    depends |= {"rules": settings.identity()["rules"], **({"ensemble": ensemble} if ensemble else {})}
    entry = FittedAttack(
        attack=settings.registered(name), victim=model.name, weights=model.weights, stage=settings.stage,
        norm=threat_norm(settings.registered(name), settings.norm), eps=str(eps or "inf"), targeted=settings.targeted,
        options=fingerprint({**depends, "device": crafter.device.type}), clips=fit_clips.fingerprint(), tensors={},
    )  # fmt: skip
    path = folder / "fitted" / model.name / f"{name}_{eps or 'inf'}_{fingerprint(vars(entry))}.pt".replace(" ", "")
    if path.is_file():
        return load(path).tensors
    fitted = crafter.fit(fit_clips, name, options, eps)
    save(path, replace(entry, tensors=fitted))
    return fitted
