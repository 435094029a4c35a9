"""Who may import whom, read from the source as one ordered list of layers; no pickle, no config inside src."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"
LAYERS = (
    {"commands"},
    {"cli"},
    {"config_text"},
    {"config"},
    {"config_sections"},
    {"api"},
    {"training", "evaluation", "output"},
    {"attacks", "defenses", "models", "speaker", "smoothing", "datasets"},
    {"inversion"},
    {"stages"},
    {"victims"},
    {"budget"},
    {"threat"},
    {"variants"},
    {"registry", "losses", "perception", "random_streams", "distributed"},
    {"files"},
)
"""Rooms from the top down; each may import from the layers below its own, and from itself."""


def modules() -> list[Path]:
    return sorted(path for path in SRC.rglob("*.py") if path != SRC / "__init__.py")


def room(path: Path) -> str:
    """The name below src: a package or a module."""
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Names below src that a file imports."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "src":
                rooms |= {alias.name for alias in node.names}
            elif node.module.startswith("src."):
                rooms.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("src.")}
    return rooms


def below(name: str) -> set[str]:
    """The rooms that `name` may import from."""
    level = next(i for i, layer in enumerate(LAYERS) if name in layer)
    return set().union(*LAYERS[level + 1 :])


def test_every_room_has_one_place_and_every_place_is_a_room() -> None:
    places = [name for layer in LAYERS for name in layer]
    assert len(places) == len(set(places))
    assert set(places) == {room(path) for path in modules()}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SRC)))
def test_layers(path: Path) -> None:
    name = room(path)
    assert imports(path) - {name} <= below(name), f"src/{name} may import from {sorted(below(name))} only"


def test_every_layer_check_can_fail(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("from src.config import load\nimport src.output.results\nfrom src import training\n")
    assert imports(bad) == {"config", "output", "training"}
    assert not imports(bad) <= below("attacks")
    assert below("evaluation") & {"training", "output", "config"} == set()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SRC)))
def test_nothing_from_outside_is_executed(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "pickle.load", "pickle.loads", "joblib.load"}, (
                f"{path.name}: {called}"
            )
            if called == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            if called == "np.load":
                assert any(k.arg == "allow_pickle" and ast.unparse(k.value) == "False" for k in node.keywords)
            if called.endswith(".extractall") or called.endswith(".extract"):
                assert any(k.arg == "filter" for k in node.keywords)


MUTABLE = {"Best", "_State"}
"""Data classes whose attributes are updated by design."""


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SRC)))
def test_data_classes_are_frozen(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and node.name not in MUTABLE:
            for decorator in node.decorator_list:
                if ast.unparse(decorator).startswith("dataclass"):
                    assert isinstance(decorator, ast.Call), node.name
                    frozen = {k.arg: ast.unparse(k.value) for k in decorator.keywords}.get("frozen")
                    assert frozen == "True", f"{path.name}: {node.name}"
