"""
Are images of one class each other's nearest? Every test image asks for the others of its class.

Shape letters: Q queries, N images, P width of a feature.
"""

import numpy as np
from sklearn.metrics import label_ranking_average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from ...data.images import evenly
from ..subject import Findings, Subject


MAX_QUERIES = 2000
DEPTHS = (1, 5, 10)
# Queries whose similarities to all images are held at a time.
CHUNK_SIZE = 256


def evaluate(subject: Subject) -> Findings:
    """
    [`retrieval`] among the test images, by cosine of features that are standardised on the training split; the same of
    raw pixels (prefix `pixel_`) and of an untrained encoder (`random_`). Nothing without labels.
    """
    if subject.labels is None:
        return Findings()
    results = {}
    for prefix in ("", "pixel_", "random_"):
        train, _, test = subject.labelled(prefix)
        scaled = make_pipeline(StandardScaler(), Normalizer()).fit(train.features).transform(test.features)
        found = retrieval(scaled, test.labels)
        results |= {f"{prefix}retrieval_{name}": value for name, value in found.items()}
    return Findings(results, num_images={"queries": len(queries_among(subject.labels["test"]))})


def queries_among(labels: np.ndarray) -> np.ndarray:
    """Which of the images that share their label (N,) with another are queries: [`MAX_QUERIES`], at even distances."""
    possible = np.flatnonzero(np.bincount(labels)[labels] > 1)
    return possible[evenly(len(possible), MAX_QUERIES)]


def retrieval(features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """
    How well inner products of features (N, P) find the other images of equal label (N,).

    The queries ([`queries_among`]) ask each for all the others; an image that is alone in its class is none.

    Returns:
        `recall_at_k`, the share of queries with an image of their class among the k nearest, as metric learning
        reports it; and `map`, the mean over queries of their average precision. {} where no class has two images.
    """
    queries = queries_among(labels)
    if len(queries) == 0:
        return {}
    precisions, ranks = [], []
    for chunk in np.split(queries, range(CHUNK_SIZE, len(queries), CHUNK_SIZE)):
        similarity, relevant = features[chunk] @ features.T, labels[chunk][:, None] == labels
        # The query itself comes last, and does not count.
        rows = np.arange(len(chunk))
        similarity[rows, chunk], relevant[rows, chunk] = similarity.min() - 1, False
        precisions.append(label_ranking_average_precision_score(relevant, similarity) * len(chunk))
        best = np.where(relevant, similarity, -np.inf).max(axis=1, keepdims=True)
        # As in the average precision, of equally near images the wrong ones come first.
        ranks.append((~relevant & (similarity >= best)).sum(axis=1) + 1)
    rank = np.concatenate(ranks)
    return {
        **{f"recall_at_{depth}": float(np.mean(rank <= depth)) for depth in DEPTHS},
        "map": float(sum(precisions) / len(queries)),
    }
