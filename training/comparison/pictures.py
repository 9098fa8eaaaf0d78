"""The pictures of a comparison, one function each; every one writes a PNG."""

from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import roc_curve

from ..reports.pictures import save


COLOURS = {"contrastive": "tab:blue", "generative": "tab:orange", "hybrid": "tab:green"}


def draw(
    comparison: dict[str, Any], per_image: dict[str, list[dict[str, np.ndarray]]], titles: dict[str, str], folder: Path
) -> None:
    """Whatever the runs of `comparison` (as in `comparison.json`) and their values per image have values for."""
    folder.mkdir(parents=True, exist_ok=True)
    arms = comparison["arms"]
    if all("linear_accuracy" in run and "bits_per_dim" in run for run in comparison["weights"]):
        pareto(comparison, titles, folder / "pareto.png")
    if all("corrupted_accuracy_by_corruption" in run for runs in arms.values() for run in runs):
        robustness(arms, titles, folder / "robustness.png")
    if all("ood/test/combined" in images for of_arm in per_image.values() for images in of_arm):
        roc(per_image, titles, folder / "roc.png")
    if all("confidence" in images for of_arm in per_image.values() for images in of_arm):
        calibration(per_image, titles, folder / "calibration.png")


def pareto(comparison: dict[str, Any], titles: dict[str, str], path: Path) -> None:
    """Probe accuracy against bits per dimension: the hybrid over its contrastive weight, between the single losses."""
    arms, points = comparison["arms"], comparison["weights"]
    panels = {"linear_accuracy": "linear probe accuracy", "few_shot_accuracy": "few-shot accuracy"}
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained")
    for axis, (key, label) in zip(axes, panels.items(), strict=True):
        bits = [point["bits_per_dim"] for point in points]
        axis.plot(bits, [point[key] for point in points], "o-", color=COLOURS["hybrid"], alpha=0.5)
        for point in points:
            place = (point["bits_per_dim"], point[key])
            axis.annotate(
                f"{point['contrastive_weight']:g}", place, xytext=(4, 4), textcoords="offset points", fontsize=8
            )
        for name in ("generative", "hybrid"):
            x, y = ([run[k] for run in arms[name]] for k in ("bits_per_dim", key))
            axis.plot(x, y, "s", color=COLOURS[name], label=titles[name], markersize=5)
        accuracies = [run[key] for run in arms["contrastive"]]
        axis.axhspan(min(accuracies), max(accuracies), color=COLOURS["contrastive"], alpha=0.25)
        axis.axhline(np.mean(accuracies), color=COLOURS["contrastive"], label=titles["contrastive"])
        pixels = arms["hybrid"][0].get(f"pixel_{key}")
        if pixels is not None:
            axis.axhline(pixels, color="grey", linestyle=":", label="raw pixels")
        axis.set(xlabel="bits per dimension (left is better)", ylabel=label)
        axis.locator_params(axis="x", nbins=6)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.suptitle(
        "Each line: the hybrid over contrastive_weight (numbers), one seed; squares: every seed", fontsize=10
    )
    save(figure, path)


def robustness(arms: dict[str, list[dict]], titles: dict[str, str], path: Path) -> None:
    """Accuracy of the probe over the severity of corruptions, for both ways of fitting it."""
    ways = {"": "probe fitted on clean images", "_augmented_probe": "probe fitted on clean and augmented images"}
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4), sharey=True, layout="constrained")
    for axis, (way, title) in zip(axes, ways.items(), strict=True):
        key = f"corrupted_accuracy{way}_by_corruption"
        for name, runs in arms.items():
            curve = np.array([np.mean(list(run[key].values()), axis=0) for run in runs])  # (runs, severities)
            axis.plot(range(1, curve.shape[1] + 1), curve.mean(0), "o-", color=COLOURS[name], label=titles[name])
            axis.fill_between(range(1, curve.shape[1] + 1), curve.min(0), curve.max(0), color=COLOURS[name], alpha=0.2)
        pixels = np.mean(list(arms["hybrid"][0][f"pixel_{key}"].values()), axis=0)
        axis.plot(range(1, len(pixels) + 1), pixels, "o:", color="grey", label="raw pixels")
        axis.set(xlabel="severity", title=title, xticks=range(1, len(pixels) + 1))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy, mean over corruptions")
    axes[0].legend(fontsize=8)
    save(figure, path)


def roc(per_image: dict[str, list[dict[str, np.ndarray]]], titles: dict[str, str], path: Path) -> None:
    """Foreign images of all sets found against test images suspected, by the combined score; mean over seeds."""
    grid = np.linspace(0, 1, 501)
    figure, axis = plt.subplots(figsize=(5.2, 4.6), layout="constrained")
    for name, of_arm in per_image.items():
        curves = []
        for images in of_arm:
            inside = images["ood/test/combined"]
            outside = [
                v for k, v in images.items() if k.startswith("ood/") and k.endswith("/combined") and "/test/" not in k
            ]
            scores = np.concatenate([inside, *outside])
            found = roc_curve(np.arange(len(scores)) >= len(inside), scores)
            curves.append(np.interp(grid, found[0], found[1]))
        axis.plot(grid, np.mean(curves, axis=0), color=COLOURS[name], label=titles[name])
    axis.plot([0, 1], [0, 1], ":", color="grey")
    axis.set(xlabel="test images taken for foreign ones", ylabel="foreign images found")
    # The left end, where a detector is used, gets more room.
    axis.set_xscale("function", functions=(np.sqrt, np.square))
    axis.set(xlim=(0, 1), xticks=(0.01, 0.05, 0.1, 0.2, 0.5, 1))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save(figure, path)


def calibration(per_image: dict[str, list[dict[str, np.ndarray]]], titles: dict[str, str], path: Path) -> None:
    """Accuracy of the linear probe at each confidence, over all seeds, before and after temperature scaling."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True, layout="constrained")
    ways = {"confidence": "as fitted", "calibrated_confidence": "after temperature scaling"}
    for axis, (key, title) in zip(axes, ways.items(), strict=True):
        axis.plot([0, 1], [0, 1], ":", color="grey")
        for name, of_arm in per_image.items():
            confidence, correct = (np.concatenate([images[k] for images in of_arm]) for k in (key, "linear_correct"))
            # Bins of equal numbers of images: those of equal width are empty where the probe is sure.
            bins = np.array_split(np.argsort(confidence), min(10, len(confidence)))
            points = [(confidence[i].mean(), correct[i].mean()) for i in bins]
            axis.plot(*zip(*points, strict=True), "o-", color=COLOURS[name], label=titles[name], markersize=4)
        axis.set(xlabel="confidence", title=title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy")
    axes[0].legend(fontsize=8)
    save(figure, path)
