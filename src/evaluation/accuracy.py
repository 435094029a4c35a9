"""How well a model classifies: accuracy with its interval, one row per class, the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from src.datasets.store import Clips
from src.random_streams import RandomStreams
from src.victims.adaptive import once
from src.victims.chain import with_lengths
from src.victims.victim import Victim


@torch.no_grad()
def logits_of(
    victim: Victim,
    clips: Clips,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    seed: int = 0,
    title: str | None = None,
) -> Tensor:
    """Logits [n, classes] of every clip, on the CPU.

    Args:
        seed: of a random defense, which draws from each clip's own stream.
        title: of a progress bar; None shows none.
    """
    model = victim.to(device).frozen()
    parts = []
    for start in tqdm(range(0, len(clips), batch_size), title, unit="batch", leave=False, disable=title is None):
        part = slice(start, start + batch_size)
        rng = RandomStreams(seed, clips.ids[part], "evaluate")
        chain = with_lengths(model, clips.valid(part).to(device))
        parts.append(once(chain, clips.waveforms(part).to(device), rng).cpu())
    return torch.cat(parts)


def wilson(right: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (1927), which stays within [0, 1] and works at 0 and n.

    >>> [round(bound, 4) for bound in wilson(9, 10)]
    [0.5958, 0.9821]
    """
    interval = binomtest(right, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def confusion(labels: Tensor, predictions: Tensor, n_classes: int) -> Tensor:
    """Counts [true class, predicted class] from labels and predictions [n]."""
    return torch.bincount(labels * n_classes + predictions, minlength=n_classes**2).view(n_classes, n_classes)


def summarize(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Accuracy with its 95 % Wilson interval, macro F1 and mean cross-entropy, of logits [n, classes]."""
    right, n = int((logits.argmax(1) == labels).sum()), len(labels)
    low, high = wilson(right, n)
    rows = per_class(confusion(labels, logits.argmax(1), logits.shape[1]), range(logits.shape[1]))
    scores = [row["f1"] for row in rows if row["support"]]
    return {
        "n": n,
        "correct": right,
        "accuracy": right / n,
        "low_95": low,
        "high_95": high,
        "macro_f1": sum(scores) / len(scores),
        "cross_entropy": F.cross_entropy(logits, labels).item(),
    }


def per_class(counts: Tensor, classes: Sequence[object]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and support of each class from its confusion matrix; NaN where nothing defines them."""
    rows = []
    for k, name in enumerate(classes):
        hit, predicted, support = int(counts[k, k]), int(counts[:, k].sum()), int(counts[k].sum())
        rows.append(
            {
                "class": name,
                "precision": hit / predicted if predicted else float("nan"),
                "recall": hit / support if support else float("nan"),
                "f1": 2 * hit / (predicted + support) if predicted + support else float("nan"),
                "support": support,
            }
        )
    return rows


def r1(benign: float, adversarial: Sequence[float]) -> float:
    """The R1 score of a defense (Chen et al. 2022): the harmonic mean of the accuracy on benign clips and the mean
    accuracy under several attacks, 0 where both are 0.

    Args:
        benign: accuracy, as a share or in percent; R1 has its unit.
        adversarial: accuracy under each attack.

    >>> r1(0.5, [0.25, 0.75])
    0.5
    """
    if not adversarial:
        raise ValueError("R1 needs the accuracy under at least one attack")
    under_attack = sum(adversarial) / len(adversarial)
    return 2 * benign * under_attack / (benign + under_attack) if benign + under_attack else 0.0
