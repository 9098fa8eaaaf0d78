"""The pictures of a run, one function each; every one writes a PNG."""

import json
import math
from pathlib import Path

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE


def sheet(images: list[Image.Image], path: Path, num_columns: int, height: int = 480) -> None:
    """Images of one size on a grid, row by row, enlarged without smoothing to about `height` pixels."""
    width, tall = images[0].size
    num_rows = math.ceil(len(images) / num_columns)
    factor = max(1, height // (num_rows * (tall + 1)))
    canvas = Image.new("RGB", (num_columns * (width + 1) + 1, num_rows * (tall + 1) + 1), (90, 110, 160))
    for i, image in enumerate(images):
        canvas.paste(image, (1 + i % num_columns * (width + 1), 1 + i // num_columns * (tall + 1)))
    canvas.resize((canvas.width * factor, canvas.height * factor), Image.Resampling.NEAREST).save(path)


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
    _save(figure, path)


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
    _save(figure, path)


def training_curves(log: Path, path: Path) -> None:
    """Both losses, bits per dimension and kNN accuracy over the steps, from `log.jsonl`."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
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
                axis.plot(*zip(*points, strict=True), label="validation" if name.startswith("val") else "training")
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    _save(figure, path)


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


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)
