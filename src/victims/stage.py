"""One step of the chain from waveform to logits, and the defenses that may stand behind any representation of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional as F

from src.random_streams import RandomStreams

WAVEFORM = "waveform"
"""The name of the input itself: float32 [batch, time] in [-1, 1]."""


def replicated(x: Tensor, length: int) -> Tensor:
    """x with another length of its last axis, each value the mean of the interval of x that it stands for, so that the
    gradient of a value is replicated over its interval (Replicate-W and Replicate-F of the speaker-recognition study).

    >>> replicated(Tensor([[1, 3, 5, 7]]), 2)
    tensor([[2., 6.]])
    """
    return F.adaptive_avg_pool1d(x.reshape(len(x), -1, x.shape[-1]), length).view(*x.shape[:-1], length)


class Stage(nn.Module):
    """One step of the chain: a batched, deterministic map that knows what may be done to its output.

    Attributes:
        name: of the representation it yields, unique in a chain.
        bounds: lowest and highest possible value of the output.
        lipschitz: L2 Lipschitz constant of the step, or None where no useful one is known.
        differentiable: False where the gradient is zero or undefined (attack it with BPDA).
        randomized: True where two calls differ (attack it with EOT).
        uses_mask: True where the padding of a clip changes the output for the rest of it, so that the stage has to know
            `valid`: statistics over time, a filter.
        fills_padding: True where it may leave something else than zeros behind the end of a waveform (noise, the tail
            of a filter), so that a chain that knows the true lengths has to clear it.
        valid: bool, the parts of the input that are not padding, one row per example or a single one for all, as
            `valid_output` of the stages before gives it; None where nothing is padding. Set by `with_valid`.
    """

    bounds: tuple[float, float] = (-math.inf, math.inf)
    lipschitz: float | None = None
    differentiable: bool = True
    randomized: bool = False
    uses_mask: bool = False
    fills_padding: bool = False
    valid: Tensor | None = None

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def draw(self, x: Tensor, rng: RandomStreams) -> Tensor:
        """The output with random numbers from the examples' own streams; a randomized stage overrides it, for a
        deterministic one it is forward."""
        return self(x)

    def substitute(self, x: Tensor, value: Tensor) -> Tensor:
        """A differentiable function of x, of the output's shape, whose gradient stands for that of a stage that is not
        differentiable (BPDA); unless the stage knows better, the identity, or `replicated` where the length changes.

        Args:
            value: the stage's exact output at x, without gradient.
        """
        return x if x.shape == value.shape else replicated(x, value.shape[-1])

    def inverse(self, y: Tensor, x: Tensor) -> Tensor:
        """An input near x whose output is near y."""
        raise ValueError(f"the stage '{self.name}' has no inverse")

    def mask(self, valid: Tensor) -> Tensor:
        """Which outputs the valid inputs reach: bool, broadcastable to the output."""
        return valid

    def valid_output(self, valid: Tensor) -> Tensor:
        """Which outputs the clip would have without its padding: at most those of `mask`, of the same shape."""
        return self.mask(valid)

    def with_valid(self, valid: Tensor) -> Self:
        """The stage for inputs of which these parts are not padding; itself where it does not matter."""
        if not self.uses_mask:
            return self
        informed = copy.copy(self)  # shares parameters and buffers
        informed.valid = valid
        return informed

    def frozen(self) -> Stage:
        """The copy that attacks and the certifier run; a stage with a faster backward returns it here."""
        return self

    def fused(self, following: Stage) -> Stage | None:
        """One step that computes this stage and the following one faster, or None."""
        return None


class Defense(Stage):
    """A transformation that may stand behind any representation of a chain. Its output has the shape of its input, or,
    where it says so, fewer frames.

    Attributes:
        waveform_only: it needs samples, [batch, time]; others take any representation.
        frames_only: it needs frames of features, [batch, ..., frames].
        shortens: its output has fewer frames than its input.
        position: the representation that it stands behind, set by `Victim.defended`.
        recipe: name and options of a defense that was built by name, so that a checkpoint can hold it.
    """

    fills_padding = True
    waveform_only: bool = True
    frames_only: bool = False
    shortens: bool = False
    position: str = WAVEFORM
    recipe: Mapping[str, Any] | None = None

    def inverse(self, y: Tensor, x: Tensor) -> Tensor:
        """y itself: who wants y behind the defense sends y into it."""
        return y
