"""DeepFool (Moosavi-Dezfooli et al. 2016): steps to the nearest boundary of the linearized classes until the label
changes. DeepFool stops at its first crossing, which is two to three times too far from x; as in SuperDeepFool
(Abdolahpourrostam et al. 2024) the crossing is then refined: linearize there and move to the point of that plane that
is nearest to x."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.core import check_interval, cosine
from src.attacks.minimum_norm.search import DUAL, Search, minimize
from src.attacks.model import Model
from src.attacks.registration import attack
from src.random_streams import RandomStreams
from src.registry import Count, Natural, NonNegative
from src.threat import ThreatModel, column, norm_of


@attack("deepfool", kind="minimum_norm", norms=("l2", "linf"), access="gradients")
def deepfool(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: RandomStreams,
    targeted: bool,
    steps: Count = 50,
    candidates: Count = 9,
    overshoot: NonNegative = 0.02,
    refine: Natural = 50,
    shrink_steps: Natural = 10,
) -> Tensor:
    """Smallest l2 or linf perturbation by linearizing the classes, then pulled back along the boundary.

    Args:
        steps: largest number of steps to the first crossing, of one gradient per candidate each.
        candidates: most likely other classes considered.
        overshoot: share by which every step is extended, to cross the boundary.
        refine: gradient steps that refine the crossing; 0 is the published attack.
        shrink_steps: forward passes of the final bisection.
    """

    def search(batch: Search) -> None:
        _cross(batch, steps, candidates, overshoot)
        x_adv = batch.best.x
        for iteration in range(refine):
            grad, value, _ = batch.probe(x_adv)
            delta, slope = x_adv - batch.x, norm_of(grad, DUAL[threat.norm]).clamp_min(1e-30)
            # The goal lies beyond the boundary; otherwise its curvature keeps every point just inside.
            goal = batch.goal + batch.value.abs() * cosine(iteration, refine, overshoot, overshoot / 10)
            missing = goal - value
            # `nearest` leads to the point of the plane margin + <grad, z - delta> = goal that is nearest to x: the
            # missing margin is gained in full, the movement along the plane in part.
            nearest = missing + (grad * delta).flatten(1).sum(1)
            share = cosine(iteration, refine, 0.5, 0.05)
            length = (share * nearest + (1 - share) * missing) / slope
            moved = batch.x + (1 - share) * delta + column(length, x) * batch.threat.ascent(grad)
            x_adv = torch.where(column(batch.best.success, x), batch.threat.clip(moved, batch.x), x_adv)

    return minimize(model, x, y, threat, rng, targeted, search, shrink_steps)


def _cross(search: Search, steps: int, candidates: int, overshoot: float) -> None:
    """The published attack; an example stops at its first success."""
    logits, norm = search.model(search.x), search.threat.norm
    ranked_classes = logits.scatter(1, search.y[:, None], -torch.inf).argsort(1, descending=True)
    others, goal, total = (
        ranked_classes[:, : min(candidates, logits.shape[1] - 1)],
        search.goal,
        torch.zeros_like(search.x),
    )
    batch = ActiveBatch(search.model, search.x, search.y, search.threat, search.rng, search.targeted, search.best)
    for iteration in range(steps):
        x_adv = batch.threat.clip(batch.x + (1 + overshoot) * total, batch.x)
        leaf = x_adv.requires_grad_(True)
        with torch.enable_grad():
            logits = batch.model(leaf)
            label_logit = logits.gather(1, batch.y[:, None])
            # Targeted: the target has to beat every class; otherwise one class has to beat the label.
            gaps = label_logit - logits.gather(1, others) if batch.targeted else logits.gather(1, others) - label_logit
            if batch.targeted:
                gaps = gaps.amin(1, keepdim=True)
            last = gaps.shape[1] - 1
            grads = [
                batch.threat.masked(torch.autograd.grad(gaps[:, i].sum(), leaf, retain_graph=i < last)[0])
                for i in range(last + 1)
            ]
        x_adv, gaps = x_adv.detach(), gaps.detach()
        value = gaps.amax(1)
        batch.best.update(x_adv, -norm_of(x_adv - batch.x, norm), value > goal, first=True)
        if iteration % check_interval(x_adv) == 0:
            goal, others, total, gaps, grads = batch.keep(~batch.best.success, goal, others, total, gaps, grads)
            if not len(batch):
                return
        slopes = torch.stack([norm_of(grad, DUAL[norm]) for grad in grads], 1)
        distance = ((goal[:, None] - gaps).clamp_min(0) / slopes.clamp_min(1e-30)).nan_to_num(nan=torch.inf)
        nearest = distance.argmin(1)
        grad = torch.stack(grads)[nearest, torch.arange(len(batch), device=total.device)].nan_to_num(0.0, 0.0, 0.0)
        # A flat model predicts arbitrarily large distances: no step is longer than the norm of the clip.
        length = distance.gather(1, nearest[:, None]).squeeze(1)
        level = norm_of(batch.x, norm)
        length = length.minimum(torch.where(level > 0, level, 1.0))
        total = total + column(length, total) * batch.threat.ascent(grad)
    batch.finish()
