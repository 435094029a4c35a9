"""The command line that all scripts share, with one clear line instead of a traceback for a user's mistake."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from src import config


def run(main: Callable[..., Any], sections: list[str], **options: dict[str, Any]) -> None:
    """Parse the command line, load the config and call `main(config, args)`.

    Args:
        main: the script's function; its docstring is the description.
        sections: the config sections it reads, printed by --help.
        options: extra command-line options: name -> argparse keywords.

    Exit codes: 0 done; 2 a mistake in the config, a file or the command line; 130 interrupted.
    """
    parser = argparse.ArgumentParser(
        description=main.__doc__,
        epilog=config.help_text(sections) if {"-h", "--help"} & set(sys.argv) else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", default="config.ini", metavar="FILE", help="config file (default: config.ini)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.key=value", help="override one key; may be repeated"
    )
    for name, keywords in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **keywords)
    args = parser.parse_args()
    keep_memory()
    if "EARSHOT_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["EARSHOT_THREADS"]))
    try:
        main(config.load(args.config, args.set), args)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command resumes the run", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        if "EARSHOT_TRACEBACK" in os.environ:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def keep_memory() -> None:
    """Let glibc keep the memory of large tensors for the next ones. By default it returns blocks above 32 MB to the
    system, and the page faults of the next layer take up to a quarter of the time of a training step on a CPU."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(trim_threshold, 1 << 30)
        mallopt(mmap_threshold, 1 << 28)
