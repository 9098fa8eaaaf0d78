"""How well simple classifiers read the classes out of frozen features, beside raw pixels and an untrained encoder."""

import math

from ...config import EvaluationConfig
from ...reports import pictures
from ..probes import few_shot, is_correct, nearest_neighbours
from ..subject import Findings, Subject


def evaluate(subject: Subject) -> Findings:
    """Linear, kNN and few-shot accuracy on the test split; nothing without labels."""
    shown = slice(0, 2000)
    labels = None if subject.labels is None else subject.labels["test"][shown]
    names, path = subject.splits.class_names, subject.pictures / "features.png"
    pictures.feature_map(subject.features["test"][shown], labels, names, path)
    if subject.labels is None:
        return Findings()
    findings = probe(subject, "")
    for prefix in ("pixel_", "random_", *(["imagenet_"] if subject.config.evaluation.imagenet_control else [])):
        found = probe(subject, prefix).results
        findings.results |= {f"{prefix}{name}": value for name, value in found.items()}
    return findings


def probe(subject: Subject, prefix: str) -> Findings:
    """
    Accuracies of every probe on the rows of that `prefix`, few-shot by number of labels per class as well.

    Of each test image: whether the kNN probe gets it right, and the share of draws in which the headline few-shot does.
    """
    config = subject.config.evaluation
    splits = subject.labelled(prefix)
    knn_correct = nearest_neighbours(*splits)
    shots = sorted({config.num_shots, *config.further_num_shots})
    correct = {num_shots: few_shot(*splits, num_shots, _num_draws(num_shots, config)) for num_shots in shots}
    headline = correct[config.num_shots]
    return Findings(
        {
            "linear_accuracy": float(is_correct(subject.linear_probe(prefix), splits[2]).mean()),
            "knn_accuracy": float(knn_correct.mean()),
            "few_shot_accuracy": float(headline.mean()),
            "few_shot_std": float(headline.mean(axis=1).std()),
            "few_shot_accuracy_by_shots": {str(num_shots): float(c.mean()) for num_shots, c in correct.items()},
        },
        {"knn_correct": knn_correct, "few_shot_correct": headline.mean(axis=0)},
    )


def _num_draws(num_shots: int, config: EvaluationConfig) -> int:
    """With more labels than the headline has, as many are drawn in all: they vary less, and a fit takes longer."""
    return min(config.num_draws, math.ceil(config.num_draws * config.num_shots / num_shots))
