"""The pictures of a run, one function each; every one writes a PNG."""

import math
from pathlib import Path

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import auc, roc_curve

from .log_lines import read_log


# Names of classes and data sets are text, whatever they hold.
plt.rcParams["text.parse_math"] = False


def sheet(images: list[Image.Image], path: Path, num_columns: int, height: int = 480) -> None:
    """Images of one size on a grid, row by row, enlarged without smoothing to about `height` pixels."""
    width, tall = images[0].size
    num_rows = math.ceil(len(images) / num_columns)
    factor = max(1, height // (num_rows * (tall + 1)))
    canvas = Image.new("RGB", (num_columns * (width + 1) + 1, num_rows * (tall + 1) + 1), (90, 110, 160))
    for i, image in enumerate(images):
        canvas.paste(image, (1 + i % num_columns * (width + 1), 1 + i // num_columns * (tall + 1)))
    canvas.resize((canvas.width * factor, canvas.height * factor), Image.Resampling.NEAREST).save(path)


def patch_maps(images: list[Image.Image], maps: dict[str, np.ndarray], path: Path) -> None:
    """Images above maps of their patches, (N, side, side) by title: positive values red, negative ones blue."""
    figure, axes = plt.subplots(
        len(maps) + 1,
        len(images),
        figsize=(0.85 * len(images) + 1.2, 1.1 * (len(maps) + 1)),
        layout="constrained",
        squeeze=False,
    )
    for axis, image in zip(axes[0], images, strict=True):
        axis.imshow(image, cmap="gray")
    for row, (title, values) in zip(axes[1:], maps.items(), strict=True):
        reach = float(np.abs(values).max()) or 1.0
        for axis, value in zip(row, values, strict=True):
            shown = axis.imshow(value, cmap="RdBu_r", vmin=-reach, vmax=reach)
        figure.colorbar(shown, ax=row, shrink=0.8)
        row[0].set_ylabel(title, fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    save(figure, path)


def feature_map(features: np.ndarray, labels: np.ndarray | None, names: list[str] | None, path: Path) -> None:
    """Features (N, P) in two dimensions by t-SNE (PCA below 50 images), coloured by label where there are labels."""
    if len(features) < 50:
        points, method = PCA(2).fit_transform(features), "PCA"
    else:
        points, method = TSNE(metric="cosine", random_state=0).fit_transform(features), "t-SNE"
    figure, axes = plt.subplots(figsize=(6, 5.2), layout="constrained")
    if labels is None:
        axes.scatter(*points.T, s=8)
    else:
        colours = plt.get_cmap("tab20" if labels.max() > 9 else "tab10")
        for label in np.unique(labels):
            chosen = points[labels == label]
            name = names[label] if names else str(label)
            axes.scatter(*chosen.T, s=8, color=colours(label % colours.N), label=name)
        if labels.max() < 20:
            axes.legend(markerscale=2, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set(title=f"Features of the test images ({method})", xticks=[], yticks=[])
    save(figure, path)


def likelihood_histograms(
    bits_in: np.ndarray, bits_out: dict[str, np.ndarray], aurocs: dict[str, float], path: Path
) -> None:
    """Bits per dimension of test images and of each foreign set; the AUROC is that of the likelihood alone."""
    figure, axes = plt.subplots(2, math.ceil(len(bits_out) / 2), figsize=(12, 5), sharex=True, layout="constrained")
    everything = np.concatenate([bits_in, *bits_out.values()])
    bins = np.linspace(everything.min(), np.quantile(everything, 0.99), 50)
    for axis, (name, bits) in zip(axes.flat, bits_out.items(), strict=False):
        axis.hist(bits_in, bins, density=True, alpha=0.6, label="test images")
        axis.hist(bits.clip(bins[0], bins[-1]), bins, density=True, alpha=0.6, label=name.replace("_", " "))
        axis.set_title(f"{name.replace('_', ' ')}: AUROC {aurocs[name]:.3f}", fontsize=10)
        axis.set_yticks([])
    for axis in axes.flat[len(bits_out) :]:
        axis.set_visible(False)
    axes.flat[0].legend(fontsize=8)
    figure.supxlabel("bits per dimension")
    save(figure, path)


def training_curves(log: Path, path: Path) -> None:
    """Both losses, bits per dimension and kNN accuracy over the steps, from `log.jsonl`."""
    rows = read_log(log)
    panels = {
        "contrastive loss": ("contrastive_loss", "validation/contrastive_loss"),
        "bits per dimension, clean views": ("bits_per_dim", "validation/bits_per_dim"),
        "kNN accuracy": ("validation/knn_accuracy",),
    }
    panels = {t: n for t, n in panels.items() if any(name in row for row in rows for name in n)}
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.2), layout="constrained", squeeze=False)
    for axis, (title, names) in zip(axes.flat, panels.items(), strict=True):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points:
                label = "validation" if name.startswith("val") else "training"
                # One point alone makes no line.
                axis.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) == 1 else None)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save(figure, path)


def completion_images(
    images: list[Image.Image], completions: list[list[Image.Image]], num_given_rows: int
) -> list[Image.Image]:
    """For each image: its given rows (the rest in grey), its completions, then the image itself."""
    rows = []
    for i, image in enumerate(images):
        given = image.copy()
        given.paste(128 if image.mode == "L" else (128,) * 3, (0, num_given_rows, image.width, image.height))
        rows += [given, *(completion[i] for completion in completions), image]
    return rows


def save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)


