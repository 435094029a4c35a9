"""What train_model.py trains: every model of [MODEL] names, with the settings of its own sections."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from src.commands import selection
from src.config import Config
from src.training.settings import model_name
from src.training.teacher import KEY, has_teacher


@dataclass(frozen=True)
class Training:
    """One model to train.

    Attributes:
        name: under which it is saved.
        listed: its name in [MODEL] names.
        model: its architecture.
        config: the settings of its training.
        gradient_penalty: the weight of it.
        options: keys of its training method.
        teacher: name of the model that it learns from; empty for none.
    """

    name: str
    listed: str
    model: str
    config: Config
    gradient_penalty: float

    @property
    def options(self) -> dict[str, Any]:
        return self.config.component("TRAINING", self.config.training.method)

    @property
    def teacher(self) -> str:
        return str(self.options.get(KEY, "")) if has_teacher(self.config.training.method) else ""


def trainings(config: Config) -> list[Training]:
    """Every model of [MODEL] names with every weight of the gradient penalty, in their order.

    Raises:
        ValueError: two of them would be saved under one name.
    """
    listed = []
    defenses = selection.configured_defenses(config)
    for name in config.model.names:
        settings = config.of_model(name)
        model, training = config.model.registered(name), settings.training
        method, penalties = training.method, training.gradient_penalty
        for penalty in penalties:
            said, made = penalty, Training(name, name, model, settings, penalty)
            if name in config.model.variants:  # its name says what its own sections set
                method = method if method == config.training.method else "standard"
                said = 0.0 if penalties != config.training.gradient_penalty and len(penalties) == 1 else penalty
            teacher = "" if method == "standard" else made.teacher
            saved = model_name(name, said, method, defenses, teacher, training.suffix)
            listed.append(replace(made, name=saved))
    names = [training.name for training in listed]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"[MODEL] names: two models would be saved as {twice[0]}.pt")
    return listed
