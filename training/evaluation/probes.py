"""
How much a simple classifier reads out of features, beside the same on raw pixels.

Every probe is fitted on the training split, and its one hyperparameter is chosen on the validation split. What is given
back is which test images it gets right; their share is its accuracy. Shape letters: N images, P width of a feature.
"""

import warnings
from copy import copy
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
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


def logistic(rows: np.ndarray, labels: np.ndarray, penalties: tuple[float, ...]) -> list[LogisticRegression]:
    """
    L2-penalised logistic regression of rows (N, P) on labels (N,), for each inverse strength.

    The best weights lie in the space that the rows span, whatever the penalty. Fewer rows than columns are therefore
    fitted by their coordinates in it: the same weights, in a fraction of the time.
    """
    is_wide = len(rows) < rows.shape[1]
    basis = np.linalg.qr(rows.T)[0] if is_wide else None  # (P, N), orthonormal columns
    coordinates = rows @ basis if is_wide else rows
    # Each sets out from the weights of the one before, which spares up to a third of the time.
    regression = LogisticRegression(max_iter=1000, warm_start=True)
    fitted = [copy(regression.set_params(C=penalty).fit(coordinates, labels)) for penalty in penalties]
    if is_wide:
        for regression in fitted:
            regression.coef_, regression.n_features_in_ = regression.coef_ @ basis.T, len(basis)
    return fitted


def _probes(images: Labelled) -> list[Pipeline]:
    """One for each of the penalties: rows of length one, each column standardised, logistic regression."""
    scale = make_pipeline(Normalizer(), StandardScaler())
    rows = scale.fit_transform(images.features)
    return [
        Pipeline([*scale.steps, ("logisticregression", regression)])
        for regression in logistic(rows, images.labels, PENALTIES)
    ]


def fit_linear(train: Labelled, validation: Labelled) -> Pipeline:
    """
    L2-penalised logistic regression on features scaled to length one, then standardised; of the penalties the one with
    the highest validation accuracy, the strongest on a tie.
    """
    return max(_probes(train), key=lambda probe: is_correct(probe, validation).mean())


def nearest_neighbours(train: Labelled, validation: Labelled, test: Labelled) -> np.ndarray:
    """
    Which test images the majority of the k nearest neighbours by cosine, after standardising, gets right, (N,).

    Of labels with equal votes it is the smallest; a k above the number of training images takes them all.
    """
    prepare = make_pipeline(StandardScaler(), Normalizer()).fit(train.features)
    most = min(max(NEIGHBOURS), len(train.labels))
    index = NearestNeighbors(n_neighbors=most).fit(prepare.transform(train.features))
    classes = np.unique(train.labels)

    def correct(images: Labelled) -> dict[int, np.ndarray]:
        # Sorted by distance: one search serves every k.
        found = train.labels[index.kneighbors(prepare.transform(images.features), return_distance=False)]
        votes = np.cumsum(found[:, :, None] == classes, axis=1)
        return {k: classes[votes[:, min(k, most) - 1].argmax(axis=1)] == images.labels for k in NEIGHBOURS}

    on_validation = correct(validation)
    best = max(NEIGHBOURS, key=lambda k: on_validation[k].mean())
    return correct(test)[best]


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

    with warnings.catch_warnings():
        # One image per class looks like a regression to scikit-learn.
        warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
        of_draws = [_probes(Labelled(train.features[draw], train.labels[draw])) for draw in draws]

    def accuracy(probes: tuple[Pipeline, ...]) -> float:
        return np.mean([is_correct(probe, validation) for probe in probes])

    best = max(zip(*of_draws, strict=True), key=accuracy)
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