def roc_curves(inside: dict[str, np.ndarray], foreign: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """
    ROC curves of out-of-distribution scores and the areas under them, one panel for each group of foreign images.

    Args:
        inside: scores (N,) of the test images, higher is stranger, by name of the score.
        foreign: the same of the foreign images of each group.
    """
    figure, axes = plt.subplots(
        1, len(foreign), figsize=(4.2 * len(foreign), 3.8), sharey=True, layout="constrained", squeeze=False
    )
    for axis, (group, scores) in zip(axes.flat, foreign.items(), strict=True):
        for name, outside in scores.items():
            is_foreign = np.repeat([False, True], [len(inside[name]), len(outside)])
            false_alarms, found, _ = roc_curve(is_foreign, np.concatenate([inside[name], outside]))
            label = f"{name} {auc(false_alarms, found):.3f}"
            axis.plot(false_alarms, found, label=label, linewidth=2.5 if name == "combined" else 1.2)
        axis.set(title=f"{group} foreign sets", xscale="log", xlim=(1e-3, 1), ylim=(0, 1.01))
        axis.xaxis.set_major_formatter("{x:g}")  # no power of ten, which only mathtext can write
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right")
    axes.flat[0].set_ylabel("share of foreign images found")
    figure.supxlabel("share of test images taken for foreign")
    save(figure, path)


def reliability_diagram(confidences: dict[str, np.ndarray], correct: np.ndarray, num_bins: int, path: Path) -> None:
    """
    Share of right predictions against their confidence (Guo et al. 2017, arXiv 1706.04599, figure 4); a dot's area is
    the share of images in its bin.

    Args:
        confidences: (N,) in [0, 1], by the name of what gave them.
        correct: (N,) booleans.
        num_bins: bins of equal width.
    """
    figure, axis = plt.subplots(figsize=(4.6, 4.4), layout="constrained")
    axis.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1)
    for name, confidence in confidences.items():
        bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
        members = [bins == index for index in np.unique(bins)]
        points = np.array([(confidence[rows].mean(), correct[rows].mean(), rows.mean()) for rows in members])
        axis.plot(*points[:, :2].T, linewidth=1, alpha=0.5)
        axis.scatter(*points[:, :2].T, s=10 + 400 * points[:, 2], alpha=0.7, label=name)
    axis.set(xlabel="confidence", ylabel="share of right predictions", xlim=(0, 1.05), ylim=(0, 1.05))
    axis.grid(alpha=0.3)
    for handle in axis.legend(loc="upper left", fontsize=8).legend_handles:
        handle.set_sizes([30])
    save(figure, path)
