"""The pages are true: their commands name scripts, options, config files, sections, keys and names that exist, their
links lead somewhere, and the Python example runs."""

from __future__ import annotations

import ast
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from src import config
from src.registry import DEFENSES, MODELS
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "experiments/subsets/README.md", *sorted((ROOT / "docs").glob("*.md"))]
STUDIES = sorted((ROOT / "experiments").glob("*.ini"))


def prose(path: Path) -> str:
    """A page without its blocks of Python."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)


def commands(path: Path) -> list[str]:
    """Every command and every `--set ...` in backticks, in an indented block or in the comments of a config file."""
    if path.suffix == ".ini":
        lines = re.sub(r" \\\n#\s*", " ", path.read_text(encoding="utf-8")).splitlines()
        candidates = [line.removeprefix("#").strip() for line in lines if line.startswith("#   ")]
    else:
        blocks = [line.strip() for line in prose(path).splitlines() if line.startswith("    ")]
        candidates = [*blocks, *(" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(path)))]
    parts = [part.strip() for candidate in candidates for part in re.split(r"&&|\|", re.sub(r"\s+#.*", "", candidate))]
    parts = [re.sub("^ARGS=", "make study ARGS=", re.sub("^--set ", "python attack.py --set ", part)) for part in parts]
    return [part for part in parts if re.match(r"(python|make|torchrun)\s+(?!-m)", part) and "SECTION" not in part]


COMMANDS = [(path.relative_to(ROOT), command) for path in [*PAGES, *STUDIES] for command in commands(path)]


def options_of(script: str) -> set[str]:
    """The command-line options of a script: the keywords of its call of `cli.run`."""
    calls = [node for node in ast.walk(ast.parse((ROOT / script).read_text())) if isinstance(node, ast.Call)]
    (run,) = [call for call in calls if ast.unparse(call.func) == "cli.run"]
    return {"--config", "--set", *(f"--{(keyword.arg or '').replace('_', '-')}" for keyword in run.keywords)}


def test_pages_have_commands() -> None:
    names = {str(path) for path, _ in COMMANDS}
    assert names >= {"README.md", "docs/results.md", "experiments/keywords.ini", "experiments/certified_keywords.ini"}
    assert len(COMMANDS) > 25


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[f"{path}: {command}" for path, command in COMMANDS])
def test_command(path: Path, command: str) -> None:
    program, *words = shlex.split(re.sub(r"\s*\(.*?\)$", "", command))
    settings_file, overrides, targets = "config.ini", [], []
    if program == "make":
        variables = dict(word.split("=", 1) for word in words if "=" in word)
        targets = [word for word in words if "=" not in word]
        rules = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
        assert set(targets) <= rules, f"the Makefile has no such target (choices: {sorted(rules)})"
        assert set(variables) <= {"CONFIG", "ARGS", "PYTHON"}
        settings_file = variables.get("CONFIG", settings_file)
        words = shlex.split(variables.get("ARGS", ""))
    else:
        script = next(word for word in words if word.endswith(".py"))
        assert (ROOT / script).is_file()
        words = words[words.index(script) + 1 :]
        options = options_of(script)
        assert {word for word in words if word.startswith("--")} <= options, f"{script} has {sorted(options)}"
    for option, value in pairwise(words):
        if option == "--config":
            settings_file = value
        if option in ("--model", "--judge"):
            model, *defenses = value.split("+")
            assert model.startswith(tuple(MODELS.names())), value
            assert set(defenses) <= set(DEFENSES.names())
        if option == "--set":
            overrides.append(value.replace("=NAME", "=griffin_lim") if value.startswith("INVERSION") else value)
    if settings_file == "mine.ini":  # the reader's own
        settings_file = "config.ini"
    assert config.load(ROOT / settings_file, overrides)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", prose(path)):
        assert target.startswith("http") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_quoted_keys_exist(path: Path) -> None:
    """Every `SECTION.key` and `SECTION.key=value`, and every file."""
    for quoted in re.findall(r"`(?:--set )?((?!SECTION)[A-Z]{4,}(?:\.\w+)*\.[a-z_]+)(?: ?=[^`]*)?`", prose(path)):
        section, _, key = quoted.rpartition(".")
        assert key in {known.name for known in config.keys_of_section(section)}, quoted
    for path_of_file in re.findall(r"`((?:src|tests|experiments|docs|benchmarks)/[\w./]+)`", prose(path)):
        assert (ROOT / path_of_file).exists(), path_of_file


def test_config_of_your_data_is_valid(tmp_path: Path) -> None:
    block = re.search(r"(?:^    (?:\[DATA|\w+ = ).*\n)+", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert block
    path = tmp_path / "mine.ini"
    path.write_text(re.sub("^    ", "", block[0], flags=re.M))
    assert config.load(path).data.source == "folder"
