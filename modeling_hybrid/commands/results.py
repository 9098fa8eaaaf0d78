"""Rows of results, on stdout or in a file, which is written whole or not at all."""

import csv
import json
import os
import sys
from collections.abc import Iterator
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
    """One row after the other; its keys are the columns, the same for all."""

    def __init__(self, stream: TextIO, kind: Format):
        self.stream = stream
        self.writer = None
        self.kind = kind

    def write(self, row: dict[str, Any]) -> None:
        row = {key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()}
        if self.kind == Format.jsonl:
            self.stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            return
        if self.writer is None:
            self.writer = csv.DictWriter(self.stream, list(row), lineterminator="\n")
            self.writer.writeheader()
        self.writer.writerow(row)


@contextmanager
def rows_to(output: Path | None, kind: Format) -> Iterator[Rows]:
    """Rows to a file, or to stdout where there is none."""
    if output is None:
        yield Rows(sys.stdout, kind)
        return
    with written_whole(output) as partial, open(partial, "w", encoding="utf-8", newline="") as stream:
        yield Rows(stream, kind)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` at the end, and is removed after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
