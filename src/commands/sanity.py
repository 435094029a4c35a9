"""Did the attacks of attack.py fail? Every attack searched for the known signs, and the self-test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from src.attacks.core import spec_of
from src.commands.attack import AttackedModel, Row, runs
from src.config import Config
from src.datasets.store import Clips
from src.evaluation import sanity_checks, summary, with_options
from src.evaluation.planted_test import self_test
from src.files import fingerprint
from src.threat import Budget

Signs = dict[str, list[sanity_checks.Indicator]]


def is_control(name: str) -> bool:
    """Random perturbations are no attack that could fail."""
    return spec_of(name).kind == "control"


def search(
    config: Config,
    subjects: Sequence[AttackedModel],
    clips: Clips,
    rows: Sequence[Row],
    given: Mapping[str, object],
    manifest: Path,
) -> tuple[Signs, dict[str, str]]:
    """The signs of failure of every attack on every model, on a few clips at the first eps and over all rows, and the
    fingerprint of what the former depend on: a manifest with the same one is taken at its word.

    Args:
        given: what all rows depend on.
        manifest: of an earlier run, if there was one.
    """
    found: Signs = {}
    searched: dict[str, str] = {}
    if not config.attack.checks:
        return found, searched
    old = json.loads(manifest.read_text()) if manifest.is_file() else {}
    first = {name: eps for name, eps in reversed(runs(config)) if not is_control(name)}
    for one in subjects:
        model = one.model.name
        right = {row["id"] for row in rows if row["model"] == model and row["correct"] == "1"}
        part = clips.select([i for i, example in enumerate(clips.ids) if example in right][: config.attack.checks])
        for name, eps in reversed(first.items()):
            title = f"{model}, {name}"
            signs = over_rows(config, [row for row in rows if (row["model"], row["attack"]) == (model, name)], eps)
            depends = {**given, "model": one.model.weights, "attack": name, "eps": str(eps), "on": part.ids}
            searched[title] = fingerprint(depends)
            if old.get("searched", {}).get(title) == searched[title]:
                known = [sanity_checks.Indicator(**facts) for facts in old["signs"][title]]
                signs += [sign for sign in known if sign.name not in sanity_checks.OVER_ROWS]
            elif len(part):
                signs += on_clips(config, one, part, name, eps)
            found[title] = signs
    return found, searched


def over_rows(config: Config, rows: Sequence[Row], eps: Budget | None) -> list[sanity_checks.Indicator]:
    """The signs that the rows of one attack on one model show."""
    signs, budgets = [sanity_checks.lost_on_wav(rows)], config.attack.eps
    if eps and len(budgets) > 1 and len({budget.is_snr for budget in budgets}) == 1:
        sign = -1 if eps.is_snr else 1
        signs.append(sanity_checks.not_monotone({sign * p["eps"]: p["accuracy"] for p in summary.points(rows)}))
    return signs


def on_clips(
    config: Config, one: AttackedModel, part: Clips, name: str, eps: Budget | None
) -> list[sanity_checks.Indicator]:
    """The signs that one attack on one model shows when it runs on these clips."""
    settings, own = config.attack, one.own
    x, valid, y, z = own.load(part)
    if settings.targeted:
        y = own.targets(y, part.ids)
    # Defenses act on the waveform: beyond it, both models are the same and there is nothing to transfer.
    undefended = one.model.victim.frozen() if config.defense.names and settings.stage == "waveform" else None
    with tqdm(desc=f"searching {name} for signs of failure", total=1, leave=False):
        return sanity_checks.check(
            with_options(name, config.component("ATTACK", name), own.victim.sample_rate),
            own.tail, own.attacked(part.ids), z, y,
            own.threat(x, z, valid, name, eps), streams=lambda purpose: own.streams(part.ids, purpose),
            targeted=settings.targeted, is_adaptive=settings.adaptive, undefended=undefended,
            has_budget=spec_of(name).has_budget,
        )  # fmt: skip


def plant_and_search(config: Config, subjects: Sequence[AttackedModel], clips: Clips) -> None:
    """--self-test: does each attack with a budget find a planted adversarial example?"""
    part = clips.select(range(min(len(clips), config.attack.batch_size)))
    for one in subjects:
        own = one.own
        x, valid, _, z = own.load(part)
        for name, eps in runs(config):
            if eps and not is_control(name):
                outcome = self_test(
                    with_options(name, config.component("ATTACK", name), own.victim.sample_rate),
                    own.attacked(part.ids), z,
                    own.threat(x, z, valid, name, eps),
                    streams=lambda purpose, own=own: own.streams(part.ids, purpose),  # type: ignore[misc]
                )  # fmt: skip
                print(f"{one.model.name}, {name}, eps {eps}: {outcome}", flush=True)
