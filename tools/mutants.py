"""Mutation test: how many seeded faults the tests notice. A sample of places in src is changed one at a time by the
operators of cosmic-ray (pip install cosmic-ray coverage; no requirement of ours), and the tests that execute it run.

    python tools/mutants.py --sample 300 --seed 0 --workers 2 --out data/mutants.csv

Places inside annotations and messages are left out: no test can or should notice them. Every worker changes a copy of
the repository of its own, and forks from a process that has the libraries loaded."""

from __future__ import annotations

import argparse
import ast
import csv
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("commands", "evaluation", "output", "smoothing", "victims")
TESTS = (
    "accuracy adaptive api architecture attacks_universal checkpoint commands_attack commands_certify "
    "commands_sanity config crafted defenses docs evaluation figures frozen_convolution golden judge perception "
    "planted_test registry results sanity_checks scripts smoothed_attacks smoothing training training_methods "
    "true_lengths victim wiring wiring_attack wiring_stores"
)
"""The test files that cover these rooms, tests/test_NAME.py."""
ENOUGH = 90.0
"""Seconds of covering tests that a mutant has to survive, the quickest first."""
READERS = ("tests/test_architecture.py", "tests/test_config.py::test_generated_docs_are_in_step")
"""Tests that read the source, or the signatures, instead of executing lines: they run for every mutant, last."""
LIBRARIES = (
    "torch numpy scipy.stats scipy.signal librosa soundfile soxr matplotlib.pyplot pydantic hypothesis pesq pystoi av "
    "torch.fx.experimental.optimization tqdm"
)
SECONDS = 300
"""Longer than this the mutant hangs, which counts as noticed."""

Place = tuple[str, int, int]
"""File, line and column."""


def unnoticeable(source: str) -> list[tuple[int, int]]:
    """First and last line and column, as (line, column) pairs packed into ranges, of annotations and messages."""
    ranges = []
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.FunctionDef):
            parts = [
                node.returns,
                *(a.annotation for a in [*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs]),
            ]
        elif isinstance(node, ast.AnnAssign):
            parts = [node.annotation]
        elif isinstance(node, ast.JoinedStr):
            parts = [node]
        elif isinstance(node, ast.ClassDef | ast.ImportFrom | ast.Import):
            parts = []
        for part in parts:
            if part is not None:
                ranges.append(((part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)))
    return ranges  # type: ignore[return-value]


def places(path: Path) -> dict[Place, list[tuple[str, int]]]:
    """Every place of a file that some operator changes, with (operator, occurrence) of each."""
    from cosmic_ray.ast import get_ast_from_path
    from cosmic_ray.mutating import Visitor  # noqa: F401 - the same package walks the tree
    from cosmic_ray.plugins import get_operator, operator_names

    skip = unnoticeable(path.read_text())
    tree = get_ast_from_path(path)
    mutations: dict[Place, list[tuple[str, int]]] = defaultdict(list)

    def walk(node: object) -> list[object]:
        return [node, *(n for child in getattr(node, "children", ()) for n in walk(child))]

    nodes = walk(tree)
    for name in operator_names():
        if "Variable" in name:
            continue
        operator, occurrence = get_operator(name)(), 0
        for node in nodes:
            for start, _ in operator.mutation_positions(node):
                if not any(first <= start <= last for first, last in skip):
                    mutations[str(path.relative_to(ROOT)), *start].append((name, occurrence))
                occurrence += 1
    return mutations


class Recorder:
    """A plugin of pytest that notes which tests execute which lines, and how long each takes.

    Args:
        out: JSON file of {"seconds": {test: s}, "lines": {file: {line: [tests]}}}.
    """

    def __init__(self, out: Path):
        import coverage

        self.out, self.seconds = out, defaultdict[str, float](float)
        self.coverage = coverage.Coverage(data_file=None, include=[f"{ROOT}/src/{room}/*" for room in ROOMS])
        self.coverage.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.coverage.stop()  # a test may have taken the trace function away
        self.coverage.start()
        self.coverage.switch_context(nodeid.split("[")[0])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid.split("[")[0]] += report.duration

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        data = self.coverage.get_data()
        lines = {
            str(Path(file).relative_to(ROOT)): {
                str(line): sorted(filter(None, tests)) for line, tests in data.contexts_by_lineno(file).items()
            }
            for file in data.measured_files()
        }
        self.out.write_text(json.dumps({"seconds": self.seconds, "lines": lines}))


