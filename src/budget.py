"""A perturbation budget as a person writes it: a size in units of the attacked representation, or an SNR."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import PlainValidator
from torch import Tensor

from src.threat import norm_of


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
        match = re.fullmatch(r"\s*([-+.\deE]+)\s*(db)?\s*", str(text), re.I)
        try:
            value = float(match[1]) if match else math.nan
        except ValueError:
            value = math.nan
        is_snr = bool(match and match[2])
        # In the rows, eps inf marks an attack without a budget.
        if not math.isfinite(value) or (value < 0 and not is_snr):
            raise ValueError(f"'{text}' is not a budget: write a finite number >= 0, or an SNR such as '30 dB'")
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
