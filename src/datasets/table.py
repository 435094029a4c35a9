"""Metadata in the folder or archive of a corpus: tables (CSV, TSV), JSON, and the files that they list."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

from src.datasets.tree import Archive, Folder


def table(tree: Folder | Archive, name: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table with a header line, as column -> text without surrounding blanks; other columns are dropped.

    Args:
        name: of the file inside the corpus; .tsv is separated by tabs, anything else by commas.
        columns: those that are needed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a text in UTF-8, a missing column, or a row that is too short.
    """
    where = f"{tree.path}: {name}"
    try:
        text = tree.content(name).decode("utf-8-sig")
        delimiter = "\t" if name.lower().endswith(".tsv") else ","
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
        available = [column.strip() for column in reader.fieldnames or ()]
        reader.fieldnames = available
        missing = [column for column in columns if column not in available]
        if missing:
            raise ValueError(f"{where}: no column '{missing[0]}' (columns: {', '.join(available) or 'none'})")
        rows = []
        for row in reader:
            short = [column for column in columns if row[column] is None]
            if short:
                raise ValueError(f"{where}: line {reader.line_num} has no '{short[0]}'")
            rows.append({column: row[column].strip() for column in columns})
    except UnicodeDecodeError:
        raise ValueError(f"{where}: not a text file in UTF-8") from None
    except csv.Error as error:
        raise ValueError(f"{where}: not valid CSV after line {reader.line_num} ({error})") from None
    return rows


def json_object(tree: Folder | Archive, name: str) -> dict[str, Any]:
    """The content of a JSON file that holds an object.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or something else than an object.
    """
    try:
        content = json.loads(tree.content(name).decode("utf-8-sig"))
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
        raise ValueError(f"{tree.path}: {name}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{tree.path}: {name}: not a JSON object")
    return content


def locate(tree: Folder | Archive, name: str) -> str | None:
    """The path inside the corpus of a file known by the end of its path, the shortest one: an archive may hold the
    corpus in a folder of its own. None where there is no such file."""
    matches = [file for file in tree.names if file == name or file.endswith(f"/{name}")]
    return min(matches, key=lambda file: (len(file), file)) if matches else None


def beside(table_file: str, up: int) -> str:
    """The folder `up` levels above a file, as a prefix of the paths in it.

    >>> beside("ESC-50-master/meta/esc50.csv", 2), beside("meta/esc50.csv", 2)
    ('ESC-50-master/', '')
    """
    folder = PurePosixPath(table_file).parents[up - 1].as_posix()
    return "" if folder == "." else f"{folder}/"


def check_present(tree: Folder | Archive, files: Iterable[str], listed_in: str) -> None:
    """Raises ValueError where a file of the list is not in the corpus."""
    names = set(tree.names)
    missing = [file for file in files if file not in names]
    if missing:
        more = f" (nor are {len(missing) - 1} more of its files)" if len(missing) > 1 else ""
        raise ValueError(f"{tree.path}: {listed_in} lists {missing[0]}, which is not there{more}")
