"""The table of a comparison: what is reported, mean and spread of each arm, and the paired differences."""

from typing import Any

from ..reports.markdown import code
from ..reports.reported import REPORTED, Reported
from ..reports.reported import table as markdown


def table(comparison: dict[str, Any], titles: dict[str, str], ours: str) -> str:
    """
    Args:
        comparison: as in `comparison.json`.
        titles: of the arms, by name; the columns, in this order.
        ours: the arm whose differences from the others are shown; those whose interval excludes zero are bold.
    """
    arms, versus = comparison["arms"], comparison["hybrid_minus"]
    head = ["", "raw pixels", "untrained encoder", *titles.values()]
    head += [f"{titles[ours]} minus {titles[other]} [95 %]" for other in versus]
    rows = []
    for reported in REPORTED:
        if all(reported.of(run) is None for runs in arms.values() for run in runs):
            continue
        cells = [reported.show([reported.of(arms[ours][0], prefix)]) for prefix in ("pixel_", "random_")]
        cells += [reported.show([reported.of(run, is_control=name != ours) for run in arms[name]]) for name in titles]
        cells += [_difference(reported, found.get(reported.name)) for found in versus.values()]
        rows.append([reported.title, *cells])
    return "\n".join([markdown(head, rows), "", _footnote(comparison, titles)])


def _difference(reported: Reported, difference: dict[str, float] | None) -> str:
    if difference is None:
        return ""
    if difference["low"] is None:
        return f"{difference['mean']:+.{reported.digits}f}"
    mean, low, high = (f"{difference[name]:+.{reported.digits}f}" for name in ("mean", "low", "high"))
    text = f"{mean} [{low}, {high}]"
    return f"**{text}**" if difference["low"] > 0 or difference["high"] < 0 else text


def _footnote(comparison: dict[str, Any], titles: dict[str, str]) -> str:
    """How the values came about: what was equal, how each arm was tuned, and on what."""
    arms = comparison["arms"]
    num_seeds = len(comparison["seeds"])
    steps = ", ".join(f"{title} {comparison['num_steps'][name]}" for name, title in titles.items())
    lines = [
        f"Mean ± standard deviation of {num_seeds} seed(s), on the test split "
        f"({next(iter(arms.values()))[0]['num_images']['test']} images). Differences are paired, with the interval for "
        "other test images and other seeds, or for other seeds alone where a value is no mean over images; bold where "
        "it excludes zero. Few-shot accuracy without a number: `evaluation.num_shots` labels per class, 10 by default.",
        f"Equal {comparison['equal']}: {steps} steps. On {comparison['hardware']}. Command: "
        f"{code(comparison['command'])}.",
    ]
    for name, tuned in comparison["tuning"].items():
        points = len(tuned["points"])
        score = " ".join(f"{weight:+g} {value}" for value, weight in tuned["tuned_by"].items())
        by = f"best of {points} points by {score} (seed 0)" if points > 1 else "not tuned"
        lines.append(f"{titles[name]}: {', '.join(tuned['chosen']) or 'as configured'}; {by}.".capitalize())
    return "\n".join(f"- {line}" for line in lines)
