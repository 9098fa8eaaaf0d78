"""The table of a comparison: one row per figure, mean and spread of each arm, and the paired differences."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Figure:
    """
    Args:
        key: in `evaluation.json`; a point descends into a dictionary.
        per_image: key of `per_image.npz` whose mean over test images it is; `None` where it is no such mean.
        controls_key: key of the figure that the other arms are given instead.
    """

    title: str
    key: str
    per_image: str | None = None
    digits: int = 3
    controls_key: str | None = None

    def of(self, run: dict[str, Any], prefix: str = "", is_control: bool = False) -> float | None:
        """Its value in a run, or in the baseline of that `prefix`; `None` where there is none."""
        value: Any = run
        for name in (prefix + (self.controls_key if is_control and self.controls_key else self.key)).split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value


FIGURES = (
    Figure("linear probe accuracy", "linear_accuracy", "linear_correct"),
    Figure("kNN accuracy", "knn_accuracy", "knn_correct"),
    Figure("few-shot accuracy, 1 label per class", "few_shot_accuracy_by_shots.1"),
    Figure("few-shot accuracy, 5 labels", "few_shot_accuracy_by_shots.5"),
    Figure("few-shot accuracy, 10 labels", "few_shot_accuracy", "few_shot_correct"),
    Figure("few-shot accuracy, 100 labels", "few_shot_accuracy_by_shots.100"),
    Figure("fine-tuned accuracy", "finetuned_accuracy", "finetuned_correct"),
    Figure("retrieval, recall at 1", "retrieval_recall_at_1"),
    Figure("retrieval, mean average precision", "retrieval_map"),
    Figure("bits per dimension, test", "bits_per_dim", "bits_per_dim"),
    Figure("bits per dimension, test minus training", "bits_per_dim_gap"),
    Figure("OOD AUROC, combined score", "ood_auroc"),
    Figure(
        "OOD AUROC, combined score; of single losses the best score", "ood_auroc", controls_key="ood_auroc_best_score"
    ),
    Figure("OOD AUROC, likelihood", "ood_auroc_likelihood"),
    Figure("OOD AUROC, feature", "ood_auroc_feature"),
    Figure("OOD FPR95, combined score", "ood_fpr95"),
    Figure("accuracy on corrupted images", "corrupted_accuracy", "corrupted_correct"),
    Figure(
        "accuracy on corrupted images, probe fitted on augmented ones too",
        "corrupted_accuracy_augmented_probe",
        "corrupted_correct_augmented_probe",
    ),
    Figure("mean corruption error (pixels: 1)", "mean_corruption_error"),
    Figure("mean corruption error, probe fitted on augmented ones too", "mean_corruption_error_augmented_probe"),
    Figure("accuracy under attack (PGD)", "adversarial_accuracy", "adversarial_correct"),
    Figure("calibration error of the probe", "linear_ece"),
    Figure("calibration error after temperature scaling", "linear_calibrated_ece"),
    Figure("Frechet distance of samples", "frechet_distance", digits=2),
    Figure("precision of samples", "precision"),
    Figure("recall of samples", "recall"),
    Figure("effective rank of the features", "effective_rank", digits=1),
    Figure("cosine of the gradients of both losses", "gradient_cosine"),
    Figure("training seconds", "train_seconds", digits=0),
)


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
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for figure in FIGURES:
        if not any(figure.of(run) is not None for runs in arms.values() for run in runs):
            continue
        cells = [
            _mean_and_spread([figure.of(run, prefix) for run in arms[ours]][:1], figure.digits)
            for prefix in ("pixel_", "random_")
        ]
        cells += [
            _mean_and_spread([figure.of(run, is_control=name != ours) for run in arms[name]], figure.digits)
            for name in titles
        ]
        cells += [_difference(figure, found.get(figure.title)) for found in versus.values()]
        lines.append(f"| {figure.title} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _footnote(comparison, titles)])


def _mean_and_spread(values: list[float | None], digits: int) -> str:
    if None in values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 and digits else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def _difference(figure: Figure, difference: dict[str, float] | None) -> str:
    if difference is None:
        return ""
    if difference["low"] is None:
        return f"{difference['mean']:+.{figure.digits}f}"
    mean, low, high = (f"{difference[name]:+.{figure.digits}f}" for name in ("mean", "low", "high"))
    text = f"{mean} [{low}, {high}]"
    return f"**{text}**" if difference["low"] > 0 or difference["high"] < 0 else text


def _footnote(comparison: dict[str, Any], titles: dict[str, str]) -> str:
    """How the figures came about: what was equal, how each arm was tuned, and on what."""
    arms = comparison["arms"]
    num_seeds = len(comparison["seeds"])
    steps = ", ".join(f"{title} {comparison['num_steps'][name]}" for name, title in titles.items())
    lines = [
        f"Mean ± standard deviation of {num_seeds} seed(s), on the test split "
        f"({next(iter(arms.values()))[0]['num_images']['test']} images). Differences are paired, with the interval for "
        "other test images and other seeds, or for other seeds alone where a figure is no mean over images; bold where "
        "it excludes zero.",
        f"Equal {comparison['equal']}: {steps} steps. On {comparison['hardware']}. Command: `{comparison['command']}`.",
    ]
    for name, tuned in comparison["tuning"].items():
        points = len(tuned["points"])
        score = " ".join(f"{weight:+g} {figure}" for figure, weight in tuned["tuned_by"].items())
        by = f"best of {points} points by {score} (seed 0)" if points > 1 else "not tuned"
        lines.append(f"{titles[name]}: {', '.join(tuned['chosen']) or 'as configured'}; {by}.".capitalize())
    return "\n".join(f"- {line}" for line in lines)
