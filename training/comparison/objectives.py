"""The same model, data and steps with every objective: what is run, and the table of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..reports.reported import REPORTED, Reported
from ..reports.reported import table as markdown


COLUMNS = [reported for reported in REPORTED if reported.column is not None]


@dataclass
class Arm:
    """A row of the table: overrides of the base configuration."""

    title: str
    overrides: list[str] = field(default_factory=list)


@dataclass
class Comparison:
    """What to compare: the base configuration lies beside the file; `overrides` hold for every arm."""

    base: str
    overrides: list[str] = field(default_factory=list)
    arms: dict[str, Arm] = field(default_factory=dict)


def load_comparison(path: Path) -> Comparison:
    """
    Raises:
        ValueError: the file is not such a tree.
    """
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Comparison), OmegaConf.load(path)))
    except OmegaConfBaseException as error:
        raise ValueError(f"{path} is not a comparison: {error}") from error


def table(arms: dict[str, dict[str, Any]]) -> str:
    """
    Mean ± standard deviation (n - 1) over the runs of each arm; the best mean of a column is bold.

    Args:
        arms: as in `objectives.json`: for each arm its `title`, and its `runs`, each with the values of [`COLUMNS`].
    """

    def values(name: str, column: Reported) -> list[float | None]:
        return [column.of(run) for run in arms[name]["runs"]]

    def mean(name: str, column: Reported) -> str:
        return column.show([np.mean(values(name, column))]) if column.show(values(name, column)) else ""

    best = {}
    for column in COLUMNS:
        means = [text for name in arms if (text := mean(name, column))]
        if means and column.better is not None:
            best[column.name] = (max if column.better == "high" else min)(means, key=float)

    def cell(name: str, column: Reported) -> str:
        text, first = column.show(values(name, column)), mean(name, column)
        return text.replace(first, f"**{first}**", 1) if first and best.get(column.name) == first else text

    rows = [[arm["title"], *(cell(name, column) for column in COLUMNS)] for name, arm in arms.items()]
    return markdown(["objective", *(column.column for column in COLUMNS)], rows)
