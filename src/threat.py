"""The threat model: norm, budget, bounds and mask. Projections are implemented here and nowhere else."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from src.random_streams import RandomStreams

NORMS = ("linf", "l2", "l1", "l0")
TOLERANCE = 1e-4
"""Relative slack of `contains`: float32 sums of thousands of terms do not repeat to the last digit."""
SNAP_MARGIN = 1e-5
"""Share of the budget that `snap` leaves unused, so that the norm of its result in float64 is within the budget too."""
SNAP_STEPS = 4
"""Scales that `snap` tries."""
FILL_STEPS = 10
"""Scalings of `filled`, each of which the bounds may cut."""
ROUNDED = 1e-5
"""Relative error of a number that is written with six digits."""


def column(value: Tensor, like: Tensor) -> Tensor:
    """`value` [batch] shaped to broadcast against `like` [batch, ...]."""
    return value.reshape(-1, *[1] * (like.dim() - 1))


def norm_of(delta: Tensor, norm: str) -> Tensor:
    """The norm of each example, [batch, ...] -> [batch]."""
    flat = delta.flatten(1)
    if norm == "linf":
        return flat.abs().amax(1)
    if norm == "l2":
        # Tensor.norm adds one number after the other, which loses 2e-5 on a long clip, loud and then quiet.
        return flat.norm(dim=1) if flat.requires_grad else flat.square().sum(1).sqrt()
    if norm == "l1":
        return flat.abs().sum(1)
    if norm == "l0":
        return (flat != 0).sum(1).to(flat.dtype)
    raise ValueError(f"unknown norm '{norm}' (choices: {', '.join(NORMS)})")


@dataclass(frozen=True)
class ThreatModel:
    """The perturbations that an adversary may apply to an input.

    Attributes:
        norm: linf, l2, l1 or l0 of the perturbation.
        eps: the budget, in units of the attacked representation; a number or a tensor [batch];
            inf for minimum-norm attacks.
        bounds: lowest and highest legal value of the attacked representation.
        mask: bool [batch or 1, ...], broadcastable to the input; False entries must not change. None: all may change.
        grid: distance of the legal values, a power of two (1/32768 for 16-bit samples), which the input and the bounds
            are multiples of; None: every value is legal. Attacks search between the values, and `snap` ends on one.
    """

    norm: str = "linf"
    eps: float | Tensor = math.inf
    bounds: tuple[float, float] = (-math.inf, math.inf)
    mask: Tensor | None = None
    grid: float | None = None

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"unknown norm '{self.norm}' (choices: {', '.join(NORMS)})")
        if bool((torch.as_tensor(self.eps) < 0).any()):
            raise ValueError(f"eps must not be negative, got {self.eps}")

    def budgets(self, x: Tensor) -> Tensor:
        """eps per example, [batch], on the device of x."""
        eps = torch.as_tensor(self.eps, dtype=x.dtype, device=x.device)
        return eps.expand(len(x)) if eps.dim() == 0 else eps

    def select(self, index: Tensor) -> ThreatModel:
        """The threat for the examples at `index`."""
        eps = self.eps[index.to(self.eps.device)] if isinstance(self.eps, Tensor) and self.eps.dim() else self.eps
        mask = self.mask
        if mask is not None and len(mask) > 1:
            mask = mask[index.to(mask.device)]
        return replace(self, eps=eps, mask=mask)

    def masked(self, delta: Tensor) -> Tensor:
        """delta [batch, ...] with zeros where the mask is False."""
        return delta if self.mask is None else delta * self.mask

    def clip(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """x_adv within the bounds, and x where the mask is False. Unchanged entries may be outside the bounds."""
        low, high = self.bounds
        delta = self.masked(x_adv - x)
        out = x + delta
        if math.isfinite(low) or math.isfinite(high):
            out = torch.where(delta == 0, x, out.clamp(low, high))
        return out

    def box(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Lowest and highest legal value of every entry under linf, [batch, ...] each: projection is then one clamp."""
        size = column(self.budgets(x), x).expand_as(x)
        if self.mask is not None:
            size = torch.where(self.mask, size, 0)
        low, high = self.bounds
        return (x - size).clamp_min_(low).minimum(x), (x + size).clamp_max_(high).maximum(x)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Projection of x_adv onto the ball around x, then onto bounds and mask. x_adv, x: [batch, ...]."""
        delta = self.masked(x_adv - x)
        eps = self.budgets(x)
        size = column(eps, x)
        if self.norm == "linf":
            delta = delta.clamp(-size, size)
        elif self.norm == "l2":
            delta = delta * (size / column(norm_of(delta, "l2"), x).clamp_min(1e-30)).clamp(max=1)
        elif self.norm == "l1":
            delta = _project_l1(delta, eps)
        else:
            delta = _project_l0(delta, eps)
        return self.clip(x + delta, x)

    def filled(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """x_adv within the ball, bounds and mask, in l2 with its perturbation scaled to the whole budget where the
        bounds allow it. [batch, ...]."""
        x_adv = self.project(x_adv, x)
        if self.norm != "l2":
            return x_adv
        size = column(self.budgets(x), x)
        for _ in range(FILL_STEPS):  # what the bounds cut off goes to the other entries
            delta = x_adv - x
            x_adv = self.clip(x + delta * (size / column(norm_of(delta, "l2"), x).clamp_min(1e-30)), x)
        return self.project(x_adv, x)

    def ascent(self, gradient: Tensor) -> Tensor:
        """Steepest ascent direction of unit norm within the mask, to first order. [batch, ...]."""
        gradient = self.masked(gradient)
        if self.norm == "linf":
            return gradient.sign()
        if self.norm == "l2":
            return gradient / column(norm_of(gradient, "l2"), gradient).clamp_min(1e-30)
        flat = gradient.flatten(1)
        best = flat.abs().argmax(1, keepdim=True)
        return torch.zeros_like(flat).scatter(1, best, flat.gather(1, best).sign()).view_as(gradient)

    def random_start(self, x: Tensor, rng: RandomStreams) -> Tensor:
        """A point of the ball: uniform in the box for linf; random direction and uniform radius for l2 and l1."""
        eps = column(self.budgets(x), x)
        if self.norm == "linf":
            noise = (2 * rng.uniform(x) - 1) * eps
        else:
            noise = self.masked(rng.normal(x))
            norm = "l2" if self.norm == "l2" else "l1"
            radius = column(rng.uniform(x.flatten(1)[:, :1]).flatten(), x)
            noise = noise / column(norm_of(noise, norm), x).clamp_min(1e-30) * radius * eps
        return self.project(x + noise, x)

    def floored(self) -> ThreatModel:
        """The threat with its linf budget rounded down to the grid: the smallest ball with the same legal points."""
        if self.grid is None or self.norm != "linf":
            return self
        # A budget of k steps, written with six digits, may be a little below them.
        steps = torch.as_tensor(self.eps, dtype=torch.float64) / self.grid * (1 + ROUNDED)
        eps = steps.floor() * self.grid
        return replace(self, eps=eps.to(torch.float32) if isinstance(self.eps, Tensor) else float(eps))

    def snap(self, x_adv: Tensor, x: Tensor, beyond: float = 0.02) -> Tensor:
        """A legal point of the grid near x_adv, which is within the bounds and the mask; x is on the grid. Without a
        grid x_adv itself. [batch, ...].

        Args:
            beyond: where x_adv exceeds the budget by more than this share, as a search for the smallest perturbation
                may, the nearest point of the grid is returned, and elsewhere one within the budget.

        In linf, with a floored budget, rounding cannot leave the box. In l2 and l1 it usually leaves the ball, by the
        norm of the rounding error: the perturbation is then scaled until its rounded values fit."""
        if self.grid is None:
            return x_adv
        if self.norm in ("linf", "l0") or (isinstance(self.eps, float) and math.isinf(self.eps)):
            return (x_adv * (1 / self.grid)).round_().mul_(self.grid)
        delta = (x_adv - x).mul_(1 / self.grid)
        limit = self.budgets(x) / self.grid
        size = norm_of(delta, self.norm)
        limit = torch.where(size <= limit * (1 + beyond), limit * (1 - SNAP_MARGIN), math.inf)
        # x + delta is itself rounded, by more than a share of a small budget where x is large.
        inside = (limit / size.clamp_min(1e-30)).clamp(max=1)
        delta, size = delta.mul_(column(inside, delta)), size * inside
        return x + _rounded_within(delta, size, limit, self.norm).mul_(self.grid)

    def contains(self, x_adv: Tensor, x: Tensor, tolerance: float = TOLERANCE) -> Tensor:
        """Whether each x_adv is legal: norm, bounds and mask, up to the rounding of x_adv, which is that of its values
        and not of the budget. [batch] bool.

        Args:
            tolerance: relative slack of the norm.
        """
        delta = x_adv - x
        rounding = 2 * torch.finfo(x.dtype).eps * x.abs().maximum(x_adv.abs())
        size = norm_of(delta if self.norm == "l0" else (delta.abs() - rounding).clamp_min(0), self.norm)
        ok = size <= self.budgets(x) * (1 + tolerance)
        low, high = self.bounds
        inside = ((x_adv >= low) & (x_adv <= high)) | (delta == 0)
        ok &= inside.flatten(1).all(1)
        if self.mask is not None:
            ok &= ((delta == 0) | self.mask).flatten(1).all(1)
        return ok & torch.isfinite(x_adv).flatten(1).all(1)


def _rounded_within(delta: Tensor, size: Tensor, limit: Tensor, norm: str) -> Tensor:
    """Integers near delta [batch, ...] whose norm is at most `limit` [batch]: delta rounded, or scaled and rounded.

    Args:
        size: the norm of delta, [batch].
        norm: l2 or l1.
    """
    power = 2 if norm == "l2" else 1
    scale, best = torch.ones_like(size), torch.zeros_like(size)
    for step in range(SNAP_STEPS):
        norms = norm_of((delta * column(scale, delta)).round_(), norm)
        best = torch.where(norms <= limit, best.maximum(scale), best)
        # The rounding error adds the same to |scale * delta|^power whatever the scale, nearly.
        error = norms**power - (scale * size) ** power
        wanted = (limit**power - error).clamp_min(0) ** (1 / power) / size.clamp_min(1e-30)
        scale = torch.where(best == 1, scale, wanted.clamp(max=1) * (1 - 1e-4 * 4**step))
    rounded = (delta * column(best, delta)).round_()
    # Where no scale fits, values cut off towards 0 do.
    return torch.where(column(best > 0, delta), rounded, delta.trunc()) if bool((best == 0).any()) else rounded


def _project_l1(delta: Tensor, eps: Tensor) -> Tensor:
    """Projection onto the l1 ball (Duchi et al. 2008): soft thresholding, with the threshold found by sorting."""
    flat = delta.flatten(1)
    ordered = flat.abs().sort(1, descending=True).values
    excess = ordered.cumsum(1, dtype=torch.float64) - eps[:, None]
    rank = torch.arange(1, flat.shape[1] + 1, device=flat.device, dtype=torch.float64)
    last = ((ordered * rank > excess).sum(1, keepdim=True) - 1).clamp_min(0)
    threshold = (excess.gather(1, last) / (last + 1)).clamp_min(0).to(flat.dtype)
    shrunk = flat.sign() * (flat.abs() - threshold).clamp_min(0)
    # Far from the ball the difference of two large numbers remains, whose rounding may exceed the ball.
    shrunk = shrunk * (eps[:, None] / shrunk.abs().sum(1, keepdim=True).clamp_min(1e-30)).clamp(max=1)
    return torch.where((ordered.sum(1) <= eps)[:, None], flat, shrunk).view_as(delta)


def _project_l0(delta: Tensor, eps: Tensor) -> Tensor:
    """Projection onto the l0 ball: keep the eps entries of largest magnitude."""
    flat = delta.flatten(1)
    order = flat.abs().argsort(1, descending=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(flat.shape[1], device=flat.device).expand_as(order))
    return (flat * (rank < eps[:, None])).view_as(delta)
