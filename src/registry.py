"""Name -> builder. A builder's keyword-only parameters that have a default are its config keys; their annotations
are the schema and the `Args:` lines of its docstring the help. Keyword-only parameters without a default are supplied
by the program (shapes, random streams), never by the config."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, TypeVar, get_type_hints

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import AfterValidator

F = TypeVar("F", bound=Callable[..., Any])

# The vocabulary of ranges, so that a signature reads as a specification.
Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
T = TypeVar("T")
Listed = Annotated[tuple[T, ...], MinLen(1)]
"""Values separated by commas, at least one."""


@dataclass(frozen=True)
class Key:
    """One config key of a component."""

    name: str
    annotation: Any
    default: Any
    description: str


def choose(value: str, choices: Iterable[str], what: str) -> str:
    """Return `value` if it is one of `choices`; otherwise a ValueError that lists them and names the nearest."""
    choices = list(choices)
    if value in choices:
        return value
    near = difflib.get_close_matches(value, choices, 1, 0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise ValueError(f"unknown {what} '{value}'{hint} (choices: {', '.join(choices)})")


def describe(docstring: str | None) -> dict[str, str]:
    """The `name: text` lines below `Args:` of a docstring; continuation lines are indented further.

    >>> describe("Do it.\\n\\n    Args:\\n        steps: how many.\\n")
    {'steps': 'how many.'}
    """
    block = re.search(r"Args:\n(.*?)(?:\n\s*\n|\Z)", inspect.cleandoc(docstring or ""), re.S)
    found: dict[str, str] = {}
    name = ""
    for line in block.group(1).splitlines() if block else ():
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name, found[start[1]] = start[1], start[2].strip()
        elif name:
            found[name] += " " + line.strip()
    return found


def keys_of(builder: Callable[..., Any]) -> list[Key]:
    """The config keys of a function or a keyword-only dataclass: its keyword-only parameters with a default."""
    is_class = inspect.isclass(builder)
    hints = get_type_hints(
        builder if is_dataclass(builder) else builder.__init__ if is_class else builder,
        include_extras=True,
    )
    texts = describe(builder.__doc__)
    return [
        Key(p.name, hints.get(p.name, str), p.default, texts.get(p.name, ""))
        for p in inspect.signature(builder).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.default is not p.empty
    ]


class Registry:
    """The builders of one kind, in the order of their names.

    Args:
        kind: what an entry is called in messages, e.g. "attack".
        package: the package whose modules register themselves; imported when the registry is first read.
    """

    def __init__(self, kind: str, package: str):
        self.kind, self.package = kind, package
        self._builders: dict[str, Callable[..., Any]] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[F], F]:
        """Decorator: enter a builder under `name`."""

        def enter(builder: F) -> F:
            assert name not in self._builders, f"{self.kind} '{name}' is registered twice"
            self._builders[name] = builder
            return builder

        return enter

    def names(self) -> list[str]:
        if not self._loaded:
            package = importlib.import_module(self.package)
            for module in pkgutil.walk_packages(package.__path__, f"{self.package}."):
                importlib.import_module(module.name)
            self._loaded = True
        return sorted(self._builders)

    def __contains__(self, name: str) -> bool:
        return name in self.names()

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self._builders[choose(name, self.names(), self.kind)]

    def summary(self, name: str) -> str:
        """The first sentence of the builder's docstring."""
        return inspect.cleandoc(self[name].__doc__ or "").split("\n\n")[0].replace("\n", " ")

    def keys(self, name: str) -> list[Key]:
        """The config keys of one builder."""
        return keys_of(self[name])

    @property
    def Name(self) -> Any:  # noqa: N802 - it is a type
        """The type of a config value that names an entry; a wrong one lists the choices."""
        return Annotated[str, AfterValidator(lambda value: choose(value, self.names(), self.kind))]


DATASETS = Registry("data source", "src.datasets")
FRONTENDS = Registry("front end", "src.stages")
MODELS = Registry("model", "src.models")
DEFENSES = Registry("defense", "src.defenses")
ATTACKS = Registry("attack", "src.attacks")
INVERSIONS = Registry("inversion", "src.inversion")
METHODS = Registry("training method", "src.training.methods")
