"""How well simple classifiers read the classes out of frozen features, beside raw pixels and an untrained encoder."""

import numpy as np

from . import figures
from .probes import Labelled, few_shot, linear, nearest_neighbours
from .subject import Findings, Subject


def evaluate(subject: Subject) -> Findings:
    """Linear, kNN and few-shot accuracy on the test split; nothing without labels."""
    shown = slice(0, 2000)
    labels = None if subject.labels is None else subject.labels["test"][shown]
    names, path = subject.splits.class_names, subject.figures / "features.png"
    figures.feature_map(subject.features["test"][shown], labels, names, path)
    if subject.labels is None:
        return Findings()
    return Findings(
        accuracies(subject, subject.features, "")
        | accuracies(subject, subject.pixels, "pixel_")
        | accuracies(subject, subject.random_features, "random_")
    )


def accuracies(subject: Subject, features: dict[str, np.ndarray], prefix: str) -> dict[str, float]:
    config = subject.config.evaluation
    splits = [Labelled(features[name], subject.labels[name]) for name in ("train", "validation", "test")]
    mean, std = few_shot(*splits, config.num_shots, config.num_draws)
    return {
        f"{prefix}linear_accuracy": linear(*splits),
        f"{prefix}knn_accuracy": nearest_neighbours(*splits),
        f"{prefix}few_shot_accuracy": mean,
        f"{prefix}few_shot_std": std,
    }
