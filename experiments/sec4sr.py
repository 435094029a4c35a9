"""The study of SEC4SR (Chen et al. 2022): 22 transformations of the audio or its features against the attacks on
speaker recognition, made without and with knowledge of the defense.

    EARSHOT_THREADS=1 python experiments/sec4sr.py --config experiments/sec4sr.ini --processes 2

It trains one model, attacks it without any defense and judges these clips behind each defense (non-adaptive); then it
attacks the model behind each defense in several ways, of which the strongest counts for each clip (adaptive); last, it
trains on adversarial clips, alone and through some defenses, and attacks these models and, within the same smaller
budget, the first one (trained). It calls the scripts in turn, or several of them side by side (`--processes`); the same
command resumes it at the last row. `--defenses` and `--phases` restrict the work; with `--report` only the tables of
the results so far are made."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from experiments.scripts import Step, call, call_side_by_side  # noqa: E402
from src import cli  # noqa: E402
from src.commands import selection  # noqa: E402
from src.config import Config  # noqa: E402
from src.datasets import store  # noqa: E402
from src.evaluation import worst_case  # noqa: E402
from src.evaluation.accuracy import r1, wilson  # noqa: E402
from src.evaluation.summary import Row, is_true, still_right  # noqa: E402
from src.output import results  # noqa: E402
from src.victims import checkpoint  # noqa: E402
from src.victims.stage import Defense  # noqa: E402

NONE = "none"
DEFENSES = {
    "QT": "quantize", "AT": "noise_at_snr", "AS": "average", "MS": "median", "DS": "downsample", "LPF": "lowpass",
    "BPF": "bandpass", "OPUS": "opus", "SPEEX": "speex", "AMR": "amr", "AAC-V": "aac_vbr", "AAC-C": "aac",
    "MP3-V": "mp3_vbr", "MP3-C": "mp3",
    **{f"FeCo {level}{', warped' if end else ''}": f"feco_{level}{end}"
       for end in ("", "_warped") for level in ("raw", "delta", "cmvn", "final")},
}  # fmt: skip
"""The study's name -> that of a defense, or of a variant in the config."""
NON_ADAPTIVE = ("fgsm", "pgd_10", "pgd_100", "cw2_0", "cw2_5", "fakebob", "siren", "kenansville")
GRADIENTS = ("pgd_known", "pgd_identity", "pgd_momentum", "cw_known")
"""Adaptive attacks that follow the gradient of the defended model, in the order of their cost."""
OTHERS = ("transfer", "kenansville", "tile_bandit")
"""A transfer from the model without the defense at the highest confidence, and black boxes: the controls."""
DRAWS = 2
"""Of EOT per step of adversarial training, where the defense is random."""
TRAINED = (NONE, "QT", "AT", "FeCo raw")
"""The defenses that adversarial training is combined with."""
TRAININGS = ("plain", "adversarial")
PHASES = ("non_adaptive", "adaptive", "trained")
PUBLISHED = {
    NONE: (99.8, 0.0, 8.3, None), "QT": (86.8, 67.2, 76.0, 0.0), "AT": (89.2, 81.2, 84.5, 1.8),
    "AS": (98.1, 0.0, 39.8, None), "MS": (83.9, 24.5, 53.9, 0.0), "DS": (91.8, 0.2, 38.3, None),
    "LPF": (96.9, 0.0, 38.2, None), "BPF": (91.0, 0.0, 36.1, None), "OPUS": (88.6, 23.3, 56.8, 84.4),
    "SPEEX": (93.8, 21.8, 53.5, 75.4), "AMR": (96.8, 15.9, 55.4, 63.4), "AAC-V": (99.8, 0.0, 29.8, None),
    "AAC-C": (92.7, 2.7, 44.7, 6.2), "MP3-V": (99.6, 0.0, 27.1, None), "MP3-C": (96.4, 0.0, 40.9, 0.9),
    "FeCo raw": (94.0, 20.8, 58.0, 0.0), "FeCo delta": (99.4, 1.1, 49.6, None),
}  # fmt: skip
"""Percent, of CSI-E: accuracy, under non-adaptive PGD-100, R1, under adaptive PGD-100 (None: in no table we have)."""


