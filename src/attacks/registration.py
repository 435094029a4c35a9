"""How an attack is registered with its specification, and what every call of one does around its function."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from src.attacks.model import Model
from src.attacks.on_grid import OnGrid
from src.attacks.spec import Access, AttackSpec, Kind, Stages
from src.random_streams import RandomStreams
from src.registry import ATTACKS, Check
from src.threat import ThreatModel, column

AttackFunction = Callable[..., Tensor]
"""`attack(model, x, y, threat, *, rng, targeted, <config keys>) -> x_adv`; a fitted attack takes `fitted`, what its
`FitFunction` returned, in place of the config keys."""
FitFunction = Callable[..., dict[str, Tensor]]
"""`fit(model, x, y, threat, *, rng, targeted, <config keys>) -> tensors` on training or validation clips x."""


class RegisteredAttack:
    """An attack function with its specification. A call checks its arguments against the specification and runs the
    function without autograd (it enables gradients where it needs them); an empty batch is returned as it is. A
    minimum-norm result that exceeds a finite budget is projected onto it. Where the threat model has a grid, the model
    sees every iterate on the grid, and the result is on it.

    Args:
        spec: properties of the attack.
        function: computes the adversarial examples.
        fit_function: what a fitted attack learns beforehand; its keyword-only parameters are the config keys.
    """

    def __init__(self, spec: AttackSpec, function: AttackFunction, fit_function: FitFunction | None = None):
        assert spec.fitted == (fit_function is not None)
        self.spec, self.function, self.fit_function = spec, function, fit_function
        functools.update_wrapper(self, function)

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        *,
        rng: RandomStreams,
        targeted: bool,
        **options: Any,
    ) -> Tensor:
        self.spec.check(threat.norm, targeted, x.dim() == 2)
        if not self.spec.fitted:
            ATTACKS.check_options(self.spec.name, options)
        x = x.detach()
        if not len(x):
            return x.clone()
        model, threat = _on_grid(model, x, threat)
        with torch.no_grad():
            x_adv = self.function(model, x, y, threat, rng=rng, targeted=targeted, **options)
            if self.spec.kind == "minimum_norm":  # the smallest success may still exceed a finite budget
                inside = column(threat.contains(x_adv, x), x)
                x_adv = torch.where(inside, x_adv, threat.project(x_adv, x))
            return threat.snap(x_adv, x, beyond=math.inf)

    def fit(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        *,
        rng: RandomStreams,
        targeted: bool,
        **options: Any,
    ) -> dict[str, Tensor]:
        """What a fitted attack learns from training or validation clips; a call takes it as `fitted`.

        Args:
            x: inputs, [clips, ...].
            y: labels, or targets if `targeted`, [clips].
            options: config keys.

        Raises:
            ValueError: the attack is not fitted, there are no clips, or its specification does not allow the use.
        """
        if self.fit_function is None:
            raise ValueError(f"{self.spec.name} is not a fitted attack")
        self.spec.check(threat.norm, targeted, x.dim() == 2)
        ATTACKS.check_options(self.spec.name, options)
        if not len(x):
            raise ValueError(f"{self.spec.name} needs clips to be fitted to")
        x = x.detach()
        model, threat = _on_grid(model, x, threat)
        with torch.no_grad():
            return self.fit_function(model, x, y, threat, rng=rng, targeted=targeted, **options)


def _on_grid(model: Model, x: Tensor, threat: ThreatModel) -> tuple[Model, ThreatModel]:
    """The model and the threat model as an attack gets them: on the grid where there is one.

    Raises:
        ValueError: x is not on the grid.
    """
    if threat.grid is None:
        return model, threat
    if bool((x.remainder(threat.grid) != 0).any()):
        raise ValueError(f"the inputs are not multiples of the grid step {threat.grid:g} of the threat model")
    threat = threat.floored()
    return OnGrid(model, x, threat), threat


def attack(
    name: str,
    *,
    kind: Kind,
    norms: tuple[str, ...],
    access: Access,
    targetable: bool = True,
    stages: Stages = "any",
    needs_sample_rate: bool = False,
    takes_examples: bool = False,
    takes_tap: bool = False,
    reports: bool = False,
    limited: bool = False,
    check_options: Check | None = None,
    fit: FitFunction | None = None,
) -> Callable[[AttackFunction], RegisteredAttack]:
    """Decorator: register `function(model, x, y, threat, *, rng, targeted, <config keys>) -> x_adv` with the
    specification of `AttackSpec`.

    Args:
        check_options: raises ValueError where options contradict each other; called before any work.
        fit: for a fitted attack: `fit(model, x, y, threat, *, rng, targeted, <config keys>) -> tensors`. The decorated
            function then takes the keyword `fitted` with these tensors and has no config keys.
    """
    spec = AttackSpec(
        name, kind, norms, targetable, access, stages, fit is not None, needs_sample_rate, takes_examples, takes_tap,
        reports, limited,
    )  # fmt: skip
    register = ATTACKS.register(name, check_options=check_options, configured=fit)
    return lambda function: register(RegisteredAttack(spec, function, fit))


def registered_attack(name: str) -> RegisteredAttack:
    """A registered attack with its specification and, where it is fitted, its `fit`.

    Raises:
        ValueError: no such attack; lists the choices.
    """
    registered = ATTACKS[name]
    assert isinstance(registered, RegisteredAttack), f"{name} was registered without @attack"
    return registered


def spec_of(name: str) -> AttackSpec:
    """The specification of a registered attack; raises ValueError as `registered_attack` does."""
    return registered_attack(name).spec
