r"""The self-test of good attacks and of crippled ones: how many planted adversarial examples each finds
around test clips.

    python experiments/self_test.py data/keywords_study/models/resnet.pt data/keywords_study/models/resnet_pgd.pt \
        --data data/speech_commands

prints the table of docs/results.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from src import api  # noqa: E402
from src.attacks.registration import spec_of  # noqa: E402
from src.datasets.store import Clips  # noqa: E402
from src.evaluation.planted_test import Problem  # noqa: E402
from src.random_streams import RandomStreams  # noqa: E402
from src.registry import ATTACKS  # noqa: E402
from src.threat import ThreatModel  # noqa: E402
from src.victims.victim import Victim  # noqa: E402

TESTED = {
    "PGD-100": ("pgd", {"steps": 100}),
    "PGD-40": ("pgd", {}),
    "crippled PGD-40": ("pgd", {"step": 0.1}),
    "FGSM": ("fgsm", {}),
    "Square-300": ("square", {"queries": 300}),
}
"""Column -> attack and its options; the steps of the crippled one sum to a tenth of eps."""
BUDGETS = ("linf 0.0002", "linf 0.0005", "l2 0.02", "l2 0.05", "l1 1")


def table(victims: dict[str, Victim], clips: Clips, budgets: list[str], points: int) -> Iterator[str]:
    """Lines of the Markdown table."""
    yield f"| model | budget | planted | {' | '.join(TESTED)} | random point | best of {points} |"
    yield "|---" * (len(TESTED) + 5) + "|"
    for name, victim in victims.items():
        x, valid, frozen = clips.waveforms(), clips.valid(), victim.frozen()
        for budget in budgets:
            norm, eps = budget.split()
            threat = ThreatModel(norm, float(eps), (-1.0, 1.0), valid)
            problem = Problem.of(frozen, x, threat, partial(RandomStreams, 0, clips.ids), points)
            cells = []
            for attack, options in TESTED.values():
                if norm not in spec_of(attack).norms:
                    cells.append("-")
                    continue
                outcome = problem.test(partial(ATTACKS[attack], **options))
                low, high = outcome.interval
                cells.append(f"{outcome.found / outcome.planted:.2f} [{low:.2f}, {high:.2f}]")
            chance = [f"{count / outcome.planted:.2f}" for count in (outcome.by_chance, outcome.by_search)]
            yield f"| {' | '.join([name, budget, str(outcome.planted), *cells, *chance])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("models", nargs="+", type=Path, help="trained models")
    parser.add_argument("--data", type=Path, required=True, help="folder of prepared clips")
    parser.add_argument("--split", default="test")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--points", type=int, default=50, help="random points per clip")
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS), help="norm and eps, such as 'linf 0.0005'")
    args = parser.parse_args()
    clips = api.load_clips(args.data, args.split).select(range(args.clips))
    victims = {path.stem: api.load_model(path) for path in args.models}
    for line in table(victims, clips, args.budgets, args.points):
        print(line, flush=True)


if __name__ == "__main__":
    main()