def rows_of(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def share(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def non_adaptive(folder: Path, titles: Mapping[str, str]) -> list[dict[str, object]]:
    """One line per defense: accuracy without attack and under each attack that ignores it, judged on the wav."""
    lines = []
    judged = rows_of(folder / "attack/judged.csv")
    for title in (NONE, *titles):
        end = f"+{titles[title]}" if title != NONE else ""
        rows = [row for row in judged if row["judge"].endswith(end)] if end else rows_of(folder / "attack/rows.csv")
        of_attack = {name: [row for row in rows if row["attack"] == name] for name in NON_ADAPTIVE}
        if not all(of_attack.values()):
            continue
        benign = share([is_true(row, "correct") for row in of_attack["fgsm"]])
        under = {name: share([still_right(row, "wav") for row in of_attack[name]]) for name in NON_ADAPTIVE}
        published = PUBLISHED.get(title, (None,) * 4)
        lines.append(
            {"defense": title, "benign": benign, **under, "R1": r1(benign, list(under.values())),
             **dict(zip(("published benign", "published PGD-100", "published R1"), published, strict=False))}
        )  # fmt: skip
    return lines


def adaptive(folder: Path, titles: Mapping[str, str], published: bool = True) -> list[dict[str, object]]:
    """One line per defense: accuracy under each attack that knows it and in the worst case per clip, which attack
    breaks how many clips first, how loud the changes are, and whether black boxes or transfers beat the gradients.

    Args:
        folder: with the results of each defense in a folder of its name.
        published: with the published figure, which is of models without adversarial training.
    """
    lines = []
    for title in (NONE, *titles):
        rows = rows_of(folder / titles.get(title, NONE) / "attack/rows.csv")
        rows = [row for row in rows if row["attack"] in (*GRADIENTS, *OTHERS)]
        present = [name for name in (*GRADIENTS, *OTHERS) if any(row["attack"] == name for row in rows)]
        if not rows:
            continue
        for case in worst_case.cases(rows, present):
            broken = {clip: case.winners(clip) for clip in case.attempts}
            first = [names[0] for names in broken.values() if names]
            right = [is_true(next(iter(attempts.values())), "correct") for attempts in case.attempts.values()]
            kept = sum(right) - len(first)
            low, high = wilson(kept, len(right))
            won = [case.attempts[clip][names[0]] for clip, names in broken.items() if names]
            under = {
                name: (sum(right) - sum(name in names for names in broken.values())) / len(right) for name in present
            }
            sign = worst_case.misled(rows, [n for n in GRADIENTS if n in present], [n for n in OTHERS if n in present])
            lines.append(
                {"defense": title, "benign": share(right), **{n: under.get(n, "") for n in (*GRADIENTS, *OTHERS)},
                 "worst case": kept / len(right), "low": low, "high": high,
                 "won by": ", ".join(f"{name} {first.count(name)}" for name in present if name in first),
                 "SNR dB": median(float(row["snr"]) for row in won) if won else "",
                 "PESQ": median(float(row["pesq"]) for row in won) if won else "",
                 "gradient misled": "yes" if sign.failed else "no",
                 **({"published adaptive PGD-100": PUBLISHED.get(title, (None,) * 4)[3]} if published else {})}
            )  # fmt: skip
    return lines


def report(config: Config, titles: Mapping[str, str]) -> None:
    """Write the two tables of the results so far."""
    out = config.results.results_dir
    clips = store.load(config.data.data_dir, "test")
    count = min(len(clips), config.data.n_test)
    notes = [
        f"{count} test clips, L_inf {config.attack.eps[0]}; accuracy on the 16-bit wav; published: percent, CSI-E."
    ]
    notes += [selection.SYNTHETIC] if clips.synthetic else []
    plain, knowing = non_adaptive(out / "non_adaptive", titles), adaptive(out / "adaptive", titles)
    trained = [
        {"defense": line.pop("defense"), "training": training, **line}
        for training in TRAININGS
        for line in adaptive(out / training, titles, published=False)
    ]
    if not plain and not knowing and not trained:
        raise ValueError(f"{out}: nothing is attacked yet; leave --report out")
    for name, title, lines in (
        ("non_adaptive", "Attacks that ignore the defense", plain),
        ("adaptive", "Attacks that know the defense", knowing),
        (
            "trained",
            f"Without and with adversarial training through the defense, L_inf {smaller_budget(config)}",
            trained,
        ),
    ):
        if lines:
            results.write_table(out / f"{name}.csv", lines, title, notes)
            shown = [{k: f"{v:.3g}" if isinstance(v, float) else v for k, v in line.items()} for line in lines]
            print(f"{title}\n\n{results.markdown(shown)}")
    print("\n".join([*notes, f"files: {out}"]))


def main(config: Config, args: argparse.Namespace) -> None:
    """Train, attack without and with knowledge of every defense, and compare (see the top of the file)."""
    if args.processes < 1:
        raise ValueError(f"--processes {args.processes}: at least one")
    titles = {title: name for title, name in DEFENSES.items() if not args.defenses or title in args.defenses}
    if not args.report:
        rate, built = config.data.sample_rate, {}
        for title, name in titles.items():  # first, so that a codec that is not installed is said before any work
            (entry,) = selection.configured_defenses(config, [name])
            built[title] = checkpoint.build_defense(entry["name"], rate, entry["options"])
        call(args, Step("prepare_dataset.py"), Step("train_model.py"))
        (model,) = config.model.names
        without, runs = () if args.defenses else (NONE,), list[list[Step]]()
        if "non_adaptive" in args.phases:
            judges = tuple(part for name in titles.values() for part in ("--judge", f"{model}+{name}"))
            runs.append([attack_step(config, "non_adaptive", NON_ADAPTIVE, flags=judges)])
        if "trained" in args.phases:  # the longest runs, so before those that can fill the gaps
            some = [title for title in (*without, *titles) if title in TRAINED]
            runs += [trained_steps(config, titles.get(title, ""), built.get(title)) for title in some]
            runs += [[smaller_step(config, "plain", titles.get(title, ""))] for title in some]
        for title in (*without, *titles) if "adaptive" in args.phases else ():
            name, attacks = titles.get(title, NONE), [*GRADIENTS, *OTHERS]
            if title == NONE:
                attacks.remove("transfer")
            if title == NONE or built[title].differentiable:
                attacks.remove("pgd_identity")
            runs.append([attack_step(config, f"adaptive/{name}", attacks, f"DEFENSE.names={titles.get(title, '')}")])
        call_side_by_side(args, runs, args.processes)
    report(config, titles)


def attack_step(config: Config, folder: str, attacks: Sequence[str], *more: str, flags: tuple[str, ...] = ()) -> Step:
    """attack.py with these attacks, and its results in a folder of the study's."""
    settings = (
        f"ATTACK.names={','.join(attacks)}", *more, f"RESULTS.results_dir={config.results.results_dir}/{folder}",
        f"RESULTS.plot_dir={config.results.plot_dir}/{folder}",
    )  # fmt: skip
    return Step("attack.py", settings, flags)


def trained_steps(config: Config, defense: str, built: Defense | None) -> list[Step]:
    """One model trained on adversarial clips through a defense, or without one, and the attacks that know it."""
    random = built is not None and built.randomized
    training = (
        "TRAINING.method=pgd", "TRAINING.stage=waveform", f"TRAINING.pgd.draws={DRAWS if random else 1}",
        f"TRAINING.epochs={3 * config.training.epochs // 2}", "TRAINING.noise=0",
        f"RESULTS.model_dir={config.results.model_dir}/adversarial/{defense or NONE}",
    )  # fmt: skip
    plots = f"RESULTS.plot_dir={config.results.plot_dir}/adversarial/{defense or NONE}"
    # The model keeps the defense that it was trained behind.
    return [
        Step("train_model.py", (f"DEFENSE.names={defense}", *training, plots)),
        smaller_step(config, "adversarial", defense, *training, "DEFENSE.names="),
    ]


def smaller_budget(config: Config) -> float:
    """That of adversarial training."""
    return float(config.component("TRAINING", "pgd")["eps"])


def smaller_step(config: Config, training: str, defense: str, *more: str) -> Step:
    """The attacks that know the defense, within the budget of adversarial training."""
    attacks = [name for name in (*GRADIENTS, *OTHERS) if name not in ("pgd_identity", "transfer")]
    budget = f"ATTACK.eps={smaller_budget(config)}"
    return attack_step(config, f"{training}/{defense or NONE}", attacks, budget, f"DEFENSE.names={defense}", *more)


if __name__ == "__main__":
    cli.run(
        main,
        defenses={"nargs": "*", "choices": list(DEFENSES), "default": [], "help": "the study's names (default: all)"},
        phases={
            "nargs": "*",
            "choices": PHASES,
            "default": list(PHASES),
            "help": "of the study (default: all)",
        },
        processes={"type": int, "default": 1, "help": "so many attacks at a time, each in a process (default: 1)"},
        report={"action": "store_true", "help": "only write the tables of the results so far"},
    )
