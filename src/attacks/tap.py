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
    """The output of one layer of a classifier. Used in a `with` block, at whose end it lets go of the model.

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
        self.model, self.value = model, torch.empty(0)
        if layer == INPUT:
            self.hook = classifier.register_forward_pre_hook(lambda _, args: self._take(args[0]))
        else:
            self.hook = layers[layer].register_forward_hook(lambda _, args, output: self._take(output))

    def _take(self, value: Tensor) -> None:
        self.value = value

    def of(self, x: Tensor) -> Tensor:
        """The output of the layer for any inputs x [batch, ...], without a gradient."""
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
