"""
How much a simple classifier reads out of features, beside the same on raw pixels.

Every probe is fitted on the training split, its one hyperparameter is chosen on the validation split, and the accuracy
is that on the test split. Shape letters: N images, P width of a feature.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler


# Inverse strengths of the L2 penalty that the linear and the few-shot probe choose from.
PENALTIES = (0.001, 0.01, 0.1, 1.0)
NEIGHBOURS = (1, 3, 5, 10, 20)


@dataclass
class Labelled:
    """Features (N, P) and integer labels (N,) of a split."""

    features: np.ndarray
    labels: np.ndarray


def _best(candidates: list, train: Labelled, validation: Labelled):
    """The candidate with the highest validation accuracy after fitting on the training split; the first on a tie."""
    fitted = [candidate.fit(train.features, train.labels) for candidate in candidates]
    return max(fitted, key=lambda candidate: candidate.score(validation.features, validation.labels))


def _logistic(penalty: float):
    return make_pipeline(Normalizer(), StandardScaler(), LogisticRegression(C=penalty, max_iter=1000))


def linear(train: Labelled, validation: Labelled, test: Labelled) -> float:
    """Accuracy of L2-penalised logistic regression on features scaled to length one, then standardised."""
    return _best([_logistic(c) for c in PENALTIES], train, validation).score(test.features, test.labels)


def nearest_neighbours(train: Labelled, validation: Labelled, test: Labelled) -> float:
    """Accuracy of k nearest neighbours by cosine, after standardising."""
    candidates = [make_pipeline(StandardScaler(), Normalizer(), KNeighborsClassifier(k)) for k in NEIGHBOURS]
    return _best(candidates, train, validation).score(test.features, test.labels)


def few_shot(
    train: Labelled, validation: Labelled, test: Labelled, num_shots: int, num_draws: int, seed: int = 0
) -> tuple[float, float]:
    """
    Mean and standard deviation of the accuracy of the linear probe over draws of `num_shots` training images per class.

    The same seed draws the same images, whatever the features. The penalty is the one with the best mean accuracy on
    validation.
    """
    generator = np.random.default_rng(seed)
    of_class = [np.flatnonzero(train.labels == label) for label in np.unique(train.labels)]
    draws = [
        np.concatenate([generator.permutation(indices)[:num_shots] for indices in of_class]) for _ in range(num_draws)
    ]

    def accuracies(penalty: float) -> tuple[list[float], list[float]]:
        fitted = [_logistic(penalty).fit(train.features[draw], train.labels[draw]) for draw in draws]
        on_validation = [probe.score(validation.features, validation.labels) for probe in fitted]
        return on_validation, [probe.score(test.features, test.labels) for probe in fitted]

    _, best = max((accuracies(penalty) for penalty in PENALTIES), key=lambda scores: np.mean(scores[0]))
    return float(np.mean(best)), float(np.std(best))
