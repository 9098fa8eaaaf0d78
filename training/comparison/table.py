"""The table of a comparison: what is reported, mean and spread of each arm, and the paired differences."""

from typing import Any

from ..reports.markdown import code
from ..reports.reported import REPORTED, Reported
from ..reports.reported import table as markdown
from . import untrained
from .arms import TUNING_SEED
from .tuning import open_ends


def table(comparison: dict[str, Any], titles: dict[str, str], ours: str) -> str:
    """
    Args:
        comparison: as in `comparison.json`.
        titles: of the arms, by name; the columns, in this order.
        ours: the arm whose differences from the others are shown; those whose interval excludes zero are bold.

    Where an arm is not above its own untrained encoder, that comes first.
    """
    arms, versus = comparison["arms"], comparison["hybrid_minus"]
    asked = [
        reported for reported in REPORTED if any(reported.of(run) is not None for runs in arms.values() for run in runs)
    ]
    # What a user would reach for, where it was asked.
    controls = {"pixel_": "raw pixels"}
    if any(reported.of(arms[ours][0], "imagenet_") is not None for reported in asked):
        controls["imagenet_"] = "ImageNet network"
    head = [f"equal {comparison['equal']}", *controls.values(), *titles.values()]
    head += [f"{titles[ours]} minus {titles[other]} [95 %]" for other in versus]
    rows = []
    for reported in asked:
        cells = [reported.show([reported.of(arms[ours][0], prefix)]) for prefix in controls]
        cells += [reported.show([reported.of(run, is_control=name != ours) for run in arms[name]]) for name in titles]
        cells += [_difference(reported, found.get(reported.name)) for found in versus.values()]
        rows.append([reported.title, *cells])
    warnings = untrained.warnings(arms, titles)
    parts = [*warnings, markdown(head, rows), untrained.table(arms, titles), _footnote(comparison, titles)]
    return "\n\n".join(part for part in parts if part)


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
    num_seeds, run = len(comparison["seeds"]), next(iter(arms.values()))[0]
    split = run.get("looked_at", {"split": "test"})["split"]
    tuned_on = "" if split == "test" else ", which the arms were tuned on as well: the data have no test split"
    steps = ", ".join(f"{title} {comparison['num_steps'][name]}" for name, title in titles.items())
    lines = [
        f"Mean ± standard deviation of {num_seeds} seed(s), on the {split} split ({run['num_images']['test']} images"
        f"{tuned_on}). Differences are paired, with the interval for "
        "other test images and other seeds, or for other seeds alone where a value is no mean over images; bold where "
        "it excludes zero. Few-shot accuracy without a number: `evaluation.num_shots` labels per class, 10 by default.",
        f"Equal {comparison['equal']}: {steps} steps{_costs(comparison, titles)}. On {comparison['hardware']}. "
        f"Command: {code(comparison['command'])}.",
    ]
    for name, own in comparison.get("own_overrides", {}).items():
        lines.append(f"{titles[name].capitalize()} has {', '.join(map(code, own))}.")
    lines += [_tuning(titles[name], tuned) for name, tuned in comparison["tuning"].items()]
    if "max_points" in comparison:
        lines.append(f"Each arm could try {comparison['max_points']} points; no test image was looked at for it.")
    return "\n".join(f"- {line}" for line in lines)


def _costs(comparison: dict[str, Any], titles: dict[str, str]) -> str:
    if "cost" not in comparison:
        return ""
    costs = ", ".join(f"{title} {comparison['cost'][name]:.3g}" for name, title in titles.items())
    return f" ({comparison['measured']}: {costs})"


def _tuning(title: str, tuned: dict[str, Any]) -> str:
    """What was chosen for an arm, by what, and whether the choice lies at an edge of what was tried."""
    points, chosen = [tuple(point["overrides"]) for point in tuned["points"]], tuple(tuned["chosen"])
    if len(points) == 1:
        return f"{title.capitalize()}: {', '.join(chosen) or 'as configured'}; not tuned."
    score = " ".join(f"{weight:+g} {value}" for value, weight in tuned["tuned_by"].items())
    text = f"{title.capitalize()}: {', '.join(chosen)}; best of {len(points)} points by {score} (seed {TUNING_SEED})"
    ends = [
        f"no {'higher' if is_upper else 'lower'} {chosen[axis].partition('=')[0]}"
        for axis, is_upper in open_ends(points, chosen)
    ]
    return f"{text}; **at an edge: {', '.join(ends)} was tried**." if ends else f"{text}; interior."
