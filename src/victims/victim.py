"""The victim: a chain of named, differentiable stages from waveform to logits. Any representation on the way can be
attacked, defended or smoothed: `head, tail = victim.split(name)`, with `tail(head(x))` equal to `victim(x)`."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from src.victims.chain import Chain
from src.victims.embedder import Embedder
from src.victims.frozen_convolution import freeze_convolutions
from src.victims.stage import WAVEFORM, Defense, Stage


class Victim(Chain):
    """A whole audio classifier.

    Args:
        stages: the front end, in order; names must be unique.
        classifier: from the last representation to logits [batch, classes].
        classes: the class names, in the order of the logits.
        sample_rate: Hz of the waveform.
        n_samples: length of the waveform the classifier was built for.

    Attributes:
        representations: names that `split` takes, from the waveform on.
        recipe: what checkpoint.build made it of, defenses apart; empty for a victim put together by hand.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        classifier: nn.Module,
        *,
        classes: Sequence[str],
        sample_rate: int,
        n_samples: int,
    ):
        super().__init__(stages, classifier)
        names = [WAVEFORM, *(stage.name for stage in stages)]
        if len(set(names)) != len(names):
            raise ValueError(f"two stages of one chain share a name: {', '.join(names)}")
        self.representations = tuple(names)
        self.classes, self.sample_rate, self.n_samples = tuple(classes), sample_rate, n_samples
        self.recipe: dict[str, Any] = {}

    def split(self, name: str) -> tuple[Chain, Chain]:
        """(head, tail) around the representation `name`: head ends with it, tail starts from it.

        Raises:
            ValueError: no such representation; lists those there are.
        """
        if name not in self.representations:
            raise ValueError(f"this model has no representation '{name}' (choices: {', '.join(self.representations)})")
        cut = self.representations.index(name)
        stages: list[Stage] = list(self.stages)  # type: ignore[arg-type]
        head, tail = Chain(stages[:cut]), Chain(stages[cut:], self.classifier)
        return head.train(self.training), tail.train(self.training)

    def bounds(self, name: str) -> tuple[float, float]:
        """Lowest and highest legal value at the representation `name`."""
        if name == WAVEFORM:
            return (-1.0, 1.0)
        return self.split(name)[0].stages[-1].bounds  # type: ignore[return-value]

    def lipschitz(self, name: str) -> float | None:
        """L2 Lipschitz constant of the map from waveform to `name`, or None: a perturbation of norm r there takes a
        waveform perturbation of at least r divided by it."""
        constant = 1.0
        for stage in self.split(name)[0].stages:
            if stage.lipschitz is None:
                return None
            constant *= float(stage.lipschitz)  # type: ignore[arg-type]
        return constant

    def defended(self, defenses: Sequence[Defense], at: str = WAVEFORM) -> Victim:
        """The same victim with these defenses behind the representation `at`, after those that stand there already;
        it shares the weights. A defense that is there under the same name gets a number behind its name.

        Raises:
            ValueError: no such representation, or a defense that needs a waveform where there is none.
        """
        places = [WAVEFORM, *(stage.name for stage in self.stages if not isinstance(stage, Defense))]
        if at not in places:
            raise ValueError(f"no defense can stand at '{at}' (choices: {', '.join(map(str, places))})")
        index = self.representations.index(at)
        while index < len(self.stages) and isinstance(self.stages[index], Defense):
            index += 1
        head = Chain(list(self.stages)[:index])  # type: ignore[arg-type]
        with torch.no_grad():
            features = head(torch.zeros(1, self.n_samples, device=self.device))
        names, added = set(self.representations), list[Stage]()
        for defense in defenses:
            if defense.waveform_only and features.dim() != 2:
                shape = " x ".join(map(str, features.shape[1:]))
                raise ValueError(f"the defense '{defense.name}' needs a waveform; '{at}' has {shape} values per clip")
            number = next(
                n for n in itertools.count(1) if (defense.name if n == 1 else f"{defense.name}_{n}") not in names
            )
            defense.name = defense.name if number == 1 else f"{defense.name}_{number}"
            defense.position = at
            if at != WAVEFORM:
                defense.bounds = (-math.inf, math.inf)
            names.add(defense.name)
            added.append(defense)
        return self._with_stages([*list(self.stages)[:index], *added, *list(self.stages)[index:]])  # type: ignore[list-item]

    def undefended(self) -> Victim:
        """The same victim without its defenses; it shares the weights."""
        return self._with_stages([stage for stage in self.stages if not isinstance(stage, Defense)])  # type: ignore[misc]

    @property
    def defenses(self) -> tuple[Defense, ...]:
        """The defenses in the chain, in order."""
        return tuple(stage for stage in self.stages if isinstance(stage, Defense))

    def _with_stages(self, stages: Sequence[Stage]) -> Victim:
        assert self.classifier is not None
        victim = Victim(
            stages, self.classifier, classes=self.classes, sample_rate=self.sample_rate, n_samples=self.n_samples
        )
        victim.recipe = self.recipe
        return victim.train(self.training)

    @property
    def device(self) -> torch.device:
        return next(iter([*self.parameters(), *self.buffers()]), torch.empty(0)).device

    def frozen(self) -> Victim:
        """A copy in evaluation mode, parameters without gradients, batch norm folded into convolutions, dense
        convolutions in channels_last, fast backwards where a layer has one; the same logits to 1e-5 and the same input
        gradients, but no second derivatives."""
        stages = [copy.deepcopy(stage).frozen() for stage in self.stages]  # type: ignore[operator]
        classifier = fold_batch_norm(copy.deepcopy(self.classifier).eval())  # type: ignore[union-attr]
        convolutions = [module for module in classifier.modules() if isinstance(module, nn.Conv2d)]
        # Depthwise convolutions lose more in channels_last than the dense ones gain (measured on CPU).
        if convolutions and all(module.groups == 1 for module in convolutions):
            classifier = freeze_convolutions(classifier.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
        victim = Victim(
            stages, classifier, classes=self.classes, sample_rate=self.sample_rate, n_samples=self.n_samples
        )
        return victim.eval().requires_grad_(False)


def fold_batch_norm(classifier: nn.Module) -> nn.Module:
    """Fold every batch norm that directly follows a convolution into its weights (evaluation mode only).
    A model whose forward cannot be traced is returned as it is; of one that uses a mask or has another method than
    forward, which a trace would lose, the parts are folded."""
    from torch.fx.experimental.optimization import fuse

    if any(getattr(module, "uses_mask", False) or isinstance(module, Embedder) for module in classifier.modules()):
        for name, child in classifier.named_children():
            layers = list(child.modules())
            if len(layers) > 1 and any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers):
                setattr(classifier, name, fold_batch_norm(child))
        return classifier
    try:
        return fuse(classifier)
    except torch.fx.proxy.TraceError:
        return classifier
