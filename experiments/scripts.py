"""The scripts of Earshot as steps of a study."""

from __future__ import annotations

import argparse
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INTERRUPTED = 130


@dataclass(frozen=True)
class Step:
    """One run of a script.

    Attributes:
        overrides: SECTION.key=value, after those of the study.
        flags: further arguments of the script.
    """

    script: str
    overrides: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    def command(self, args: argparse.Namespace) -> list[str]:
        """The script and its arguments, with the config file and the overrides of the study's own `args`."""
        settings = [*args.set, *self.overrides]
        return [self.script, "--config", args.config, *(p for s in settings for p in ("--set", s)), *self.flags]


def call(args: argparse.Namespace, *steps: Step) -> None:
    """Run steps one after the other in this process; the failure of one ends the study with its exit code."""
    for step in steps:
        sys.argv = step.command(args)
        try:
            runpy.run_path(str(ROOT / step.script), run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise


def call_side_by_side(args: argparse.Namespace, runs: Sequence[Sequence[Step]], processes: int) -> None:
    """Several runs that do not need each other, each of steps in order, so many at a time in processes of their own.
    After a failure, which ends the study with its exit code, no further step begins."""
    if processes == 1:
        return call(args, *(step for steps in runs for step in steps))
    failed, running = list[int](), list[subprocess.Popen[bytes]]()

    def run(steps: Sequence[Step]) -> None:
        for step in steps:
            if failed:
                return
            script, *rest = step.command(args)
            process = subprocess.Popen([sys.executable, str(ROOT / script), *rest])
            running.append(process)
            if process.wait():
                failed.append(process.returncode)

    with ThreadPoolExecutor(processes) as pool:
        try:
            list(pool.map(run, runs))
        except KeyboardInterrupt:
            failed.append(INTERRUPTED)
            for process in running:  # one that has ended takes no signal
                process.send_signal(signal.SIGINT)
            raise
    if failed:
        raise SystemExit(failed[0])
