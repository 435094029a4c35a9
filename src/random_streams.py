"""Random streams, one per example: seeded by (seed, example id, purpose), so that results do not depend on batch size,
order, process count or resumption."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 16
"""Batches of normal draws are multiples of this: torch fills normals in groups of 16, and only complete groups give the
same stream for every size of the calls."""

HEAD = "head"
"""Purpose of the numbers that randomized stages before an attacked representation draw."""


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any printable parts; equal parts give equal seeds on every machine.

    >>> derive_seed(0, "clip", "pgd") == derive_seed(0, "clip", "pgd") != derive_seed(1, "clip", "pgd")
    True
    """
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class RandomStreams:
    """One random stream per example of a batch.

    Args:
        seed: the run's seed.
        ids: one id per example.
        purpose: of the numbers ("pgd", "certify sigma=0.5"), so that different uses have different streams.
        device: of the generators; CUDA streams differ from CPU streams.
        generators: existing streams, one per example; None to seed new ones.
    """

    def __init__(
        self,
        seed: int,
        ids: Sequence[str],
        purpose: str,
        device: torch.device | str = "cpu",
        *,
        generators: Sequence[torch.Generator] | None = None,
    ):
        self.seed, self.ids, self.purpose = seed, tuple(ids), purpose
        if generators is None:
            generators = [torch.Generator(device).manual_seed(derive_seed(seed, i, purpose)) for i in ids]
        self.generators = list(generators)

    def __len__(self) -> int:
        return len(self.generators)

    def select(self, index: Tensor) -> RandomStreams:
        """The streams of the examples at `index` (long or bool tensor [batch]), which continue from their state."""
        chosen = index.nonzero().flatten() if index.dtype == torch.bool else index
        ids, generators = [self.ids[i] for i in chosen.tolist()], [self.generators[i] for i in chosen.tolist()]
        return RandomStreams(self.seed, ids, self.purpose, generators=generators)

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform on [0, 1), shaped as `like` [batch, ...]."""
        return self._draw(torch.rand, like)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal, shaped as `like` [batch, ...]."""
        return self._draw(torch.randn, like)

    def signs(self, like: Tensor) -> Tensor:
        """-1 or +1 with equal chance, shaped as `like` [batch, ...]."""
        return (self.uniform(like) < 0.5).to(like.dtype) * 2 - 1

    def _draw(self, draw: object, like: Tensor) -> Tensor:
        assert len(like) == len(self.generators), f"{len(self.generators)} streams for a batch of {len(like)}"
        out = torch.empty_like(like, requires_grad=False)
        for row, generator in zip(out, self.generators, strict=True):
            row.copy_(draw(row.shape, generator=generator, device=generator.device, dtype=row.dtype))  # type: ignore[operator]
        return out
