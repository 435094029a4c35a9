"""Adaptive attacks by composition: BPDA for stages without a gradient, EOT for randomized ones (Athalye et al. 2018),
so that no defense looks robust because its gradient is missing or random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from src.losses import log_mean_probability
from src.random_streams import RandomStreams
from src.victims.chain import Chain, WithLengths
from src.victims.stage import Stage

VOTES = 20
"""Fresh draws that decide whether a randomized chain is fooled."""


class _Replace(torch.autograd.Function):
    """Forward returns the first argument, backward passes the whole gradient to the second."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, differentiable: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


def straight_through(value: Tensor, x: Tensor) -> Tensor:
    """`value`, whose gradient passes to x unchanged; both of one shape."""
    return _Replace.apply(value, x)  # type: ignore[no-untyped-call]


class Bpda(Stage):
    """Backward pass differentiable approximation: forward is the stage, backward that of its `substitute`.

    Args:
        stage: one that has no useful gradient.
        identity: the identity instead of the stage's own substitute.
    """

    def __init__(self, stage: Stage, identity: bool = False):
        super().__init__(stage.name)
        self.stage, self.identity = stage, identity
        self.bounds, self.lipschitz, self.randomized = stage.bounds, stage.lipschitz, stage.randomized
        self.uses_mask, self.fills_padding = stage.uses_mask, stage.fills_padding

    def forward(self, x: Tensor) -> Tensor:
        return self._with_gradient(x, self.stage)

    def draw(self, x: Tensor, rng: RandomStreams) -> Tensor:
        return self._with_gradient(x, lambda x: self.stage.draw(x, rng))

    def _with_gradient(self, x: Tensor, exact: Any) -> Tensor:
        with torch.no_grad():
            value = exact(x.detach())
        if not (torch.is_grad_enabled() and x.requires_grad):
            return value
        smooth = Stage.substitute(self.stage, x, value) if self.identity else self.stage.substitute(x, value)
        if smooth.shape != value.shape:
            raise ValueError(
                f"the stage '{self.name}' needs a substitute of its own: its output has another shape than its input"
            )
        return straight_through(value, smooth)

    def inverse(self, y: Tensor, x: Tensor) -> Tensor:
        return self.stage.inverse(y, x)

    def mask(self, valid: Tensor) -> Tensor:
        return self.stage.mask(valid)

    def valid_output(self, valid: Tensor) -> Tensor:
        return self.stage.valid_output(valid)

    def with_valid(self, valid: Tensor) -> Bpda:
        return Bpda(self.stage.with_valid(valid), self.identity) if self.uses_mask else self


def once(chain: Chain, x: Tensor, rng: RandomStreams) -> Tensor:
    """The output of the chain at x, with one draw of its randomized stages."""
    for step in chain.steps:
        x = step.draw(x, rng)
    return chain.classify(x)


class Eot(nn.Module):
    """Expectation over transformation: the log of the mean probability over draws, so that an attack's objective is the
    classifier averaged over its own randomness.

    Args:
        chain: from the attacked representation to logits.
        draws: per call.
        rng: one stream per example of the batches to come.
    """

    def __init__(self, chain: Chain, draws: int, rng: RandomStreams):
        super().__init__()
        self.chain, self.draws, self.rng = chain, draws, rng

    def forward(self, x: Tensor) -> Tensor:
        """[batch, ...] -> log probabilities [batch, classes]."""
        return log_mean_probability(torch.stack([once(self.chain, x, self.rng) for _ in range(self.draws)]), dim=0)

    def votes(self, x: Tensor) -> Tensor:
        """Logits of fresh single draws at x [batch, ...], [votes, batch, classes]."""
        return torch.stack([once(self.chain, x, self.rng) for _ in range(VOTES)])

    def select(self, index: Tensor) -> Eot:
        """The same for the examples at `index`; their streams continue where they are."""
        chain = self.chain.select(index) if isinstance(self.chain, WithLengths) else self.chain
        part = Eot(chain, self.draws, self.rng.select(index))
        return part.train(self.training)


def is_randomized(chain: Chain) -> bool:
    return any(stage.randomized for stage in chain.stages)


def adaptive(chain: Chain, *, rng: RandomStreams | None = None, draws: int = 10, identity: bool = False) -> Chain | Eot:
    """The model under attack by someone who knows the defense: BPDA on every stage that is not differentiable, EOT when
    any is randomized. A chain that needs neither is returned itself.

    Args:
        rng: streams of the examples, needed by EOT.
        draws: of EOT, per call.
        identity: BPDA with the identity, whatever substitute a stage has.

    Raises:
        ValueError: a randomized stage and no rng.
    """
    if any(not stage.differentiable for stage in chain.stages):
        stages: list[Stage] = [stage if stage.differentiable else Bpda(stage, identity) for stage in chain.stages]  # type: ignore[arg-type, misc]
        wrapped = Chain(stages, chain.classifier).train(chain.training)
        chain = WithLengths(wrapped, chain.valid) if isinstance(chain, WithLengths) else wrapped
    if not is_randomized(chain):
        return chain
    if rng is None:
        raise ValueError("a randomized stage is attacked through EOT, which needs random streams")
    return Eot(chain, draws, rng).train(chain.training)