def record(out: Path, names: list[str]) -> None:
    """Run test files once under the recorder."""
    files = [f"tests/test_{name}.py" for name in names]
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    with (out.with_suffix(".log")).open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        os._exit(int(pytest.main(["-q", "-p", "no:cacheprovider", *files], plugins=[Recorder(out)])))


class Coverage:
    """Which tests execute which line, and how long each takes.

    Args:
        folder: of what was recorded; it is recorded anew where nothing is there.
        workers: processes that record.
    """

    def __init__(self, folder: Path, workers: int):
        parts = [folder / f"mutants.coverage{i}.json" for i in range(workers)]
        missing = [i for i, part in enumerate(parts) if not part.exists()]
        names = TESTS.split()
        processes = [multiprocessing.Process(target=record, args=(parts[i], names[i::workers])) for i in missing]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            if process.exitcode:
                sys.exit(f"the tests fail without any mutant: see {folder}/mutants.coverage*.log")
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for part in parts:
            content = json.loads(part.read_text())
            self.seconds |= content["seconds"]
            for file, lines in content["lines"].items():
                for line, tests in lines.items():
                    self.lines[file][int(line)] |= set(tests)

    def tests(self, file: str, line: int) -> list[str]:
        """Some of the tests that execute the line, the quickest first; for a line that runs at import (a decorator, a
        constant) those of the next lines that a test executes, or of the whole file."""
        lines = self.lines[file]
        near = next((lines[n] for n in range(line, line + 12) if lines.get(n)), None)
        nodes = near or {node for tests in lines.values() for node in tests}
        chosen, total = list[str](), 0.0
        for node in sorted(nodes, key=self.seconds.__getitem__):
            total += self.seconds[node]
            chosen.append(node)
            if total > ENOUGH:
                break
        return [*chosen, *READERS]


def attempt(copy: Path, file: str, source: str, tests: list[str]) -> str:
    """Run the tests in a forked process on the copy with this source: killed, survived or hung."""
    (copy / file).write_text(source)
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests])
        os._exit(int(code))
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hung"


def work(jobs: list[tuple[str, int, int, str, int]], out: Path, coverage: Coverage) -> None:
    """Try the mutants one after the other and append a row each."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    for library in LIBRARIES.split():
        importlib.import_module(library)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "repo"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", "data", "mutants.csv"))
        (copy / "data").mkdir()
        (copy / ".venv").symlink_to((ROOT / ".venv").resolve())
        for file, line, column, name, occurrence in jobs:
            original = (ROOT / file).read_text()
            mutant = mutate_code(original, get_operator(name)(), occurrence)
            start = time.monotonic()
            tests = coverage.tests(file, line)
            if not mutant or mutant == original:
                outcome = "no change"
            else:
                outcome = attempt(copy, file, mutant, tests) if tests else "survived"
            (copy / file).write_text(original)
            before, after = original.splitlines(), (mutant or "").splitlines()
            changed = next((a.strip() for b, a in zip(before, after, strict=False) if a != b), "")
            row = [
                file,
                line,
                column,
                name,
                outcome,
                f"{time.monotonic() - start:.1f}",
                before[line - 1].strip(),
                changed,
            ]
            with out.open("a", newline="") as rows:
                csv.writer(rows).writerow(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "data/mutants.csv")
    args = parser.parse_args()
    os.environ.update(EARSHOT_THREADS="1", OMP_NUM_THREADS="1")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    coverage = Coverage(args.out.parent.resolve(), args.workers)
    files = sorted(path for name in ROOMS for path in (ROOT / "src" / name).rglob("*.py"))
    every: dict[Place, list[tuple[str, int]]] = {}
    for path in files:
        every.update(places(path))
    rng = random.Random(args.seed)
    chosen = rng.sample(sorted(every), min(args.sample, len(every)))
    jobs = [(*place, *rng.choice(every[place])) for place in chosen]
    done = {tuple(row[:4]) for row in csv.reader(args.out.open())} if args.out.exists() else set()
    jobs = [job for job in jobs if (job[0], str(job[1]), str(job[2]), job[3]) not in done]
    print(f"{len(every)} places in {len(files)} files, {len(chosen)} sampled, {len(jobs)} to try", flush=True)
    processes = [
        multiprocessing.Process(target=work, args=(jobs[i :: args.workers], args.out, coverage))
        for i in range(args.workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    outcomes = [row[4] for row in csv.reader(args.out.open())]
    counted = [outcome for outcome in outcomes if outcome != "no change"]
    noticed = sum(outcome != "survived" for outcome in counted)
    print(f"{noticed} of {len(counted)} mutants noticed ({noticed / len(counted):.1%})")


if __name__ == "__main__":
    main()
