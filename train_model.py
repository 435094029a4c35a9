"""Train one model per architecture and gradient penalty."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from src import cli
from src.commands import selection
from src.commands.trainings import trainings
from src.config import Config
from src.datasets import store
from src.datasets.noise import load_noise
from src.distributed import choose_device
from src.output import figures, results
from src.random_streams import derive_seed
from src.registry import MODELS
from src.training import fit
from src.training.teacher import load_teacher
from src.victims import checkpoint


def main(config: Config, args: argparse.Namespace) -> None:
    """Train every model of [MODEL] names with every value of [TRAINING] gradient_penalty, by [TRAINING] method.

    A variant [MODEL.NAME] with `model = ...` is one more model under its own name; [MODEL.NAME.TRAINING] and
    [MODEL.NAME.FRONTEND.<name>] hold for the training of one model only.

    Writes model_dir/NAME.pt and plots of loss, validation accuracy and learning rate. A complete training is not
    repeated; an interrupted one is resumed after its last complete epoch and ends with the same weights.
    """
    train, valid = (store.load(config.data.data_dir, split) for split in ("train", "validation"))
    # In a store with roles the classes of a network are the speakers it is trained on, not those to be enrolled.
    classes = train.present
    train, valid = train.relabeled(classes), valid.relabeled(classes)
    device = choose_device(config.training.use_cuda)
    listed, defenses = trainings(config), selection.configured_defenses(config)
    victims, noises, comes = [], dict[str, torch.Tensor | None](), set[str]()
    for training in listed:  # all are built first, so that a mistake is reported before any work
        own, settings = training.config, training.config.training
        if training.teacher not in comes:
            load_teacher(settings.method, training.options, config.results.model_dir, train)
        comes.add(training.name)
        if settings.noise and settings.noise_dir and settings.noise_dir not in noises:
            folder = Path(settings.noise_dir).expanduser()
            noises[settings.noise_dir] = load_noise(folder, train.sample_rate, train.n_samples)
        configured = own.frontend.name
        front_end = MODELS[training.model].front_end if configured == "auto" else configured  # type: ignore[attr-defined]
        torch.manual_seed(derive_seed(settings.seed, training.listed))
        victim = checkpoint.build(
            model=training.model,
            front_end=front_end,
            model_options=config.component("MODEL", training.listed),
            front_end_options=own.component("FRONTEND", front_end),
            classes=classes,
            sample_rate=train.sample_rate,
            n_samples=train.n_samples,
            defenses=defenses,
        )
        if settings.stage != "auto":
            victim.split(settings.stage)
        victims.append(victim)
    rows = []
    for training, victim in zip(listed, victims, strict=True):
        name, settings = training.name, training.config.training
        # Only now, for it may have been trained in this run.
        teacher = load_teacher(settings.method, training.options, config.results.model_dir, train)
        facts = fit(
            victim,
            train,
            valid,
            name=name,
            model_dir=config.results.model_dir,
            training=settings,
            gradient_penalty=training.gradient_penalty,
            options=training.options,
            noise=noises.get(settings.noise_dir) if settings.noise else None,
            teacher=teacher,
            device=device,
        )
        note = " (synthetic speech)" if train.synthetic else ""
        figures.training(config.results.plot_dir / f"training.{name}.png", facts["history"], title=f"{name}{note}")
        rows.append(
            {
                "model": name,
                "parameters": sum(parameter.numel() for parameter in victim.parameters()),
                "epochs": len(facts["history"]),
                "best_epoch": facts["best_epoch"],
                "validation_accuracy": facts["validation_accuracy"],
                "minutes": round(facts["seconds"] / 60, 2),
            }
        )
    print(results.markdown(rows))
    if train.synthetic:
        print("SYNTHETIC SPEECH: a speech synthesizer spoke these clips.")
    print(f"models: {config.results.model_dir}, plots: {config.results.plot_dir}")


if __name__ == "__main__":
    cli.run(main)
