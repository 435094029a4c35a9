"""Consecutive stages, with a classifier at the end or without, and the same for inputs whose true lengths are known."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from src.victims.stage import Stage
from src.victims.zero_padding import ZeroPadding


class Chain(nn.Module):
    """Consecutive stages and, at the end of a victim, its classifier."""

    def __init__(self, stages: Iterable[Stage], classifier: nn.Module | None = None):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.classifier = classifier
        steps: list[Stage] = []
        for stage in self.stages:
            fused = steps[-1].fused(stage) if steps else None  # type: ignore[arg-type]
            steps[-1:] = [fused] if fused else [*steps[-1:], stage]  # type: ignore[list-item]
        # A tuple hides the fused steps from torch: they share the buffers of the stages registered above.
        self.steps = tuple(steps)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """The output at x [batch, ...].

        Args:
            valid: bool, the parts of x that are not padding: [batch, time] for a waveform, else as `valid_output` gives
                it. It matters to a chain whose classifier declares `uses_mask`.
        """
        if valid is not None:
            return with_lengths(self, valid)(x)
        for step in self.steps:
            x = step(x)
        return self.classify(x)

    def classify(self, features: Tensor) -> Tensor:
        """The logits of the last representation; the features themselves where there is no classifier."""
        return features if self.classifier is None else self.classifier(features)

    @property
    def uses_mask(self) -> bool:
        """Whether the classifier is called as `classifier(features, mask)`, with the mask of valid frames
        [batch, frames] or [1, frames], so that frames of padding do not count."""
        return bool(getattr(self.classifier, "uses_mask", False))

    def mask(self, valid: Tensor) -> Tensor:
        """Which parts of the output the valid parts of the input reach: bool, broadcastable to the output."""
        for stage in self.stages:
            valid = stage.mask(valid)  # type: ignore[operator]
        return valid

    def valid_output(self, valid: Tensor) -> Tensor:
        """Which parts of the output there would be without the padding: bool, broadcastable to the output."""
        for stage in self.stages:
            valid = stage.valid_output(valid)  # type: ignore[operator]
        return valid

    def frame_mask(self, valid: Tensor) -> Tensor:
        """The same per frame of the last representation: bool [batch, frames]."""
        mask = self.valid_output(valid)
        return mask if mask.dim() == 2 else mask.flatten(1, -2).any(1)

    def informed(self, valid: Tensor) -> list[Stage]:
        """The stages for inputs of which these parts are not padding; they share their parameters with these. Behind a
        stage that fills the padding of a waveform another one clears it."""
        stages: list[Stage] = []
        for stage in self.stages:
            if isinstance(stage, ZeroPadding):  # of a chain that was informed before
                continue
            stages.append(stage.with_valid(valid))  # type: ignore[operator]
            valid = stage.valid_output(valid)  # type: ignore[operator]
            if stage.fills_padding and valid.dim() == 2:
                stages.append(ZeroPadding().with_valid(valid))
        return stages


class WithLengths(Chain):
    """A chain that knows which parts of its inputs are padding: the logits are those of the clips without it.

    Args:
        chain: it shares its stages and weights.
        valid: bool, one row per example or a single one for all.
    """

    def __init__(self, chain: Chain, valid: Tensor):
        super().__init__(chain.informed(valid), chain.classifier)
        self.valid, self.training, self.stages.training = valid, chain.training, chain.training

    def classify(self, features: Tensor) -> Tensor:
        assert self.classifier is not None
        return self.classifier(features, self.frame_mask(self.valid))

    def select(self, index: Tensor) -> WithLengths:
        """The same for the examples at `index`."""
        return WithLengths(self, self.valid if len(self.valid) == 1 else self.valid[index])


def with_lengths(chain: Chain, valid: Tensor, head: Chain | None = None) -> Chain:
    """The chain for inputs with these valid parts; the chain itself where its classifier uses no mask.

    Args:
        valid: bool, the parts of the input that are not padding.
        head: the chain whose output is the input of this one, where `valid` belongs to the input of that.
    """
    if not chain.uses_mask:
        return chain
    return WithLengths(chain, valid if head is None else head.valid_output(valid))


def head_with_lengths(head: Chain, tail: Chain, valid: Tensor) -> Chain:
    """The head of a split chain for inputs with these valid parts; the head itself where the tail uses no mask."""
    return Chain(head.informed(valid)) if tail.uses_mask else head


def represent(head: Chain, x: Tensor, valid: Tensor | None) -> Tensor:
    """The output of a chain; that of the clips without their padding where `valid` is given."""
    if valid is None or head.classifier is not None:
        return head(x, valid)
    return Chain(head.informed(valid))(x)
