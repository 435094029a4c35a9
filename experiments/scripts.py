"""The scripts of Earshot as steps of a study."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def call(script: str, args: argparse.Namespace, *overrides: str, flags: tuple[str, ...] = ()) -> None:
    """Run one script of Earshot in this process; its failure ends the study with its exit code.

    Args:
        args: of the study: the config file and its overrides.
        overrides: SECTION.key=value, after those of the study.
        flags: further arguments of the script.
    """
    settings = [*args.set, *overrides]
    sys.argv = [script, "--config", args.config, *(part for setting in settings for part in ("--set", setting)), *flags]
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
