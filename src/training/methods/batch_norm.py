"""Batch-norm statistics of adversarial examples apart from those of clean ones, which the trained model is used with.
Xie et al. 2020 ("Adversarial examples improve image recognition") keep two sets; both kinds share the other weights."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Statistics = Literal["shared", "clean", "separate"]
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def apart(modules: nn.Module, statistics: MutableMapping[str, Tensor]) -> Iterator[None]:
    """The batch-norm layers of a module with other running statistics; its own are back afterwards.

    Args:
        statistics: those to use, by the names of the buffers, and to update in training mode; where it is empty, copies
            of the module's own are put in.
    """
    layers = {name: layer for name, layer in modules.named_modules() if isinstance(layer, _BatchNorm)}
    places = [
        (layer, buffer, f"{name}.{buffer}")
        for name, layer in layers.items()
        for buffer in BUFFERS
        if getattr(layer, buffer) is not None
    ]
    originals = [getattr(layer, buffer) for layer, buffer, _ in places]
    # The tensors are exchanged, not overwritten: the graph of an earlier forward pass may still hold the originals.
    for (layer, buffer, name), original in zip(places, originals, strict=True):
        setattr(layer, buffer, statistics.setdefault(name, original.clone()))
    try:
        yield
    finally:
        for (layer, buffer, _), original in zip(places, originals, strict=True):
            setattr(layer, buffer, original)
