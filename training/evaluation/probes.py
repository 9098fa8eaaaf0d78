"""
How much a simple classifier reads out of features, beside the same on raw pixels.

Every probe is fitted on the training split, and its one hyperparameter is chosen on the validation split. What is given
back is which test images it gets right; their share is its accuracy. Shape letters: N images, P width of a feature.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler


# Inverse strengths of the L2 penalty that the linear and the few-shot probe choose from.
PENALTIES = (0.001, 0.01, 0.1, 1.0)
NEIGHBOURS = (1, 3, 5, 10, 20)


@dataclass
class Labelled:
    """Features (N, P) and integer labels (N,) of a split."""

    features: np.ndarray
    labels: np.ndarray


def is_correct(probe: Pipeline, images: Labelled) -> np.ndarray:
    """Which of the images a fitted probe gets right, (N,) booleans."""
    return probe.predict(images.features) == images.labels


def _best(candidates: list[Pipeline], train: Labelled, validation: Labelled) -> Pipeline:
    """The candidate with the highest validation accuracy after fitting on the training split; the first on a tie."""
    fitted = [candidate.fit(train.features, train.labels) for candidate in candidates]
    return max(fitted, key=lambda candidate: is_correct(candidate, validation).mean())


def _logistic(penalty: float) -> Pipeline:
    return make_pipeline(Normalizer(), StandardScaler(), LogisticRegression(C=penalty, max_iter=1000))


def fit_linear(train: Labelled, validation: Labelled) -> Pipeline:
    """L2-penalised logistic regression on features scaled to length one, then standardised."""
    return _best([_logistic(penalty) for penalty in PENALTIES], train, validation)


def nearest_neighbours(train: Labelled, validation: Labelled, test: Labelled) -> np.ndarray:
    """Which test images k nearest neighbours by cosine, after standardising, get right, (N,)."""
    numbers = [k for k in NEIGHBOURS if k <= len(train.labels)]
    candidates = [make_pipeline(StandardScaler(), Normalizer(), KNeighborsClassifier(k)) for k in numbers]
    return is_correct(_best(candidates, train, validation), test)


def few_shot(
    train: Labelled, validation: Labelled, test: Labelled, num_shots: int, num_draws: int, seed: int = 0
) -> np.ndarray:
    """
    Which test images the linear probe gets right from `num_shots` training images per class, (num_draws, N).

    A class that has fewer images gives all of them. The same seed draws the same images, whatever the features, and
    those of fewer shots are among those of more. The penalty is the one with the best mean accuracy on validation.
    """
    generator = np.random.default_rng(seed)
    of_class = [np.flatnonzero(train.labels == label) for label in np.unique(train.labels)]
    draws = [
        np.concatenate([generator.permutation(indices)[:num_shots] for indices in of_class]) for _ in range(num_draws)
    ]

    def fitted(penalty: float) -> list[Pipeline]:
        return [_logistic(penalty).fit(train.features[draw], train.labels[draw]) for draw in draws]

    def accuracy(probes: list[Pipeline]) -> float:
        return np.mean([is_correct(probe, validation) for probe in probes])

    best = max((fitted(penalty) for penalty in PENALTIES), key=accuracy)
    return np.stack([is_correct(probe, test) for probe in best])


def join(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """
    Rows (N, P) of two kinds by split, each column standardised -> their first P principal components, or as many as
    there are training images: more columns alone would be an advantage. They are rotated at random, as every probe
    standardises columns, which would make the last component as large as the first.
    """
    both = {name: np.concatenate([one[name], other[name]], axis=1) for name in one}
    width = min(one["train"].shape[1], *both["train"].shape)
    fitted = make_pipeline(StandardScaler(), PCA(width, random_state=0)).fit(both["train"])
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))
    return {name: fitted.transform(rows) @ rotation for name, rows in both.items()}
