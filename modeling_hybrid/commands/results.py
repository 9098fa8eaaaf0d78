"""Results: rows on stdout or in a file, and files that are written whole or not at all."""

import csv
import json
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer


class Format(StrEnum):
    csv = "csv"
    jsonl = "jsonl"


RowsOption = Annotated[Path | None, typer.Option("--output", "-o", help="File of the rows; stdout if unset.")]
FormatOption = Annotated[Format, typer.Option(help="Of the rows.")]


class Rows:
    """One row after the other; a CSV has its header however few there are."""

    def __init__(self, stream: TextIO, kind: Format, columns: Sequence[str]):
        self.stream = stream
        self.kind = kind
        self.columns = columns
        self.writer = csv.writer(stream, lineterminator="\n")
        if kind == Format.csv:
            self.writer.writerow(columns)

    def write(self, *values: Any) -> None:
        """One value for each column."""
        rounded = (round(value, 6) if isinstance(value, float) else value for value in values)
        row = dict(zip(self.columns, rounded, strict=True))
        if self.kind == Format.jsonl:
            self.stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        else:
            self.writer.writerow(row.values())


@contextmanager
def rows_to(output: Path | None, kind: Format, columns: Sequence[str]) -> Generator[Rows]:
    """Rows to a file, or to stdout where there is none."""
    if output is None:
        yield Rows(sys.stdout, kind, columns)
        return
    with written_whole(output) as partial, open(partial, "w", encoding="utf-8", newline="") as stream:
        yield Rows(stream, kind, columns)


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """
    The object in a file that a verb wrote.

    Raises:
        ValueError: the file is damaged: it holds no object, or lacks one of `keys`.
    """
    try:
        found = dict(json.loads(path.read_bytes()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); expected a JSON object. Make it anew.") from error
    for key in keys:
        if key not in found:
            raise ValueError(f"{path} is damaged: it has no {key!r}. Make it anew.")
    return found


@contextmanager
def written_whole(path: Path) -> Generator[Path]:
    """A path to write to, which becomes `path` at the end, and is removed after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """
    Before work that is written to `path` in the end; makes nothing.

    Raises:
        OSError: the nearest folder that is there is none, or may not be changed.
    """
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(f"{path} cannot be written: {folder} is no folder, or may not be changed.")
