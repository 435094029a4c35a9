"""A trained victim as one file: front end, classes, sample rate, statistics, model and training facts, so that a
script that loads it never guesses. Nothing in it is executed: tensors and plain values only (`weights_only`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from src.files import write_atomically
from src.registry import DEFENSES, FRONTENDS, MODELS
from src.victims.recognizer import Enrollment, Recognizer, check_embeds
from src.victims.stage import WAVEFORM, Defense, Stage
from src.victims.victim import Victim

FORMAT = 1
LENGTH = "clip length in samples"


def build(
    *,
    model: str,
    front_end: str = "auto",
    model_options: Mapping[str, Any] | None = None,
    front_end_options: Mapping[str, Any] | None = None,
    classes: Sequence[str],
    sample_rate: int,
    n_samples: int,
    defenses: Sequence[Mapping[str, Any]] = (),
    recognizer: Mapping[str, Any] | None = None,
) -> Victim:
    """A victim with fresh weights; its `recipe` rebuilds it from a checkpoint.

    Args:
        front_end: its name, or auto for the one the model was published with.
        classes: those the network is trained on.
        defenses: name, options and at (the representation it stands behind) of each, see `defend`.
        recognizer: makes a recognizer of enrolled speakers of the network: the fields of src.victims.recognizer's
            Enrollment. Its speakers, not `classes`, are then the classes of the victim.

    Raises:
        ValueError: unknown names, or options that do not fit (a front end too small for the model, say).
    """
    builder = MODELS[model]
    front_end = builder.front_end if front_end == "auto" else front_end  # type: ignore[attr-defined]
    recipe: dict[str, Any] = {
        "model": model,
        "front_end": front_end,
        "model_options": dict(model_options or {}),
        "front_end_options": dict(front_end_options or {}),
        "classes": list(classes),
        "sample_rate": sample_rate,
        "n_samples": n_samples,
    }
    stages = FRONTENDS[front_end](sample_rate=sample_rate, n_samples=n_samples, **recipe["front_end_options"])
    shape: tuple[int, ...] = (n_samples,)
    with torch.no_grad():
        features = torch.zeros(1, n_samples)
        for stage in stages:
            features = stage(features)
        shape = tuple(features.shape[1:])
    classifier = builder(n_classes=len(classes), shape=shape, **recipe["model_options"])
    victim = Victim(stages, classifier, classes=classes, sample_rate=sample_rate, n_samples=n_samples)
    victim.recipe = recipe
    if recognizer is not None:
        victim = enrolled(victim, Enrollment(**{**recognizer, "speakers": tuple(recognizer["speakers"])}))
    return defend(victim, defenses)


def enrolled(victim: Victim, enrollment: Enrollment) -> Victim:
    """The recognizer that the victim's network becomes by an enrollment; it shares the weights, its own tensors are
    still to be filled.

    Raises:
        ValueError: a network without embeddings, or options that the back end refuses.
    """
    assert victim.classifier is not None
    check_embeds(victim.classifier)
    stages: list[Stage] = list(victim.stages)  # type: ignore[arg-type]
    made = Victim(
        stages,
        Recognizer(victim.classifier, enrollment),
        classes=enrollment.classes,
        sample_rate=victim.sample_rate,
        n_samples=victim.n_samples,
    )
    made.recipe = {**victim.recipe, "recognizer": enrollment.plain()}
    return made.train(victim.training)


def build_defense(name: str, sample_rate: int, options: Mapping[str, Any] | None = None) -> Defense:
    """A defense by its name and config keys, which a checkpoint can hold.

    Raises:
        ValueError: an unknown name, or options that do not fit.
    """
    defense: Defense = DEFENSES[name](sample_rate=sample_rate, **(options or {}))
    defaults = {key.name: key.default for key in DEFENSES.keys(name)}
    defense.recipe = {"name": name, "options": {**defaults, **(options or {})}}
    return defense


def defend(victim: Victim, defenses: Sequence[Mapping[str, Any]]) -> Victim:
    """The victim behind these defenses, those of one place in their order; the weights are shared.

    Args:
        defenses: {"name": ..., "options": config keys, "at": representation} each, as `defenses_of` gives them.

    Raises:
        ValueError: an unknown name, options that do not fit, or a place where the defense cannot stand.
    """
    places = list(victim.representations)
    for entry in sorted(defenses, key=lambda d: places.index(at) if (at := d.get("at", WAVEFORM)) in places else 0):
        defense = build_defense(entry["name"], victim.sample_rate, entry.get("options"))
        victim = victim.defended([defense], entry.get("at", WAVEFORM))
    return victim


def defenses_of(victim: Victim) -> list[dict[str, Any]]:
    """What `defend` takes to put the victim's defenses in front of another one.

    Raises:
        ValueError: a defense that was not built by its name.
    """
    for defense in victim.defenses:
        if defense.recipe is None:
            raise ValueError(f"the defense '{defense.name}' was not built by its name: use checkpoint.build_defense")
    return [{**(defense.recipe or {}), "at": defense.position} for defense in victim.defenses]


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values atomically: the file is the old one or the new one, never half of it.

    Raises:
        OSError: cannot write (a full disk); whatever was there before stays.
    """

    def save_tensors(file: BinaryIO) -> None:
        try:
            torch.save(dict(content), file)
        except RuntimeError as error:  # torch reports a failed write this way
            raise OSError(f"{path}: cannot write ({str(error).splitlines()[0]})") from None

    write_atomically(path, save_tensors)


