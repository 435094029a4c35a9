"""Score-based attacks at equal queries and budgets against torchattacks' Square and SPSA, ART's SimBA and foolbox's
genetic attack, on all trained models of a folder. Both sides are watched from outside: a query succeeds that is within
the budget and fools the model after rounding to 16 bits."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from src.attacks.registration import spec_of
from src.budget import Budget
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel
from src.victims.victim import Victim

IMAGE = (125, 128)
"""Clips of 16,000 samples as the peers' images; other lengths become one row."""
SEARCHES = ("tile_bandit", "square", "nes", "spsa", "siren", "genetic")
OURS = {"l2": SEARCHES, "linf": SEARCHES}
TARGETED = ("genetic",)


class FoundError(Exception):
    """Ends a peer's run: it has succeeded, or its queries are used up."""


class Watched:
    """A model that counts the queries per example up to the first success.

    Args:
        model: from waveforms [batch, time] to logits.
        x: clean clips.
        y: labels, or targets.
        threat: what counts as legal.

    Attributes:
        count: queries so far, [batch].
        first: number of the first successful query; inf for none, [batch].
    """

    def __init__(self, model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, threat: ThreatModel, targeted: bool):
        self.model, self.x, self.y, self.threat, self.targeted = model, x, y, threat, targeted
        self.count, self.first = torch.zeros(len(x)), torch.full((len(x),), math.inf)
        self.index = torch.arange(len(x))

    def select(self, index: Tensor) -> Watched:
        part = object.__new__(Watched)
        part.__dict__.update(self.__dict__)
        part.index = self.index[index]
        return part

    @torch.no_grad()
    def __call__(self, x_adv: Tensor) -> Tensor:
        self.count[self.index] += 1
        logits = self.model(x_adv)
        hit = (self._hits(logits) & self.first[self.index].isinf()).nonzero().flatten()
        if len(hit):
            rows = self.index[hit]
            on_wav = (x_adv[hit] * 32768).round().clamp(-32768, 32767) / 32768
            # Rounding may move a legal point beyond the budget by half a step of 16 bits.
            legal = self.threat.select(rows).contains(x_adv[hit], self.x[rows], tolerance=1e-3)
            good = self._hits(self.model(on_wav), rows) & legal
            self.first[rows[good]] = self.count[rows[good]]
        return logits

    def _hits(self, logits: Tensor, rows: Tensor | None = None) -> Tensor:
        hit = logits.argmax(1) == self.y[self.index if rows is None else rows]
        return hit if self.targeted else ~hit


class AsImage(nn.Module):
    """One clip's watched model as a model of images [batch, 1, height, width] in [0, 1], one query per row. Ends the
    run at the first success or the limit."""

    def __init__(self, watched: Watched, limit: int):
        super().__init__()
        self.watched, self.limit = watched, limit
        self.unused = nn.Parameter(torch.zeros(()))  # the peers ask for the device of a parameter

    def forward(self, image: Tensor) -> Tensor:
        rows = []
        for row in image:
            if self.watched.count[0] >= self.limit or self.watched.first[0] < math.inf:
                raise FoundError
            rows.append(self.watched(2 * row.reshape(1, -1).float() - 1))
        return torch.cat(rows)


Peer = Callable[[nn.Module, Tensor, Tensor, str, float, int, int], object]
"""(image model, image, label or target, norm, eps in units of [0, 1], limit of queries, classes); `FoundError` ends
it."""


def art_estimator(model: nn.Module, image: Tensor, classes: int, softmax: bool = False) -> Any:
    from art.estimators.classification import PyTorchClassifier

    wrapped = nn.Sequential(model, nn.Softmax(1)) if softmax else model
    return PyTorchClassifier(
        wrapped, nn.CrossEntropyLoss(), tuple(image.shape[1:]), classes, clip_values=(0.0, 1.0), device_type="cpu"
    )


def torchattacks_square(
    model: nn.Module, image: Tensor, y: Tensor, norm: str, eps: float, limit: int, classes: int
) -> None:
    from torchattacks import Square  # ART's divides by zero in l2 on an image that is not square

    Square(model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, n_queries=limit, p_init=0.3)(image, y)


def art_simba(model: nn.Module, image: Tensor, y: Tensor, norm: str, eps: float, limit: int, classes: int) -> None:
    from art.attacks.evasion import SimBA

    # Every second try of a sample succeeds at best: the steps of a whole run have the norm eps.
    attack = SimBA(
        art_estimator(model, image, classes, softmax=True), attack="px", max_iter=limit, order="random",
        epsilon=eps * math.sqrt(2 / limit), verbose=False,
    )  # fmt: skip
    attack.generate(image.numpy(), np.eye(classes, dtype=np.float32)[y.numpy()])


def torchattacks_spsa(
    model: nn.Module, image: Tensor, y: Tensor, norm: str, eps: float, limit: int, classes: int
) -> None:
    from torchattacks import SPSA

    attack = SPSA(model, eps=eps, delta=0.3 * eps, lr=0.3 * eps, nb_iter=limit, nb_sample=32, max_batch_size=32)
    attack(image, y)


