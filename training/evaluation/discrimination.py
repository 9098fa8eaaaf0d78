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
    findings = probe(subject, subject.features)
    for prefix, features in (("pixel_", subject.pixels), ("random_", subject.random_features)):
        found = probe(subject, features).figures
        findings.figures |= {f"{prefix}{name}": value for name, value in found.items()}
    return findings


def probe(subject: Subject, features: dict[str, np.ndarray]) -> Findings:
    """
    Accuracies of every probe on features (N, P) of the three splits, few-shot by number of labels per class as well.

    Of each test image: whether the kNN probe gets it right, and the share of draws in which the headline few-shot does.
    """
    config = subject.config.evaluation
    splits = [Labelled(features[name], subject.labels[name]) for name in ("train", "validation", "test")]
    knn_correct = nearest_neighbours(*splits)
    shots = sorted({config.num_shots, *config.further_num_shots})
    correct = {num_shots: few_shot(*splits, num_shots, config.num_draws) for num_shots in shots}
    headline = correct[config.num_shots]
    return Findings(
        {
            "linear_accuracy": float(linear(*splits).mean()),
            "knn_accuracy": float(knn_correct.mean()),
            "few_shot_accuracy": float(headline.mean()),
            "few_shot_std": float(headline.mean(axis=1).std()),
            "few_shot_accuracy_by_shots": {str(num_shots): float(c.mean()) for num_shots, c in correct.items()},
        },
        {"knn_correct": knn_correct, "few_shot_correct": headline.mean(axis=0)},
    )
