"""Did the attacks of attack.py fail? Every attack searched for the known signs, and the self-test."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from src.attacks.registration import spec_of
from src.budget import Budget
from src.commands.attack import AttackedModel, attack_runs
from src.config import Config
from src.datasets.store import Clips
from src.evaluation import indicators, sanity_checks, summary, with_options, worst_case
from src.evaluation.indicators import Indicator, unmeasured
from src.evaluation.passing import gradient_of
from src.evaluation.planted_test import self_test
from src.evaluation.summary import Row
from src.files import fingerprint
from src.victims.chain import with_lengths

Signs = dict[str, list[Indicator]]


def is_control(name: str) -> bool:
    """Whether this is a random perturbation, which is no attack that could fail."""
    return spec_of(name).kind == "control"


def is_transferred(config: Config, attacked: AttackedModel, name: str) -> bool:
    """Whether this attack never meets the defenses of the model, or meets it among others only, so that nothing about
    its gradient can be learned from it."""
    undefended = gradient_of(config.component("ATTACK", name)) == "undefended"
    return bool(attacked.crafter.partners) or (undefended and attacked.crafter.undefended_tail is not None)


def search(
    config: Config,
    attacked: Sequence[AttackedModel],
    clips: Clips,
    rows: Sequence[Row],
    identity: Mapping[str, object],
    manifest: Path,
) -> tuple[Signs, dict[str, str]]:
    """The signs of failure of every attack on every model, on a few clips at the first eps and over all rows, and the
    fingerprint of what the former depend on: signs that the manifest has under the same fingerprint are not measured
    again.

    Args:
        identity: what all rows depend on.
        manifest: of an earlier run, if there was one.
    """
    signs: Signs = {}
    searched: dict[str, str] = {}
    for entry in attacked:
        sign = over_attacks(config, entry, rows)
        if sign.clips:
            signs[f"{entry.model.name}, {worst_case.NAME}"] = [sign]
    if not config.attack.checks:
        return signs, searched
    earlier = json.loads(manifest.read_text()) if manifest.is_file() else {}
    settings = config.attack
    first_eps = {name: eps for name, eps in reversed(attack_runs(config)) if not is_control(settings.registered(name))}
    for entry in attacked:
        model = entry.model.name
        right = {row["id"] for row in rows if row["model"] == model and row["correct"] == "1"}
        part = clips.select([i for i, example in enumerate(clips.ids) if example in right][: config.attack.checks])
        for name, eps in reversed(first_eps.items()):
            title = f"{model}, {name}"
            rows_of_attack = [row for row in rows if (row["model"], row["attack"]) == (model, name)]
            signs_of_attack = over_rows(config, rows_of_attack, eps)
            depends = {**identity, "model": entry.model.weights, "attack": name, "eps": str(eps), "on": part.ids,
                       "rules": sanity_checks.RULES}  # fmt: skip
            searched[title] = fingerprint(depends)
            if earlier.get("searched", {}).get(title) == searched[title]:
                known = [Indicator(**facts) for facts in earlier["signs"][title]]
                signs_of_attack += [indicator for indicator in known if indicator.name not in indicators.OVER_ROWS]
            elif is_transferred(config, entry, name):
                signs_of_attack.append(unmeasured("zero_gradient", "it is transferred from another model"))
            elif len(part) and not settings.spec(name).fitted:  # the other signs come from attacking these clips anew
                signs_of_attack += on_clips(config, entry, part, name, eps)
            signs[title] = signs_of_attack
    return signs, searched


def over_attacks(config: Config, attacked: AttackedModel, rows: Sequence[Row]) -> Indicator:
    """The sign that the rows of all attacks on one model show: a black box or a transfer that does better than every
    attack with a gradient."""
    names = [name for name in config.attack.names if not is_control(config.attack.registered(name))]
    names = [
        name for name in names if not config.attack.spec(name).limited
    ]  # less than the budget by their own options
    transferred = {name for name in names if is_transferred(config, attacked, name)}
    climbing = [name for name in names if config.attack.spec(name).access == "gradients" and name not in transferred]
    rows_of_model = [row for row in rows if row["model"] == attacked.model.name]
    return worst_case.misled(rows_of_model, climbing, [name for name in names if name not in climbing])


def over_rows(config: Config, rows: Sequence[Row], eps: Budget | None) -> list[Indicator]:
    """The signs that the rows of one attack on one model show."""
    signs = [indicators.lost_on_wav(rows), indicators.infeasible(rows), indicators.empty_budget(rows)]
    budgets = config.attack.eps
    if eps and len(budgets) > 1 and len({budget.is_snr for budget in budgets}) == 1:
        curve: dict[float, dict[str, bool]] = {}
        for row in rows:
            budget = Budget.parse(row["eps"])
            size = -budget.value if budget.is_snr else budget.value
            curve.setdefault(size, {})[row["id"]] = summary.still_right(row)
        signs.append(indicators.not_monotone(curve))
    return signs


def on_clips(config: Config, attacked: AttackedModel, part: Clips, name: str, eps: Budget | None) -> list[Indicator]:
    """The signs that one attack on one model shows when it runs on these clips."""
    settings, crafter = config.attack, attacked.crafter
    registered, options = settings.registered(name), config.component("ATTACK", name)
    x, valid, y, z = crafter.load(part)
    if settings.targeted:
        y = crafter.targets(y, part.ids)
    undefended = crafter.undefended_tail
    transfer_from = undefended and with_lengths(undefended, valid, crafter.head)
    with tqdm(desc=f"searching {name} for signs of failure", total=1, leave=False):
        return sanity_checks.check(
            sanity_checks.Evaluation.of(
                registered, options,
                attack=with_options(registered, options, crafter.victim.sample_rate, tap=crafter.tap(options)),
                chain=crafter.true_tail(valid), model=crafter.attacked_model(part.ids, x, valid, gradient_of(options)),
                x=z, y=y,
                threat=crafter.threat(x, z, valid, name, eps),
                streams=lambda purpose: crafter.streams(part.ids, purpose),
                targeted=settings.targeted, is_adaptive=settings.adaptive,
                undefended=transfer_from and crafter.through(transfer_from, part.ids, x, valid),
                through=lambda model: crafter.through(model, part.ids, x, valid),
            )
        )  # fmt: skip


def plant_and_search(config: Config, attacked: Sequence[AttackedModel], clips: Clips) -> None:
    """--self-test: does each attack find a planted adversarial example, at every eps? A minimum-norm attack finds it
    where its result is within eps."""
    for name, reason in untested(config).items():
        print(f"{name}: not tested ({reason})", flush=True)
    settings = config.attack
    wanted = [name for name in settings.names if not is_control(settings.registered(name))]
    names = [name for name in wanted if name not in untested(config)]
    part = clips.select(range(min(len(clips), settings.batch_size)))
    for entry in attacked:
        crafter = entry.crafter
        x, valid, _, z = crafter.load(part)
        for name, eps in itertools.product(names, settings.eps):
            options = config.component("ATTACK", name)
            outcome = self_test(
                with_options(
                    settings.registered(name), options, crafter.victim.sample_rate, tap=crafter.tap(options)
                ),
                crafter.attacked_model(part.ids, x, valid, gradient_of(options)), z,
                crafter.threat(x, z, valid, name, eps),
                streams=lambda purpose, crafter=crafter: crafter.streams(part.ids, purpose),  # type: ignore[misc]
            )  # fmt: skip
            print(f"{entry.model.name}, {name}, eps {eps}: {outcome}", flush=True)


def untested(config: Config) -> dict[str, str]:
    """The configured attacks that the self-test cannot judge, and why."""
    reasons = dict.fromkeys(config.attack.fitted_names, "fitted")
    norm = config.attack.norm
    return reasons | {
        name: f"no norm {norm}" for name in config.attack.names if norm not in config.attack.spec(name).norms
    }