def read(path: Path) -> dict[str, Any]:
    """The content of a file written by `write`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != FORMAT:
            raise KeyError("format")
    except Exception as error:  # torch.load raises many kinds for a foreign or damaged file
        if isinstance(error, MemoryError):
            raise
        raise ValueError(f"{path}: not an Earshot checkpoint, or damaged ({type(error).__name__})") from None
    return content


def recipe_of(victim: Victim) -> dict[str, Any]:
    """What `build` takes to make the victim anew, its defenses included."""
    defenses = defenses_of(victim)
    return {**victim.recipe, "defenses": defenses} if defenses else dict(victim.recipe)


def save(path: Path, victim: Victim, facts: Mapping[str, Any]) -> None:
    """Write a victim made by `build`, its defenses included, with the facts of its training (plain values).

    Raises:
        ValueError: a victim or a defense put together by hand, which no recipe can rebuild.
        OSError: cannot write; whatever was there before stays.
    """
    if not victim.recipe:
        raise ValueError("only a victim made by checkpoint.build can be saved: this one has no recipe")
    write(path, {"format": FORMAT, "recipe": recipe_of(victim), "state": victim.state_dict(), "facts": dict(facts)})


def load(path: Path) -> tuple[Victim, dict[str, Any]]:
    """(victim in evaluation mode, training facts).

    Raises:
        FileNotFoundError: no such file; lists the models beside it.
        ValueError: not a checkpoint, damaged, or of another front end than its weights.
    """
    if not path.is_file():
        choices = ", ".join(sorted(p.stem for p in path.parent.glob("*.pt"))) or "none"
        raise FileNotFoundError(f"{path}: no such model (trained models there: {choices})")
    content = read(path)
    try:
        victim = build(**content["recipe"])
        victim.load_state_dict(content["state"])
    except (KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: the weights do not fit the front end and model it names ({reason})") from None
    return victim.eval(), content["facts"]


def check_fits(victim: Victim, path: Path | None, *, sample_rate: int, n_samples: int) -> None:
    """Refuse to use a model on data it was not built for. One that uses a mask takes clips of any length.

    Args:
        path: the file of the model, for the message; None where there is none.

    Raises:
        ValueError: names what differs.
    """
    for what, of_model, of_data in (
        ("sample rate", victim.sample_rate, sample_rate),
        (LENGTH, victim.n_samples, n_samples),
    ):
        if of_model != of_data and not (what == LENGTH and victim.uses_mask):
            file = f"{path}: " if path else ""
            raise ValueError(
                f"{file}this model was trained for another {what} ({of_model}) than the prepared data ({of_data})"
            )
