"""Who may import whom, read from the source; and no pickle, no config inside src."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"
FIRST = {"registry", "threat", "losses", "victim", "smoothing", "perception", "streams", "convolution"}
SECOND = {
    "stages", "models", "defenses", "attacks", "generators", "inversion", "datasets", "adaptive", "speaker",
    "distributed", "augment",
}  # fmt: skip
THIRD = {"checks", "self_test", "empirical", "training", "evaluation", "checkpoint", "classification"}
PLAIN = {"results", "figures", "report"}
TOP = {"config", "shell"}


def modules() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


def room(path: Path) -> str:
    """The name below src: a package or a module."""
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Names below src that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "src":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("src."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("src.")}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SRC)))
def test_layers(path: Path) -> None:
    own = room(path)
    if own == "__init__":
        return
    allowed = {
        **{name: {"streams", "registry", "convolution"} for name in FIRST},
        **{name: FIRST | {"stages"} for name in SECOND},
        **{name: FIRST | SECOND | {"checkpoint", "classification"} for name in THIRD},
        "results": set(),
        "figures": {"results"},
        "report": {"results"},
        "config": FIRST | SECOND | THIRD | PLAIN,
        "shell": {"config"},
        "studies": (FIRST | SECOND | THIRD | PLAIN | TOP) - {"shell"},
    }
    assert own in allowed, f"src/{own} has no place in the layers: add it to the table here and in the design"
    assert imports(path) - {own} <= allowed[own], f"{path.name} may import from {sorted(allowed[own])} only"


def test_every_layer_check_can_fail(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("from src.config import load\nimport src.results\nfrom src import training\n")
    assert imports(bad) == {"config", "results", "training"}


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
