"""Registries of components by name. A builder's keyword-only parameters with a default are its config keys: their
annotations are the schema, the `Args:` lines of its docstring the help. Keyword-only parameters without a default are
supplied by the program (shapes, random streams), never by the config."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import AfterValidator, AllowInfNan, TypeAdapter, ValidationError

F = TypeVar("F", bound=Callable[..., Any])
Check = Callable[[Mapping[str, Any]], None]
"""Raises ValueError where options contradict each other. It gets all of them, the defaults included."""

# Annotations of ranges; they let a signature state what a value may be.
Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
Finite = Annotated[float, AllowInfNan(False)]
T = TypeVar("T")
Listed = Annotated[tuple[T, ...], MinLen(1)]
"""A list with at least one value; its values are separated by commas in the config."""


@dataclass(frozen=True)
class Key:
    """One config key of a component."""

    name: str
    annotation: Any
    default: Any
    description: str


def choose(value: str, choices: Iterable[str], kind: str) -> str:
    """Return `value` if it is one of `choices`; otherwise raise a ValueError that lists them and the nearest match."""
    choices = list(choices)
    if value in choices:
        return value
    matches = difflib.get_close_matches(value, choices, 1, 0.5)
    hint = f"; did you mean '{matches[0]}'?" if matches else ""
    raise ValueError(f"unknown {kind} '{value}'{hint} (choices: {', '.join(choices)})")


def describe(docstring: str | None) -> dict[str, str]:
    """The `name: text` lines below `Args:` of a docstring; continuation lines are indented further.

    >>> describe("Attack.\\n\\n    Args:\\n        steps: number of steps.\\n")
    {'steps': 'number of steps.'}
    """
    block = re.search(r"Args:\n(.*?)(?:\n\s*\n|\Z)", inspect.cleandoc(docstring or ""), re.S)
    descriptions: dict[str, str] = {}
    name = ""
    for line in block.group(1).splitlines() if block else ():
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name, descriptions[start[1]] = start[1], start[2].strip()
        elif name:
            descriptions[name] += " " + line.strip()
    return descriptions


def keys_of(builder: Callable[..., Any]) -> list[Key]:
    """The config keys of a function or a keyword-only dataclass: its keyword-only parameters with a default."""
    is_class = inspect.isclass(builder)
    hints = get_type_hints(
        builder if is_dataclass(builder) else builder.__init__ if is_class else builder,
        include_extras=True,
    )
    descriptions = describe(builder.__doc__)
    return [
        Key(p.name, hints.get(p.name, str), p.default, descriptions.get(p.name, ""))
        for p in inspect.signature(builder).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.default is not p.empty
    ]


def validate(key: Key, value: object, text: object, *, strict: bool = False) -> Any:
    """`value` as the type of its key.

    Args:
        text: the value as the message shows it.
        strict: convert no text to numbers or truth values.

    Raises:
        ValueError: not of that type, or out of range.
    """
    try:
        return TypeAdapter(key.annotation).validate_python(value, strict=strict)
    except ValidationError as error:
        errors = error.errors()
        # Each type of a union has failed in its own way; of the values of a list the first that fails is named.
        errors = errors if get_origin(key.annotation) in (Union, UnionType) else errors[:1]
        if len(errors) == 1 and errors[0]["type"] == "literal_error":
            choose(str(errors[0]["input"]), [str(c) for c in _choices(key.annotation)], f"value of '{key.name}'")
        messages = [each["msg"].removeprefix("Value error, ") for each in errors]
        message = ", or ".join(dict.fromkeys(message[0].lower() + message[1:] for message in messages))
        raise ValueError(f"{key.name} = {text}: {message}") from None


def validated(keys: Iterable[Key], values: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Values from Python, checked against the schema of their keys; a list may stand for a tuple.

    Args:
        kind: the word for a key in messages, e.g. "key of pgd".

    Raises:
        ValueError: an unknown key, with the nearest match, or a value of another type or out of range.

    >>> validated([Key("steps", Count, 40, "")], {"steps": 3}, "key of pgd")
    {'steps': 3}
    """
    schema = {key.name: key for key in keys}
    checked = {}
    for name, value in values.items():
        key = schema[choose(name, schema, kind)]
        checked[name] = validate(key, tuple(value) if isinstance(value, list) else value, value, strict=True)
    return checked


def _choices(annotation: Any) -> list[Any]:
    """The values of the Literal inside an annotation."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for part in get_args(annotation) for choice in _choices(part) if part is not annotation]


class Registry:
    """The builders of one kind by name.

    Args:
        kind: the word for an entry in messages, e.g. "attack".
        package: its modules register their builders when they are imported, which the first use of the registry does.
    """

    def __init__(self, kind: str, package: str):
        self.kind, self.package = kind, package
        self._builders: dict[str, Callable[..., Any]] = {}
        self._checks: dict[str, Check] = {}
        self._configured: dict[str, Callable[..., Any]] = {}
        self._loaded = False

    def register(
        self, name: str, *, check_options: Check | None = None, configured: Callable[..., Any] | None = None
    ) -> Callable[[F], F]:
        """Decorator that registers a builder under `name`.

        Args:
            check_options: refuses options that are legal one by one but not together, before any work.
            configured: the function whose parameters are the config keys; None for the builder itself.
        """

        def enter(builder: F) -> F:
            assert name not in self._builders, f"{self.kind} '{name}' is registered twice"
            self._builders[name] = builder
            if check_options:
                self._checks[name] = check_options
            if configured:
                self._configured[name] = configured
            return builder

        return enter

    def names(self) -> list[str]:
        """All names in alphabetical order."""
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
        """The first paragraph of the builder's docstring."""
        return inspect.cleandoc(self[name].__doc__ or "").split("\n\n")[0].replace("\n", " ")

    def keys(self, name: str) -> list[Key]:
        """The config keys of one builder."""
        return keys_of(self._configured_by(name))

    def check_options(self, name: str, options: Mapping[str, Any]) -> None:
        """Refuse options of one builder that contradict each other; those not given have their defaults.

        Raises:
            ValueError: says which.
        """
        parameters = inspect.signature(self._configured_by(name)).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        if name in self._checks:
            self._checks[name](defaults | dict(options))

    def _configured_by(self, name: str) -> Callable[..., Any]:
        """The function or class whose keyword-only parameters are the config keys."""
        builder = self[name]
        return self._configured.get(name, builder)

    @property
    def Name(self) -> Any:  # noqa: N802 - it is a type
        """The type of a config value that names an entry; an unknown name is refused with the choices."""
        return Annotated[str, AfterValidator(lambda value: choose(value, self.names(), self.kind))]


DATASETS = Registry("data source", "src.datasets")
FRONTENDS = Registry("front end", "src.stages")
MODELS = Registry("model", "src.models")
DEFENSES = Registry("defense", "src.defenses")
ATTACKS = Registry("attack", "src.attacks")
INVERSIONS = Registry("inversion", "src.inversion")
METHODS = Registry("training method", "src.training.methods")
BACK_ENDS = Registry("back end", "src.speaker")
