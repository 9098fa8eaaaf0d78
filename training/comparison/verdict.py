"""The verdict on the claim, over several comparisons, by rule."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..reports.reported import REPORTED
from ..reports.reported import table as markdown
from .arms import ARMS, HYBRID
from .untrained import is_above


# A comparison as in `comparison.json`.
Stored = dict[str, Any]

_BY_NAME = {reported.name: reported for reported in REPORTED}


def verdict(*stored: Stored) -> str:
    """
    What both losses are worth beside each alone, by rule: "better" or "worse" where the 95 % interval of the paired
    difference excludes zero, else "tie"; with the difference, a mean over seeds.
    """
    corrupted = "corrupted_accuracy"
    rows = {
        "linear probe, beside the better single loss": partial(_beside_better, key="linear_accuracy"),
        "few-shot, beside the better single loss": partial(_beside_better, key="few_shot_accuracy"),
        "linear probe, few-shot: above pixels": _both_above_pixels,
        "bits per dimension within .01 of generative only": _bits_kept,
        "OOD AUROC, default score, beside the best of each single loss": _detection,
        "AUROC of kinds that no score was chosen by": _novelty,
        "corrupted images, beside contrastive only": partial(_corrupted, key=corrupted),
        "the same, probe that saw augmented ones too": partial(_corrupted, key=f"{corrupted}_augmented_probe"),
    }
    head = ["", *(f"{Path(one['config']).stem}, equal {one['equal']}" for one in stored)]
    return markdown(head, [[title, *(cell(one) for one in stored)] for title, cell in rows.items()])


def _mean(stored: Stored, key: str, arm: str = HYBRID, prefix: str = "") -> float:
    """Over the runs of an arm, to the three digits that are shown."""
    return round(float(np.mean([_BY_NAME[key].of(run, prefix) for run in stored["arms"][arm]])), 3)


def _short(value: float, sign: str = "+") -> str:
    """.987 or +.007"""
    return f"{value:{sign}.3f}".replace("0.", ".", 1)


def _judged(difference: dict[str, float]) -> str:
    """In a word, with the difference; of a value that is better the higher it is."""
    mean, low, high = (difference[name] for name in ("mean", "low", "high"))
    if low is None:
        return f"one seed {_short(mean)}"
    if high < 0:
        return f"**worse {_short(mean)}**"
    return f"{'better' if low > 0 else 'tie'} {_short(mean)}"


def _beside_better(stored: Stored, key: str) -> str:
    """Behind the arms whose training has not made this value better than it was."""
    better = max(stored["hybrid_minus"], key=lambda name: _mean(stored, key, name))
    text = f"{_judged(stored['hybrid_minus'][better][key])} ({ARMS[better].title})"
    idle = []
    for name, arm in ARMS.items():
        if not is_above(_BY_NAME[key], stored["arms"][name]):
            trained, untrained = (_short(_mean(stored, key, name, prefix), "") for prefix in ("", "random_"))
            idle.append(f"{arm.title} {trained}, untrained {untrained}")
    return f"**says nothing** ({', '.join(idle)}); {text}" if idle else text


def _is_above_pixels(stored: Stored, key: str) -> bool:
    return _mean(stored, key) > _mean(stored, key, prefix="pixel_")


def _both_above_pixels(stored: Stored) -> str:
    are_above = (_is_above_pixels(stored, key) for key in ("linear_accuracy", "few_shot_accuracy"))
    return ", ".join("yes" if is_above else "**no**" for is_above in are_above)


def _bits_kept(stored: Stored, allowed: float = 0.01) -> str:
    difference = stored["hybrid_minus"]["generative"]["bits_per_dim"]
    mean, low, high = (difference[name] for name in ("mean", "low", "high"))
    if low is None:
        return f"one seed {_short(mean)}"
    if high < 0:
        word = "better"
    elif high <= allowed:
        word = "yes"
    else:
        word = "the mean is, not its interval:" if mean <= allowed else "**no**"
    return f"{word} {_short(mean)}"


def _detection(stored: Stored) -> str:
    return _beside_each(stored, "ood_auroc, controls ood_auroc_best_score")


def _novelty(stored: Stored) -> str:
    is_asked = all("novelty_auroc" in found for found in stored["hybrid_minus"].values())
    return _beside_each(stored, "novelty_auroc") if is_asked else "not asked"


def _beside_each(stored: Stored, key: str) -> str:
    differences = {ARMS[name].title: found[key] for name, found in stored["hybrid_minus"].items()}
    return ", ".join(f"{_judged(found)} ({title})" for title, found in differences.items())


def _corrupted(stored: Stored, key: str) -> str:
    where = "above pixels" if _is_above_pixels(stored, key) else "**not above pixels**"
    return f"{_judged(stored['hybrid_minus']['contrastive'][key])}, {where}"
