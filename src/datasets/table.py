"""Tables of metadata (CSV, TSV) in the folder or archive of a corpus."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

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
