"""What a run works on: the trained models that were asked for, behind the configured defenses, and the clips of the
split that n_test draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.config import Config
from src.datasets.store import Clips
from src.files import sha256_of
from src.random_streams import derive_seed
from src.registry import DEFENSES
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
    config: Config,
    names: Sequence[str] | None,
    clips: Clips,
    defenses: Sequence[Mapping[str, Any]] | None = None,
    check: Callable[[Victim], object] | None = None,
    judging: bool = False,
) -> list[Trained]:
    """The named models, or all in model_dir, each checked against the clips and behind its defenses.

    Args:
        defenses: as checkpoint.defend takes them; None for those of [DEFENSE].
        check: what a model must pass instead of knowing the classes of the clips; raises ValueError.
        judging: whether they only judge clips: a model of another sample rate or length hears them converted.

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
        if not judging:
            checkpoint.check_fits(victim, path, sample_rate=clips.sample_rate, n_samples=clips.n_samples)
        trained.append(Trained(path.stem, sha256_of(path), victim, facts))
        warn_of_another_network(path, facts)
    trained = usable(trained, check or (lambda victim: clips.known(victim.classes)), names)
    for model in trained if check is None else ():
        try:
            clips.known(model.victim.classes).relabeled(model.victim.classes)
        except ValueError as error:
            raise ValueError(f"{folder / model.name}.pt: {error}") from None
    trained = usable(trained, lambda victim: behind(victim, wanted), names)
    return [replace(model, victim=behind(model.victim, wanted)) for model in trained]


def warn_of_another_network(path: Path, facts: Mapping[str, Any]) -> None:
    """Say where the network that speakers were enrolled with has been trained anew since: the recognizer at `path` has
    the weights of then, and nothing else shows it."""
    enrollment = facts.get("enrollment") or {}
    network = path.parent / f"{enrollment.get('network', '')}.pt"
    if enrollment and network.is_file() and sha256_of(network) != enrollment["network_weights"]:
        print(
            f"warning: {path.stem} was enrolled with an earlier training of {network.stem}; "
            "run enroll_speakers.py to enroll with the present one"
        )


def known_clips(models: Sequence[Trained], clips: Clips) -> Clips:
    """The clips of classes that every model knows. Says how many others are left out: imposters, say, for a model
    that cannot reject.

    Raises:
        ValueError: no clip is left.
    """
    for model in models:
        known = clips.known(model.victim.classes)
        if len(known) < len(clips):
            number = f"{len(clips) - len(known)} of {len(clips)} clips"
            print(f"left out: {number}, of speakers that {model.name} does not know")
        clips = known
    return clips


def configured_defenses(config: Config, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The defenses of [DEFENSE], or these, in order, one entry per place where each stands."""
    entries = []
    for name in config.defense.names if names is None else names:
        options = config.component("DEFENSE", name)
        places = options.pop("at", (WAVEFORM,))
        entries += [{"name": config.defense.registered(name), "options": options, "at": place} for place in places]
    return entries


def behind(victim: Victim, wanted: Sequence[Mapping[str, Any]]) -> Victim:
    """The victim behind the wanted defenses. One that was trained behind defenses keeps them.

    Raises:
        ValueError: it was trained behind others, or a defense cannot stand where it is wanted.
    """
    trained = checkpoint.defenses_of(victim)
    if not wanted:
        return victim
    defended = checkpoint.defend(victim.undefended(), wanted)
    if not trained:
        return defended
    asked = checkpoint.defenses_of(defended)
    if asked != trained:
        raise ValueError(
            f"this model was trained behind {describe(trained)}, [DEFENSE] asks for {describe(asked)}; leave [DEFENSE] "
            "names empty to take it as it was trained"
        )
    return victim


def describe(defenses: Sequence[Mapping[str, Any]]) -> str:
    """Defenses as titles name them: 'quantize, median (width 3) at log_mel'; options at their default are left out."""
    texts = []
    for entry in defenses:
        defaults = {key.name: key.default for key in DEFENSES.keys(entry["name"])}
        changed = [f"{k} {v}" for k, v in entry.get("options", {}).items() if v != defaults.get(k)]
        options = f" ({', '.join(changed)})" if changed else ""
        place = "" if entry["at"] == WAVEFORM else f" at {entry['at']}"
        texts.append(f"{entry['name']}{options}{place}")
    return ", ".join(texts)


def usable(
    models: Sequence[Trained],
    check: Callable[[Victim], object],
    names: Sequence[str] | None,
    left_out: str = "left out",
) -> list[Trained]:
    """The models that pass a check. Where none was asked for by name, the others are named and left out.

    Args:
        check: raises ValueError where a model cannot be used.
        names: the models that were asked for, or None for all there are.
        left_out: what is said of the others.

    Raises:
        ValueError: a model that was asked for cannot be used, or none can.
    """
    passed: list[Trained] = []
    for position, model in enumerate(models):
        try:
            check(model.victim)
        except ValueError as error:
            if names or (not passed and position == len(models) - 1):
                raise ValueError(f"{model.name}: {error}") from None
            print(f"{left_out}: {model.name}: {error}")
            continue
        passed.append(model)
    return passed


def drawn(config: Config, clips: Clips) -> Tensor:
    """Positions of n_test clips in a seeded random order: a smaller n_test draws the first of them."""
    order = torch.Generator().manual_seed(derive_seed(config.data.seed, "n_test"))
    return torch.randperm(len(clips), generator=order)[: config.data.n_test]