def foolbox_genetic(
    model: nn.Module, image: Tensor, y: Tensor, norm: str, eps: float, limit: int, classes: int
) -> None:
    import foolbox

    attack = foolbox.attacks.GenAttack(steps=limit, population=10)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack(wrapped, image, foolbox.criteria.TargetedMisclassification(y), epsilons=eps)


PEERS: dict[str, dict[str, Peer]] = {
    "l2": {"torchattacks Square": torchattacks_square, "ART SimBA": art_simba},
    "linf": {"torchattacks Square": torchattacks_square, "torchattacks SPSA": torchattacks_spsa},
    "targeted linf": {"foolbox GenAttack": foolbox_genetic},
}


def ours(name: str, model: Callable[[Tensor], Tensor], sample_rate: int, limit: int, watched: Watched) -> list[float]:
    """Queries of one of our attacks to the first success per clip; inf for none within the limit."""
    supplied = {"sample_rate": sample_rate} if spec_of(name).needs_sample_rate else {}
    ids = [str(i) for i in range(len(watched.x))]
    ATTACKS[name](
        watched, watched.x, watched.y, watched.threat, rng=RandomStreams(0, ids, "bench"), targeted=watched.targeted,
        queries=limit, **supplied,
    )  # fmt: skip
    return watched.first.tolist()


def theirs(peer: Peer, classes: int, limit: int, watched: Watched) -> list[float]:
    """Queries of a peer to the first success per clip, each clip in a run of its own."""
    first = []
    shape = IMAGE if watched.x.shape[1] == math.prod(IMAGE) else (1, watched.x.shape[1])
    for i in range(len(watched.x)):
        index = torch.tensor([i])
        alone = Watched(
            watched.model, watched.x[index], watched.y[index], watched.threat.select(index), watched.targeted
        )
        image = (alone.x.reshape(1, 1, *shape) + 1) / 2
        np.random.seed(i)
        torch.manual_seed(i)
        norm = watched.threat.norm
        eps = float(alone.threat.budgets(alone.x)[0]) / 2  # distances in [0, 1] are half those in [-1, 1]
        with contextlib.suppress(FoundError):
            peer(AsImage(alone, limit).eval(), image, alone.y, norm, eps, limit, classes)
        first.append(float(alone.first[0]))
    return first


def run(
    victims: Mapping[str, Victim],
    x: Tensor,
    labels: Tensor,
    budget: str = "30 dB",
    targeted_budget: str = "20 dB",
    queries: int = 300,
) -> list[dict[str, Any]]:
    """Rows for each model, task and attack of ours against the peer that succeeds most often at the task: success share
    (ratio = ours / peer) and mean queries, in which a failure counts as all of them (ratio = peer / ours); the note
    gives the median queries to success of both.

    Args:
        victims: by name.
        x: waveforms [batch, time].
        labels: [batch]; clips that a model misclassifies are left out.
        budget, targeted_budget: as in a config.
        queries: of every attack per clip.
    """
    rows = []
    for model_name, victim in victims.items():
        frozen = victim.eval().requires_grad_(False).frozen()
        with torch.no_grad():
            predicted = frozen(x).argmax(1)
        right = predicted == labels
        clips, y, classes = x[right], labels[right], len(victim.classes)
        target = (y + 1 + torch.arange(len(y)) % (classes - 1)) % classes
        for task in PEERS:
            norm, targeted = task.split()[-1], task.startswith("targeted")
            eps = Budget.parse(targeted_budget if targeted else budget)
            threat = ThreatModel(norm, eps.eps(clips, norm), (-1.0, 1.0))

            def watch(threat: ThreatModel = threat, targeted: bool = targeted) -> Watched:
                return Watched(frozen, clips, target if targeted else y, threat, targeted)  # noqa: B023

            results = {name: theirs(peer, classes, queries, watch()) for name, peer in PEERS[task].items()}
            best = max(results, key=lambda name: (share(results[name]), -cost(results[name], queries)))
            peer_share, peer_cost = share(results[best]), cost(results[best], queries)
            for name in TARGETED if targeted else OURS[norm]:
                first = ours(name, frozen, victim.sample_rate, queries, watch())
                row = {
                    "benchmark": "black box",
                    "what": f"{name} on {model_name}, {task}, {eps}, {queries} queries, against {best}",
                    "note": f"median queries {median(first):g} against {median(results[best]):g}",
                }
                for unit, mine, peer, ratio in (
                    ("success share", share(first), peer_share, relative(share(first), peer_share)),
                    ("mean queries", cost(first, queries), peer_cost, peer_cost / cost(first, queries)),
                ):
                    rows.append({**row, "ours": mine, "peer": peer, "unit": unit, "ratio": ratio})
                print(row["what"], [row["ours"] for row in rows[-2:]], [row["peer"] for row in rows[-2:]], row["note"])
    return rows


def share(first: list[float]) -> float:
    """Share of the clips with a success."""
    return mean(math.isfinite(value) for value in first)


def cost(first: list[float], queries: int) -> float:
    """Mean queries, a failure counted as all of them."""
    return mean(min(value, queries) for value in first)


def relative(ours: float, peer: float) -> float:
    """ours / peer; 1 where both are 0."""
    return ours / peer if peer else math.inf if ours else 1.0
