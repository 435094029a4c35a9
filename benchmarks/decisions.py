"""HopSkipJump towards a target against foolbox's and ART's at equal queries, on all trained models of a folder. All
begin at training clips of the target class: the peers are given the nearest one that the model recognizes, ours looks
for it within its queries. Every query is watched from outside: what counts is the smallest L2 norm of a success after
rounding to 16 bits."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.black_box import FoundError, art_estimator
from src.attacks.registration import spec_of
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel
from src.victims.victim import Victim

OURS = ("hopskipjump", "boundary")
GRID = 1 / 32768


class Smallest:
    """A model that keeps the smallest distance of a success per example.

    Args:
        model: from waveforms [batch, time] to logits.
        x: clean clips.
        target: labels to reach, [batch].

    Attributes:
        count: queries so far, [batch].
        distance: L2 norm of the smallest success so far; inf for none, [batch].
    """

    def __init__(self, model: Callable[[Tensor], Tensor], x: Tensor, target: Tensor):
        self.model, self.x, self.target = model, x, target
        self.count, self.distance = torch.zeros(len(x)), torch.full((len(x),), math.inf)
        self.index = torch.arange(len(x))

    def select(self, index: Tensor) -> Smallest:
        """The examples at `index`, which may hold one of them several times."""
        part = object.__new__(Smallest)
        part.__dict__.update(self.__dict__)
        part.index = self.index[index]
        return part

    @torch.no_grad()
    def __call__(self, x_adv: Tensor) -> Tensor:
        self.count.index_add_(0, self.index, torch.ones(len(x_adv)))
        logits = self.model(x_adv)
        hit = (logits.argmax(1) == self.target[self.index]).nonzero().flatten()
        if len(hit):
            rows = self.index[hit]
            on_wav = (x_adv[hit] / GRID).round().clamp(-32768, 32767) * GRID
            good = self.model(on_wav).argmax(1) == self.target[rows]
            distances = (on_wav - self.x[rows]).norm(dim=1)
            self.distance.scatter_reduce_(0, rows[good], distances[good], "amin")
        return logits


class AsImages(nn.Module):
    """One clip's model as a model of images [rows, 1, 1, time] in [0, 1], one query per row. Ends the run at the
    limit."""

    def __init__(self, smallest: Smallest, limit: int):
        super().__init__()
        self.smallest, self.limit = smallest, limit
        self.unused = nn.Parameter(torch.zeros(()))  # the peers ask for the device of a parameter

    def forward(self, images: Tensor) -> Tensor:
        rows = 2 * images.flatten(1).float() - 1
        left = self.limit - int(self.smallest.count[0])
        logits = rows[:0]
        if left:
            logits = self.smallest.select(torch.zeros(min(left, len(rows)), dtype=torch.long))(rows[:left])
        if len(logits) < len(rows):
            raise FoundError
        return logits


def foolbox_attack(model: nn.Module, image: Tensor, first: Tensor, target: Tensor, classes: int) -> None:
    import foolbox

    attack = foolbox.attacks.HopSkipJumpAttack()
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack.run(wrapped, image, foolbox.criteria.TargetedMisclassification(target), starting_points=first)


def art_attack(model: nn.Module, image: Tensor, first: Tensor, target: Tensor, classes: int) -> None:
    from art.attacks.evasion import HopSkipJump

    attack = HopSkipJump(art_estimator(model, image, classes), targeted=True, norm=2, verbose=False)
    attack.generate(image.numpy(), np.eye(classes, dtype=np.float32)[target.numpy()], x_adv_init=first.numpy())


PEERS: dict[str, Callable[[nn.Module, Tensor, Tensor, Tensor, int], None]] = {
    "foolbox": foolbox_attack, "ART": art_attack,
}  # fmt: skip


def theirs(
    name: str, model: Callable[[Tensor], Tensor], x: Tensor, target: Tensor, starts: Tensor, limit: int, classes: int
) -> list[float]:
    """Smallest L2 norm per clip within the queries, each clip in a run of its own."""
    distances = []
    for i in range(len(x)):
        smallest = Smallest(model, x[i : i + 1], target[i : i + 1])
        np.random.seed(i)
        torch.manual_seed(i)
        image, first = ((clip.reshape(1, 1, 1, -1) + 1) / 2 for clip in (x[i], starts[i]))
        with contextlib.suppress(FoundError):
            PEERS[name](AsImages(smallest, limit).eval(), image, first, target[i : i + 1], classes)
        distances.append(float(smallest.distance[0]))
    return distances


def ours(
    name: str, model: Callable[[Tensor], Tensor], x: Tensor, target: Tensor, examples: tuple[Tensor, Tensor],
    limit: int, sample_rate: int,
) -> list[float]:  # fmt: skip
    """As `theirs`, of one of our attacks."""
    smallest = Smallest(model, x, target)
    supplied = {"sample_rate": sample_rate} if spec_of(name).needs_sample_rate else {}
    ATTACKS[name](
        smallest, x, target, ThreatModel("l2", math.inf, (-1.0, 1 - GRID), grid=GRID), examples=examples,
        rng=RandomStreams(0, [str(i) for i in range(len(x))], "bench"), targeted=True, queries=limit, **supplied,
    )  # fmt: skip
    return smallest.distance.tolist()


@torch.no_grad()
def nearest_starts(
    model: Callable[[Tensor], Tensor], x: Tensor, target: Tensor, examples: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The nearest example of each target class that the model recognizes, [batch, time], and where there is one."""
    clips, labels = examples
    recognized = torch.cat([model(part).argmax(1) for part in clips.split(64)]) == labels
    starts, found = torch.zeros_like(x), torch.zeros(len(x), dtype=torch.bool)
    for i, clean in enumerate(x):
        index = (recognized & (labels == target[i])).nonzero().flatten()
        if len(index):
            starts[i], found[i] = clips[index[(clips[index] - clean).norm(dim=1).argmin()]], True
    return starts, found


def run(
    victims: Mapping[str, Victim], x: Tensor, labels: Tensor, examples: tuple[Tensor, Tensor], queries: int = 500
) -> list[dict[str, Any]]:
    """A row per model and attack of ours against the peer with the smaller median: median L2 (ratio = peer / ours).

    Args:
        victims: by name.
        x: waveforms [batch, time].
        labels: [batch]; clips that a model misclassifies are left out.
        examples: training clips and their labels.
        queries: of every attack per clip.
    """
    rows = []
    for model_name, victim in victims.items():
        frozen = victim.eval().requires_grad_(False).frozen()
        with torch.no_grad():
            right = frozen(x).argmax(1) == labels
        classes = len(victim.classes)
        target = (labels + 1 + torch.arange(len(labels)) % (classes - 1)) % classes
        starts, found = nearest_starts(frozen, x, target, examples)
        use = right & found
        clips, aims = x[use], target[use]
        results = {name: theirs(name, frozen, clips, aims, starts[use], queries, classes) for name in PEERS}
        best = min(results, key=lambda name: median(results[name]))
        for name in OURS:
            distances = ours(name, frozen, clips, aims, examples, queries, victim.sample_rate)
            mine, peer = median(distances), median(results[best])
            what = f"{name} on {model_name}, targeted, {queries} queries, against {best}"
            rows.append({
                "benchmark": "decisions", "what": what,
                "ours": mine, "peer": peer, "unit": "median L2", "ratio": peer / mine,
                "note": f"{len(clips)} clips; smaller on {sum(map(float.__lt__, distances, results[best]))}; "
                        + ", ".join(f"{other} {median(values):.3g}" for other, values in results.items()),
            })  # fmt: skip
            print(rows[-1])
    return rows
