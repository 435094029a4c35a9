"""The training loop: trains one victim from initial weights to a saved model; an interrupted training can be resumed.

NAME.last.state holds everything that the next epoch depends on and is rewritten, atomically, after each epoch. NAME.pt
is created, or replaces an older model, only when the training is complete. A resumed training ends with bit-identical
weights."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from src.datasets.store import Clips
from src.files import fingerprint
from src.random_streams import derive_seed
from src.training.batches import fit_stages
from src.training.memory import differences, facts_of, resume
from src.training.run import Estimated, TrainingRun, check_estimated
from src.training.settings import TrainingSettings
from src.training.teacher import Teacher, has_teacher
from src.victims import checkpoint
from src.victims.victim import Victim


def fit(
    victim: Victim,
    train: Clips,
    valid: Clips,
    *,
    name: str,
    model_dir: Path,
    training: TrainingSettings,
    gradient_penalty: float = 0.0,
    options: Mapping[str, Any] | None = None,
    noise: Tensor | None = None,
    teacher: Teacher | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Train `victim` (made by checkpoint.build) and save it as model_dir/NAME.pt.

    A complete training with the same settings, data and recipe is not repeated; an interrupted one is resumed.

    Args:
        gradient_penalty: weight of the L1 norm of the input gradient; 0 for none.
        options: keys of the training method.
        noise: background recordings [k, samples] for the noise augmentation, or None for white noise only.
        teacher: the model that the training method learns from, or None.
        progress: show a progress bar over the epochs on stderr.

    Returns:
        The facts stored with the model: settings, history, best epoch, accuracy, classes, seconds.

    Raises:
        ValueError: the loss is no longer finite, stage is no representation of this model, or the method has a teacher
            and there is none (or the other way round).
        OSError: a file cannot be written; the previous files are unchanged.
    """
    device = torch.device(device)
    stage = victim.representations[-1] if training.stage == "auto" else training.stage
    victim.split(stage)  # raises for an unknown representation, before any work
    check_estimated(victim.classifier, training, gradient_penalty)
    if has_teacher(training.method) is not (teacher is not None):
        raise ValueError(f"method = {training.method} {'learns from no' if teacher else 'needs a'} teacher")
    identity = {"teacher": teacher.identity()} if teacher else {}
    settings = {
        "training": training.identity(),
        "gradient_penalty": gradient_penalty,
        "options": dict(options or {}),
        "recipe": checkpoint.recipe_of(victim),
        "data": {"train": train.fingerprint(), "validation": valid.fingerprint()},
        "noise": "none" if noise is None else fingerprint(noise.cpu().numpy()),
        **identity,
    }
    path, last = model_dir / f"{name}.pt", model_dir / f"{name}.last.state"
    if path.is_file():
        facts = facts_of(path)
        changed = differences(facts.get("settings", {}), settings)
        if not changed:
            return facts
        message = f"{name}: was trained with other settings ({changed}); training again, then replacing the old file"
        tqdm.write(message, file=sys.stderr)
    victim.to(device)
    fit_stages(list(victim.stages), train, device, training.seed)  # type: ignore[arg-type]
    state = resume(last, settings)
    method = "gradient_penalty" if gradient_penalty else training.method
    method_options = {"weight": gradient_penalty} if gradient_penalty else dict(options or {})
    run = TrainingRun(
        victim, train, valid, stage, method, method_options, training, noise, device, name, progress,
        teacher.victim if teacher else None,
    )  # fmt: skip
    if state:
        run.restore(state)
    start = time.perf_counter() - (state["seconds"] if state else 0.0)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), run.bar(len(run.history)) as bar:
        epochs = range(len(run.history), training.epochs)
        if isinstance(victim.classifier, Estimated):
            run.estimate()
            epochs = range(0)
        for epoch in epochs:
            torch.manual_seed(derive_seed(training.seed, epoch, "dropout"))
            run.epoch(epoch, bar)
            seconds = time.perf_counter() - start
            checkpoint.write(
                last, {"format": checkpoint.FORMAT, "settings": settings, "seconds": seconds, **run.state()}
            )
    best = run.best
    victim.load_state_dict(best["state"])
    facts = {
        "settings": settings,
        "history": run.history,
        "best_epoch": best["epoch"],
        "validation_accuracy": best["accuracy"],
        "validation_loss": best["loss"],
        "gradient_penalty": gradient_penalty,
        "method": method,
        "stage": stage,
        **identity,
        "sigma": run.options.get("sigma", 0.0),
        "classes": list(train.classes),
        "source": train.source,
        "synthetic": train.synthetic,
        "n_train": len(train),
        "seed": training.seed,
        "device": device.type,
        "seconds": time.perf_counter() - start,
    }
    checkpoint.save(path, victim.eval(), facts)
    return facts
