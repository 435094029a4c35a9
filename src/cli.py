"""The command line that all scripts share, with one clear line instead of a traceback for a user's mistake."""

from __future__ import annotations

import argparse
import ast
import contextlib
import ctypes
import inspect
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from src import config, config_sections, config_text


def run(main: Callable[..., Any], **options: dict[str, Any]) -> None:
    """Parse the command line, load the config and call `main(config, args)`.

    Args:
        main: the script's function; its docstring is the description, and the keys that it reads are printed by --help.
        options: extra command-line options: name -> argparse keywords.

    Exit codes: 0 done; 2 a mistake in the config, a file or the command line; 130 interrupted.
    """
    parser = argparse.ArgumentParser(
        description=main.__doc__,
        epilog=config_text.help_text(sections_read(main)) if {"-h", "--help"} & set(sys.argv) else None,
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
    try:
        set_threads(os.environ.get("EARSHOT_THREADS"))
        main(config.load(args.config, args.set), args)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command resumes the run", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        if "EARSHOT_TRACEBACK" in os.environ:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def set_threads(text: str | None) -> None:
    """Set the number of CPU threads to the value of EARSHOT_THREADS; None leaves it to PyTorch.

    Raises:
        ValueError: not a number of threads.
    """
    if text is None:
        return
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError(f"EARSHOT_THREADS = {text}: write a number of threads, 1 or more")
    torch.set_num_threads(int(text))


def sections_read(main: Callable[..., Any]) -> dict[str, bool]:
    """The config sections that a function reads, itself or through the functions and classes of its script, of the
    scripts beside it and of src.commands that it names: every `config.section` and `config.component("SECTION", ...)`
    in their source.

    Returns:
        section -> whether its sub-sections [SECTION.<name>] are read too.
    """
    names: set[str] = set()
    with_components: set[str] = set()
    queue: list[Any] = [main]
    beside = {path.stem for path in Path(inspect.getfile(main)).parent.glob("*.py")}
    for item in queue:  # it grows on the way
        namespace = item.__globals__ if inspect.isfunction(item) else vars(sys.modules[item.__module__])
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(item)))):
            match node:
                case ast.Attribute(value=ast.Name(id="config") | ast.Attribute(attr="config"), attr=attribute):
                    names.add(attribute.upper())
                case ast.Call(func=ast.Attribute(attr="component"), args=[ast.Constant(value=section), *_]):
                    with_components.add(str(section))
            target = namespace.get(node.id) if isinstance(node, ast.Name) else None
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                target = getattr(namespace.get(node.value.id), node.attr, None)
            in_scope = inspect.isfunction(target) or inspect.isclass(target)
            if not in_scope or target in queue:
                continue
            module = target.__module__
            if module in (main.__module__, *beside) or module.startswith("src.commands"):
                queue.append(target)
    return {s: s in with_components for s in config_sections.SECTIONS if s in names | with_components}


def keep_memory() -> None:
    """Let glibc keep the memory of large tensors for the next ones. By default it returns blocks above 32 MB to the
    system, and the page faults of the next layer take up to a quarter of the time of a training step on a CPU."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(trim_threshold, 1 << 30)
        mallopt(mmap_threshold, 1 << 28)
