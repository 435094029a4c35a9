"""Access to what a layer of the attacked model gives, for attacks on intermediate features: at the latest call of the
model, however it is wrapped, and for other inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

INPUT = "input"
"""Name of the representation that the classifier gets."""
BATCH = 64
"""Inputs per pass of `Tap.of`."""


class Tap:
    """The output of one layer of a classifier. Used in a `with` block, at whose end it lets go of the model. Of a
    classifier that sees an input in several pieces, and says by `clip_of` whose each is, it is the mean over them.

    Args:
        model: from inputs [batch, ...] to logits, with the classifier inside.
        classifier: the network whose layers have names.
        layer: `input` for the representation that it gets, or the name of a layer such as `blocks.1.conv2`.

    Attributes:
        value: the output at the latest call, [batch, ...].

    Raises:
        ValueError: no such layer; lists those there are.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], classifier: nn.Module, layer: str):
        layers = {name: part for name, part in classifier.named_modules() if name and not list(part.children())}
        if layer != INPUT and layer not in layers:
            raise ValueError(f"the model has no layer '{layer}' (choices: {', '.join([INPUT, *layers])})")
        self.model, self.classifier, self.value = model, classifier, torch.empty(0)
        if layer == INPUT:
            self.hook = classifier.register_forward_pre_hook(lambda _, args: self._take(args[0]))
        else:
            self.hook = layers[layer].register_forward_hook(lambda _, args, output: self._take_of_layer(output))

    def _take(self, value: Tensor) -> None:
        self.value = value

    def _take_of_layer(self, value: Tensor) -> None:
        clip_of: Tensor | None = getattr(self.classifier, "clip_of", None)
        if clip_of is not None:
            counts = clip_of.bincount()
            total = value.new_zeros(len(counts), *value.shape[1:]).index_add(0, clip_of, value)
            value = total / counts.view(-1, *[1] * (value.dim() - 1))
        self.value = value

    def of(self, x: Tensor) -> Tensor:
        """The output of the layer for any inputs x [batch, ...], their padding included, without a gradient."""
        with torch.no_grad():
            parts = []
            for batch in torch.split(x, BATCH):
                self.model(batch)
                parts.append(self.value)
        return torch.cat(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.hook.remove()
