"""DeepFool (Moosavi-Dezfooli et al. 2016): step to the nearest boundary of the linearised classes until the label
changes. DeepFool stops at the first crossing, two to three times too far away; as in SuperDeepFool (Abdolahpourrostam
et al. 2024) the crossing is then pulled back: re-linearise there and move to the nearest point of that plane to x."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attacks.core import Best, Model, attack, every, narrow
from src.attacks.minimum_norm import DUAL, Search, cosine, minimize
from src.registry import Count, Natural, NonNegative
from src.streams import Streams
from src.threat import ThreatModel, column, norm_of


@attack("deepfool", kind="minimum_norm", norms=("l2", "linf"))
def deepfool(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    generator: Streams,
    targeted: bool,
    steps: Count = 50,
    candidates: Count = 9,
    overshoot: NonNegative = 0.02,
    refine: Natural = 50,
    shrink_steps: Natural = 10,
) -> Tensor:
    """Smallest l2 or linf perturbation by linearising the classes, then pulled back along the boundary.

    Args:
        steps: steps to the first crossing; each takes one gradient per candidate.
        candidates: most likely other classes considered.
        overshoot: each step goes further by this share, to cross the boundary.
        refine: gradient steps that pull the crossing back; 0 is the published attack.
        shrink_steps: forward passes of the final bisection.
    """

    def search(task: Search) -> None:
        _cross(task, steps, candidates, overshoot)
        x_adv = task.best.x
        for iteration in range(refine):
            grad, value, _ = task.probe(x_adv)
            delta, slope = x_adv - task.x, norm_of(grad, DUAL[threat.norm]).clamp_min(1e-30)
            # Aim past the boundary, or its curvature would keep every point just inside.
            goal = task.goal + task.value.abs() * cosine(iteration, refine, overshoot, overshoot / 10)
            missing = goal - value
            # `nearest` is the point of the plane margin + <grad, z - delta> = goal that is nearest to x; the shortfall
            # of the margin is made up whole, the slide along the plane in part.
            nearest = missing + (grad * delta).flatten(1).sum(1)
            share = cosine(iteration, refine, 0.5, 0.05)
            length = (share * nearest + (1 - share) * missing) / slope
            moved = task.x + (1 - share) * delta + column(length, x) * task.threat.ascent(grad)
            x_adv = torch.where(column(task.best.success, x), task.threat.clip(moved, task.x), x_adv)

    return minimize(model, x, y, threat, targeted, search, shrink_steps)


def _cross(task: Search, steps: int, candidates: int, overshoot: float) -> None:
    """The published attack; an example leaves at its first success."""
    logits = task.model(task.x)
    alive = torch.arange(len(task.x), device=task.x.device)
    order = logits.scatter(1, task.y[:, None], -torch.inf).argsort(1, descending=True)
    others = order[:, : min(candidates, logits.shape[1] - 1)]
    model, x, y, threat, goal = task.model, task.x, task.y, task.threat, task.goal
    total = torch.zeros_like(x)
    best = Best(x)
    for iteration in range(steps):
        x_adv = threat.clip(x + (1 + overshoot) * total, x)
        leaf = x_adv.requires_grad_(True)
        with torch.enable_grad():
            logits = model(leaf)
            own = logits.gather(1, y[:, None])
            # Targeted: the target has to beat every class; otherwise one class has to beat the label.
            gaps = own - logits.gather(1, others) if task.targeted else logits.gather(1, others) - own
            if task.targeted:
                gaps = gaps.amin(1, keepdim=True)
            last = gaps.shape[1] - 1
            grads = [
                threat.masked(torch.autograd.grad(gaps[:, i].sum(), leaf, retain_graph=i < last)[0])
                for i in range(last + 1)
            ]
        x_adv, gaps = x_adv.detach(), gaps.detach()
        value = gaps.amax(1)
        best.update(x_adv, -norm_of(x_adv - x, threat.norm), value > goal, first=True)
        if iteration % every(x) == 0 or iteration == steps - 1:
            task.best.put(alive, best)
            keep = (~best.success).nonzero().flatten()
            if not len(keep):
                return
            model, threat, best = narrow(model, keep), threat.select(keep), best.select(keep)
            x, y, goal, others, total, alive, gaps = (t[keep] for t in (x, y, goal, others, total, alive, gaps))
            grads = [grad[keep] for grad in grads]
        slopes = torch.stack([norm_of(grad, DUAL[threat.norm]) for grad in grads], 1)
        distance = ((goal[:, None] - gaps).clamp_min(0) / slopes.clamp_min(1e-30)).nan_to_num(nan=torch.inf)
        nearest = distance.argmin(1)
        grad = torch.stack(grads)[nearest, torch.arange(len(x), device=x.device)].nan_to_num(0.0, 0.0, 0.0)
        # A flat model predicts absurd distances; no step is longer than the clip.
        length = distance.gather(1, nearest[:, None]).squeeze(1)
        level = norm_of(x, threat.norm)
        total = total + column(length.minimum(torch.where(level > 0, level, 1.0)), x) * threat.ascent(grad)
