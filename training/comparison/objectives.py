"""The same model, data and steps with every objective: what is run, and the table of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..reports.reported import REPORTED, TWO_STAGES, Reported
from ..reports.reported import table as markdown


COLUMNS = [reported for reported in REPORTED if reported.column is not None]


@dataclass
class Arm:
    """
    A row of the table: overrides of the base configuration. Where it is there to judge a `system` of the field, its
    differences from the arm `control` are found as well.
    """

    title: str
    overrides: list[str] = field(default_factory=list)
    system: str | None = None
    control: str | None = None


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


def values_of(run: dict[str, Any]) -> dict[str, float]:
    """What is reported of an `evaluation.json`, flat, by key."""
    found = {reported.key: reported.of(run) for reported in REPORTED if "." not in reported.key}
    return {key: value for key, value in found.items() if value is not None}


def table(arms: dict[str, dict[str, Any]]) -> str:
    """
    Mean ± standard deviation (n - 1) over the runs of each arm; the best mean of a column is bold; a
    column without values is left out.

    Args:
        arms: as in `objectives.json`: for each arm its `title`, and its `runs`, each with [`values_of`] it; or
            a `summary`, with mean and spread of each, where single runs were not kept.
    """
    best = {}
    columns = [column for column in COLUMNS if any(_mean_and_spread(arm, column) for arm in arms.values())]
    for column in columns:
        means = [column.text(found[0]) for arm in arms.values() if (found := _mean_and_spread(arm, column))]
        if means and column.better is not None:
            best[column.name] = (max if column.better == "high" else min)(means, key=float)

    def cell(arm: dict[str, Any], column: Reported) -> str:
        found = _mean_and_spread(arm, column)
        if found is None:
            return ""
        text, mean = column.text(*found), column.text(found[0])
        return text.replace(mean, f"**{mean}**", 1) if best.get(column.name) == mean else text

    rows = [[arm["title"], *(cell(arm, column) for column in columns)] for arm in arms.values()]
    return markdown(["", *(column.column for column in columns)], rows)


def samples(arms: dict[str, dict[str, Any]]) -> str:
    """
    Distance, precision, recall and legible share of what each arm draws, from nothing and from drawn features; arms as
    there.
    """
    shown = {
        "distance": "frechet_distance",
        "precision": "precision",
        "recall": "recall",
        "a classifier is sure of": "legible_share",
    }
    by_key, rows = {reported.key: reported for reported in REPORTED}, []
    for arm in arms.values():
        for prefix, kind in ({"": "from nothing"} | TWO_STAGES).items():
            columns = [by_key[prefix + key] for key in shown.values()]
            found = [_mean_and_spread(arm, column) for column in columns]
            if any(found):
                cells = [column.text(*values) if values else "" for column, values in zip(columns, found, strict=True)]
                rows.append([arm["title"], kind, *cells])
    return markdown(["", "drawn", *shown], rows)


def _mean_and_spread(arm: dict[str, Any], column: Reported) -> tuple[float, float | None] | None:
    """Of a value over the runs of an arm; no spread of one run, and nothing where a run has no such value."""
    if "summary" in arm:
        found = arm["summary"].get(column.key)
        return None if found is None else (found["mean"], found["spread"])
    values = [column.of(run) for run in arm["runs"]]
    if None in values:
        return None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
