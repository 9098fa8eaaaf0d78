"""
Does a training make the features better than those of its own encoder before? Where it does not, the set says nothing
about that arm.
"""

from typing import Any

from ..reports.reported import REPORTED, Reported
from ..reports.reported import table as markdown


# What the claim is about.
HEADLINES = ("linear_accuracy", "few_shot_accuracy")


def is_above(reported: Reported, runs: list[dict[str, Any]]) -> bool:
    """Whether the mean over the runs of an arm is above that of their own untrained encoders, in the digits shown."""
    trained, untrained = (
        round(sum(reported.of(run, prefix) for run in runs) / len(runs), reported.digits) for prefix in ("", "random_")
    )
    return trained > untrained


def warnings(arms: dict[str, list[dict[str, Any]]], titles: dict[str, str]) -> list[str]:
    """A sentence for every headline value of an arm that its training has not raised."""
    found = []
    for reported in REPORTED:
        if reported.name in HEADLINES and _is_known(reported, arms):
            for name, title in titles.items():
                if not is_above(reported, arms[name]):
                    trained, untrained = (
                        reported.show([reported.of(run, prefix) for run in arms[name]]) for prefix in ("", "random_")
                    )
                    found.append(
                        f"**This set says nothing about the {reported.title} of {title}: {trained}, and {untrained} of "
                        "its own encoder before any training.**"
                    )
    return found


def table(arms: dict[str, list[dict[str, Any]]], titles: dict[str, str]) -> str:
    """Of each arm's own encoder before any training; "" where nothing was asked of it."""
    rows = [
        [reported.title, *(reported.show([reported.of(run, "random_") for run in arms[name]]) for name in titles)]
        for reported in REPORTED
        if _is_known(reported, arms)
    ]
    return markdown(["before any training", *titles.values()], rows) if rows else ""


def _is_known(reported: Reported, arms: dict[str, list[dict[str, Any]]]) -> bool:
    return all(reported.of(run, "random_") is not None for runs in arms.values() for run in runs)
