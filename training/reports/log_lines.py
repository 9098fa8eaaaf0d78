"""The lines of a run's `log.jsonl`."""

import json
from operator import index
from pathlib import Path


def parse_line(line: str | bytes, path: Path, number: int) -> dict:
    """
    Raises:
        ValueError: line `number` of the log `path` is no JSON object with an integer `step`.
    """
    try:
        row = json.loads(line)
        index(row["step"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(
            f"{path}, line {number}, is damaged: {line[:60]!r}. Remove that line; no other needs it."
        ) from None
    return row


def read_log(path: Path) -> list[dict]:
    """Each line as a dictionary with its `step`; see [`parse_line`] for what is refused."""
    lines = path.read_bytes().splitlines()
    return [parse_line(line, path, number) for number, line in enumerate(lines, start=1)]
