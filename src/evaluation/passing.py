"""How an attack passes the defenses between it and the logits: a key of every attack, beside its own. A defense counts
as evaluated only under the strongest of these ways, so that one run has several of them as variants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from src.attacks.spec import AttackSpec
from src.registry import Key

Gradient = Literal["substitute", "identity", "undefended"]
GRADIENT = Key(
    "gradient", Gradient, "substitute",
    "how it passes stages without a gradient: BPDA with their substitute or with the identity; undefended: crafted "
    "on the model without its defenses, and transferred",
)  # fmt: skip
COMMON_KEYS = (GRADIENT,)
"""Keys that every attack has, beside its own."""


def gradient_of(options: Mapping[str, Any]) -> Gradient:
    """How an attack with these options passes the defenses."""
    gradient: Gradient = options.get(GRADIENT.name, GRADIENT.default)
    return gradient


def own_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without the common ones: those that the attack's function takes."""
    common = {key.name for key in COMMON_KEYS}
    return {name: value for name, value in options.items() if name not in common}


def check_passing(spec: AttackSpec, options: Mapping[str, Any], is_adaptive: bool) -> None:
    """Refuse a way past the defenses that would change nothing.

    Args:
        is_adaptive: [ATTACK] adaptive.

    Raises:
        ValueError: says which.
    """
    gradient = gradient_of(options)
    if gradient == "identity" and spec.access != "gradients":
        raise ValueError(f"gradient = identity: {spec.name} follows no gradient")
    if gradient == "identity" and not is_adaptive:
        raise ValueError("gradient = identity is a kind of BPDA, which adaptive = no switches off")
    if gradient == "undefended" and spec.access == "none":
        raise ValueError(f"gradient = undefended: {spec.name} asks no model")
