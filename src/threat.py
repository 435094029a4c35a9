"""The threat model: norm, budget, bounds and mask. Projections are implemented here and nowhere else."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import PlainValidator
from torch import Tensor

from src.random_streams import RandomStreams

NORMS = ("linf", "l2", "l1", "l0")
TOLERANCE = 1e-4
"""Relative slack of `contains`: float32 sums of thousands of terms do not repeat to the last digit."""


def column(value: Tensor, like: Tensor) -> Tensor:
    """`value` [batch] shaped to broadcast against `like` [batch, ...]."""
    return value.reshape(-1, *[1] * (like.dim() - 1))


def norm_of(delta: Tensor, norm: str) -> Tensor:
    """The norm of each example, [batch, ...] -> [batch]."""
    flat = delta.flatten(1)
    if norm == "linf":
        return flat.abs().amax(1)
    if norm == "l2":
        return flat.norm(dim=1)
    if norm == "l1":
        return flat.abs().sum(1)
    if norm == "l0":
        return (flat != 0).sum(1).to(flat.dtype)
    raise ValueError(f"unknown norm '{norm}' (choices: {', '.join(NORMS)})")


@dataclass(frozen=True)
class Budget:
    """A perturbation budget as the config gives it: in units of the attacked representation, or as an SNR in dB.

    >>> Budget.parse("0.002"), Budget.parse("30 dB")
    (Budget(value=0.002, is_snr=False), Budget(value=30.0, is_snr=True))
    """

    value: float
    is_snr: bool = False

    @classmethod
    def parse(cls, text: object) -> Budget:
        if isinstance(text, Budget):
            return text
        match = re.fullmatch(r"\s*([-+.\deE]+|inf)\s*(db)?\s*", str(text), re.I)
        try:
            value = float(match[1]) if match else math.nan
        except ValueError:
            value = math.nan
        is_snr = bool(match and match[2])
        if math.isnan(value) or (value < 0 and not is_snr):
            raise ValueError(f"'{text}' is not a budget: write a number >= 0, or an SNR such as '30 dB'")
        return cls(value, is_snr)

    def __str__(self) -> str:
        return f"{self.value:g} dB" if self.is_snr else f"{self.value:g}"

    def eps(self, x: Tensor, norm: str, mask: Tensor | None = None) -> Tensor:
        """The budget per example of x [batch, ...], [batch]. An SNR is that of the largest legal perturbation: of the
        l2 norm eps, or (linf) with every unmasked entry at +-eps. It is not defined for l1 and l0.

        Raises:
            ValueError: an SNR with l1 or l0.
        """
        if not self.is_snr:
            return torch.full((len(x),), self.value, dtype=x.dtype, device=x.device)
        size = norm_of(x, "l2") * 10 ** (-self.value / 20)
        if norm == "l2":
            return size
        if norm == "linf":
            allowed = torch.ones_like(x) if mask is None else mask.expand_as(x).to(x.dtype)
            return size / allowed.flatten(1).sum(1).clamp_min(1).sqrt()
        raise ValueError(f"an eps in dB needs the norm linf or l2, not {norm}")


Eps = Annotated[Budget, PlainValidator(Budget.parse)]


@dataclass(frozen=True)
class ThreatModel:
    """The perturbations that an adversary may apply to an input.

    Attributes:
        norm: linf, l2, l1 or l0 of the perturbation.
        eps: the budget, in units of the attacked representation; a number or a tensor [batch];
            inf for minimum-norm attacks.
        bounds: lowest and highest legal value of the attacked representation.
        mask: bool [batch or 1, ...], broadcastable to the input; False entries must not change. None: all may change.
    """

    norm: str = "linf"
    eps: float | Tensor = math.inf
    bounds: tuple[float, float] = (-math.inf, math.inf)
    mask: Tensor | None = None

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

    def contains(self, x_adv: Tensor, x: Tensor, tolerance: float = TOLERANCE) -> Tensor:
        """Whether each x_adv is legal: norm, bounds and mask. [batch] bool."""
        delta = x_adv - x
        ok = norm_of(delta, self.norm) <= self.budgets(x) * (1 + tolerance) + 1e-7
        low, high = self.bounds
        inside = ((x_adv >= low) & (x_adv <= high)) | (delta == 0)
        ok &= inside.flatten(1).all(1)
        if self.mask is not None:
            ok &= ((delta == 0) | self.mask).flatten(1).all(1)
        return ok & torch.isfinite(x_adv).flatten(1).all(1)


def _project_l1(delta: Tensor, eps: Tensor) -> Tensor:
    """Projection onto the l1 ball (Duchi et al. 2008): soft thresholding, with the threshold found by sorting."""
    flat = delta.flatten(1)
    ordered = flat.abs().sort(1, descending=True).values
    excess = ordered.cumsum(1) - eps[:, None]
    rank = torch.arange(1, flat.shape[1] + 1, device=flat.device, dtype=flat.dtype)
    last = ((ordered * rank > excess).sum(1, keepdim=True) - 1).clamp_min(0)
    threshold = (excess.gather(1, last) / (last + 1)).clamp_min(0)
    shrunk = flat.sign() * (flat.abs() - threshold).clamp_min(0)
    return torch.where((ordered.sum(1) <= eps)[:, None], flat, shrunk).view_as(delta)


def _project_l0(delta: Tensor, eps: Tensor) -> Tensor:
    """Projection onto the l0 ball: keep the eps entries of largest magnitude."""
    flat = delta.flatten(1)
    order = flat.abs().argsort(1, descending=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(flat.shape[1], device=flat.device).expand_as(order))
    return (flat * (rank < eps[:, None])).view_as(delta)
