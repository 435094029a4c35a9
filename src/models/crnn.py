"""Convolutional recurrent network for sound events (Iqbal et al., "General-purpose audio tagging from noisy labels
using convolutional neural networks", DCASE 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.tagging_blocks import Tagger
from src.models.width import scaled
from src.registry import MODELS, Natural, Positive

UNITS = 512
"""Published units of the recurrent layer, per direction."""


class ReluGru(nn.Module):
    """Gated recurrent unit (Cho et al. 2014) whose candidate is a ReLU instead of a hyperbolic tangent; the reset gate
    acts on the state before its matrix product, and there is one bias.

    torch.nn.GRU has no such activation. What "ReLU activation" of a recurrent layer means in the library of the
    published model is the candidate, the gates stay sigmoids.
    """

    def __init__(self, n_in: int, n_units: int):
        super().__init__()
        self.n_units = n_units
        self.enter = nn.Linear(n_in, 3 * n_units)
        self.gates = nn.Linear(n_units, 2 * n_units, bias=False)
        self.candidate = nn.Linear(n_units, n_units, bias=False)
        for layer in (self.gates, self.candidate):
            for first in range(0, len(layer.weight), n_units):
                nn.init.orthogonal_(layer.weight[first : first + n_units])

    def forward(self, x: Tensor) -> Tensor:
        """[n, time, n_in] -> states [n, time, n_units]."""
        state = x.new_zeros(len(x), self.n_units)
        states = []
        for step in self.enter(x).unbind(1):
            of_gates, of_candidate = step.split([2 * self.n_units, self.n_units], 1)
            update, reset = (of_gates + self.gates(state)).sigmoid().chunk(2, 1)
            candidate = F.relu(of_candidate + self.candidate(reset * state))
            state = update * state + (1 - update) * candidate
            states.append(state)
        return torch.stack(states, 1)


@MODELS.register("crnn")
class Crnn(Tagger):
    """The convolutions of VGG13, the mean over frequency, a bidirectional GRU with ReLU, the mean over time, and a
    linear layer.

    12.6 M parameters at width 1 with 41 classes.

    Args:
        width: of the published channels 64, 128, 256, 512, 512 and of the 512 recurrent units per direction; at least 8
            each.
        chunk: frames of the chunks that a clip is cut into, 128 as published; the clip is predicted by the geometric
            mean of their probabilities. 0 for the whole clip at once.
    """

    def __init__(self, *, n_classes: int, shape: tuple[int, ...], width: Positive = 1.0, chunk: Natural = 128):
        super().__init__("crnn", shape, chunk, width)
        units = scaled(UNITS, width)
        self.forwards, self.backwards = ReluGru(self.n_features, units), ReluGru(self.n_features, units)
        self.linear = nn.Linear(2 * units, n_classes)

    def chunk_logits(self, x: Tensor) -> Tensor:
        """Chunks [n, freq, time] -> logits [n, n_classes]."""
        frames = self.features(x).mean(2).transpose(1, 2)
        # The mean over time does not depend on the order of the backward states.
        states = torch.cat([self.forwards(frames).mean(1), self.backwards(frames.flip(1)).mean(1)], 1)
        return self.linear(states)
