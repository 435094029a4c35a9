"""The pages are true: their commands name scripts, options, config files, sections, keys and names that exist, their
links lead somewhere, and the Python example runs."""

from __future__ import annotations

import ast
import re
import shlex
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from src import config
from src.datasets import store
from src.datasets.prepare import DataSettings, prepare
from src.random_streams import RandomStreams
from src.registry import ATTACKS, DATASETS, DEFENSES, MODELS
from src.threat import ThreatModel
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
    parts = [re.sub(r"^EARSHOT_THREADS=\d+ ", "", part) for part in parts]
    parts = [re.sub("^ARGS=", "make study ARGS=", re.sub("^--set ", "python attack.py --set ", part)) for part in parts]
    return [part for part in parts if re.match(r"(python|make|torchrun)\s+(?!-m)", part) and "SECTION" not in part]


COMMANDS = [(path.relative_to(ROOT), command) for path in [*PAGES, *STUDIES] for command in commands(path)]


def options_of(script: str) -> set[str]:
    """The command-line options of a script: the keywords of its call of `cli.run`, or what it adds to a parser."""
    calls = [node for node in ast.walk(ast.parse((ROOT / script).read_text())) if isinstance(node, ast.Call)]
    added = {ast.literal_eval(call.args[0]) for call in calls if ast.unparse(call.func) == "parser.add_argument"}
    if "cli.run" not in map(ast.unparse, (call.func for call in calls)):
        return {option for option in added if option.startswith("--")}
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


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "experiments/subsets/README.md"])
def test_the_accuracy_of_the_default_model_has_one_command(page: str) -> None:
    command = 'make study CONFIG=experiments/keywords.ini ARGS="--set TRAINING.noise_dir=data/raw/noise"'
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert f"`EARSHOT_THREADS=1 {command}`" in text


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


def registered_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Execute the Python blocks of docs/extending.md; what they register is forgotten after the test."""
    for registry in (ATTACKS, DATASETS):
        registry.names()
        monkeypatch.setattr(registry, "_builders", dict(registry._builders))
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/extending.md").read_text(), re.S | re.M)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "docs/extending.md", "exec", dont_inherit=True), {"__name__": "extending"})


def test_the_attack_of_the_page_reaches_the_corner_of_every_ball(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a linear model the best perturbation is known: eps of the example in the direction of the weights' signs."""
    registered_blocks(monkeypatch)
    weights = torch.tensor([[1.0, -2.0, 0.5], [-1.0, 1.0, 3.0]])
    x = torch.tensor([[0.1, -0.2, 0.0], [0.2, 0.1, -0.1], [0.0, 0.3, 0.2]])
    y = (x @ weights.T).argmax(1)
    eps = torch.tensor([0.01, 0.05, 0.2])
    keywords = {"rng": RandomStreams(0, "abc", "my_attack"), "targeted": False, "steps": 20}
    x_adv = ATTACKS["my_attack"](lambda x: x @ weights.T, x, y, ThreatModel("linf", eps), **keywords)
    torch.testing.assert_close(x_adv, x + eps[:, None] * (weights[1 - y] - weights[y]).sign())
    assert [(key.name, key.description) for key in ATTACKS.keys("my_attack")] == [
        ("loss", "objective of the steps."),
        ("steps", "gradient steps."),
    ]


def test_the_corpus_of_the_page_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered_blocks(monkeypatch)
    for speaker in "abcdefghij":
        (tmp_path / "corpus" / speaker).mkdir(parents=True)
        for word in ("no", "yes", "up"):
            sound = np.random.default_rng(ord(speaker)).uniform(-0.5, 0.5, 1600)
            soundfile.write(tmp_path / "corpus" / speaker / f"{word}_0.wav", sound, 16000)
    settings = DataSettings(source="my_corpus", data_dir=tmp_path / "store", seconds=0.1, include_dirs=("yes", "no"))
    prepare(settings, {"source_dir": tmp_path / "corpus"})
    splits = [store.load(tmp_path / "store", split) for split in store.SPLITS]
    assert all(clips.classes == ("yes", "no") for clips in splits)
    assert sorted(name for clips in splits for name in clips.ids) == sorted(
        f"{speaker}/{word}_0.wav" for speaker in "abcdefghij" for word in ("no", "yes")
    )
    speakers = [set(clips.speakers) for clips in splits]
    assert not any(a & b for a, b in combinations(speakers, 2))


def test_config_of_your_data_is_valid(tmp_path: Path) -> None:
    block = re.search(r"(?:^    (?:\[DATA|\w+ = ).*\n)+", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert block
    path = tmp_path / "mine.ini"
    path.write_text(re.sub("^    ", "", block[0], flags=re.M))
    assert config.load(path).data.source == "folder"
