"""PGD-40 and CW against torchattacks, foolbox, ART and the raw limit: the same frozen model, clips and budget, one
thread. The raw limit is the time of autograd's forward and backward passes alone, with frozen parameters."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import Work, in_turns
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel
from src.victims.victim import Victim

STEPS = 40
STEP = 1 / 32768
"""Of the 16-bit grid that our attacks work on; the peers' results are not rounded."""
FOOLBOX_STEPS = (1e-4, 1e-3)
"""Of foolbox's CW: the best median L2 on validation clips (of 5e-5 to 3e-3 and first c of 1e-3 to 10), and a fast one
that stops early."""


def raw_limit(model: torch.nn.Module, x: Tensor, y: Tensor, passes: int) -> None:
    """Forward and backward passes to the input, nothing else."""
    for _ in range(passes):
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)


def peers(model: torch.nn.Module, x: Tensor, y: Tensor, eps: float, classes: int) -> dict[str, Callable[[], Any]]:
    """PGD-40 of other libraries, step eps / 16, no random start."""
    warnings.filterwarnings("ignore")
    import foolbox
    import torchattacks
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    image = torchattacks.PGD(model, eps=eps, alpha=eps / 16, steps=STEPS, random_start=False)
    fool = foolbox.attacks.LinfPGD(steps=STEPS, abs_stepsize=eps / 16, random_start=False)
    wrapped = foolbox.PyTorchModel(model, bounds=(-1, 1), device="cpu")
    estimator = PyTorchClassifier(
        model, F.cross_entropy, tuple(x.shape[1:]), classes, clip_values=(-1.0, 1.0), device_type="cpu"
    )
    art = ProjectedGradientDescent(
        estimator,
        norm="inf",
        eps=eps,
        eps_step=eps / 16,
        max_iter=STEPS,
        num_random_init=0,
        batch_size=len(x),
        verbose=False,
    )
    return {
        "torchattacks": lambda: image(x, y),
        "foolbox": lambda: fool(wrapped, x, y, epsilons=eps),
        "ART": lambda: art.generate(x.numpy(), y.numpy()),
    }


def run(victim: Victim, x: Tensor, repeats: int, eps: tuple[float, ...] = (2e-4, 2e-3)) -> list[dict[str, Any]]:
    """Rows: seconds of ours and of each peer, and the ratio of each to the raw limit.

    Args:
        victim: trained.
        x: waveforms [batch, time].
        eps: one budget at which most clips stay correct, one at which most are misclassified.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plain = victim.eval().requires_grad_(False)
    frozen = victim.frozen()
    y = plain(x).argmax(1)
    rows = []
    streams = lambda: RandomStreams(0, [str(i) for i in range(len(x))], "bench")  # noqa: E731
    works: dict[tuple[str, str], Work] = {
        ("", "raw limit"): lambda: raw_limit(plain, x, y, STEPS),
        ("frozen model's passes", "ours"): lambda: raw_limit(frozen, x, y, STEPS),
    }
    for budget in eps:
        threat = ThreatModel("linf", budget, (-1.0, 1 - STEP), grid=STEP)

        def ours(early_exit: bool, threat: ThreatModel = threat) -> Tensor:
            return ATTACKS["pgd"](
                frozen, x, y, threat, rng=streams(), targeted=False,
                steps=STEPS, random_start=False, early_exit=early_exit,
            )  # fmt: skip

        robust = float((plain(ours(True)).argmax(1) == y).float().mean())
        label = f"PGD-40, eps {budget:g} (robust accuracy {robust:.2f})"
        works[f"{label}, full work", "ours"] = lambda ours=ours: ours(False)  # type: ignore[misc]
        works[f"{label}, finished clips leave", "ours"] = lambda ours=ours: ours(True)  # type: ignore[misc]
        for name, work in peers(plain, x, y, budget, len(victim.classes)).items():
            works[f"{label}, full work", name] = work
    taken = dict(zip(works, in_turns(list(works.values()), repeats), strict=True))
    limit = taken["", "raw limit"]
    for (task, name), seconds in taken.items():
        if name == "ours":
            rows.append(row(task, seconds, "raw limit", limit, limit))
        elif task:
            rows.append(row(task, taken[task, "ours"], name, seconds, limit))
    rows += carlini_wagner(plain, frozen, x, y, limit / STEPS)
    torch.set_num_threads(threads)
    return rows


def carlini_wagner(
    plain: torch.nn.Module, frozen: Victim, x: Tensor, y: Tensor, seconds_per_pass: float
) -> list[dict[str, Any]]:
    """CW L2, 5 values of c x 100 steps, against foolbox's, with the median L2 of each. The runs are long; each is
    timed once."""
    import foolbox

    def ours() -> Tensor:
        streams = RandomStreams(0, [str(i) for i in range(len(x))], "bench")
        threat = ThreatModel("l2", bounds=(-1.0, 1.0))
        keys = {"search_steps": 5, "steps": 100}
        return ATTACKS["cw"](frozen, x, y, threat, rng=streams, targeted=False, **keys)

    def peer(stepsize: float) -> Tensor:
        attack = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=5, steps=100, stepsize=stepsize)
        return attack(foolbox.PyTorchModel(plain, bounds=(-1, 1), device="cpu"), x, y, epsilons=None)[1]

    def measure(work: Callable[[], Tensor]) -> tuple[float, float]:
        start = time.perf_counter()
        x_adv = work()
        taken = time.perf_counter() - start
        size = torch.where(plain(x_adv).argmax(1) != y, (x_adv - x).norm(dim=1), torch.inf)
        return taken, float(size.median())

    taken, size = measure(ours)
    rows = []
    for stepsize in FOOLBOX_STEPS:
        other, other_size = measure(lambda stepsize=stepsize: peer(stepsize))  # type: ignore[misc]
        label = f"CW L2 5 x 100 (median L2 {size:.4g} against {other_size:.4g})"
        rows.append(row(label, taken, f"foolbox, step {stepsize:g}", other, seconds_per_pass * 500))
    return rows


def row(task: str, ours: float, name: str, peer: float, limit: float) -> dict[str, Any]:
    return {
        "benchmark": "attack speed",
        "what": f"{task} against {name}",
        "ours": ours,
        "peer": peer,
        "unit": "s",
        "ratio": peer / ours,
        "note": f"ours is {ours / limit:.2f} of the raw limit, {name} {peer / limit:.2f}",
    }
