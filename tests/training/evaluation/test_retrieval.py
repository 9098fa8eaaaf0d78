"""Retrieval against rankings that are worked out by hand."""

import numpy as np
import pytest
from training_fixtures import GivenRows

from training.evaluation.questions import retrieval as module
from training.evaluation.questions.retrieval import evaluate, retrieval


# On a circle, the cosine ranks by the angle between two points.
ANGLES = np.radians([0, 10, 25, 45, 70, 100])
POINTS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)


def test_six_points_by_hand():
    # Order of the others for each point: 0: 12345, 1: 02345, 2: 13045, 3: 24105, 4: 35210, 5: 43210.
    labels = np.array([0, 0, 1, 0, 1, 1])
    average_precisions = [
        (1 / 1 + 2 / 3) / 2,
        (1 / 1 + 2 / 3) / 2,
        (1 / 4 + 2 / 5) / 2,
        (1 / 3 + 2 / 4) / 2,
        (1 / 2 + 2 / 3) / 2,
        (1 / 1 + 2 / 3) / 2,
    ]
    assert retrieval(POINTS, labels) == {
        "recall_at_1": pytest.approx(3 / 6),
        "recall_at_5": 1.0,
        "recall_at_10": 1.0,
        "map": pytest.approx(np.mean(average_precisions)),
    }


def test_an_image_alone_in_its_class_is_in_the_way_but_does_not_ask():
    # Point 1 is alone and the nearest of point 0; points 4 and 5 are each other's nearest.
    found = retrieval(POINTS[[0, 1, 2, 4, 5]], np.array([0, 7, 0, 1, 1]))
    assert found["recall_at_1"] == 0.5 and found["map"] == pytest.approx((1 / 2 + 1 / 2 + 1 + 1) / 4)
    assert retrieval(POINTS, np.arange(6)) == {}


def test_equally_near_images_count_as_the_worst_order():
    same = np.ones((4, 2))
    found = retrieval(same, np.array([0, 0, 1, 1]))
    assert found["recall_at_1"] == 0 and found["recall_at_5"] == 1 and found["map"] == pytest.approx(1 / 3)


def slow_retrieval(features: np.ndarray, labels: np.ndarray, queries: list[int]) -> tuple[float, float]:
    """Recall at 5 and mean average precision, rank by rank."""
    hits, precisions = [], []
    for query in queries:
        order = [i for i in np.argsort(-features @ features[query], kind="stable") if i != query]
        relevant = [labels[i] == labels[query] for i in order]
        hits.append(any(relevant[:5]))
        precisions.append(np.mean([sum(relevant[: k + 1]) / (k + 1) for k in range(len(order)) if relevant[k]]))
    return float(np.mean(hits)), float(np.mean(precisions))


@pytest.mark.parametrize("max_queries", [2000, 20])
def test_chunks_of_queries_are_ranked_as_one_by_one(monkeypatch, max_queries):
    monkeypatch.setattr(module, "CHUNK_SIZE", 7)
    monkeypatch.setattr(module, "MAX_QUERIES", max_queries)
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(58, 4)), np.arange(58) % 9
    queries = np.linspace(0, 57, min(58, max_queries)).round().astype(int).tolist()
    found = retrieval(features, labels)
    assert (found["recall_at_5"], found["map"]) == pytest.approx(slow_retrieval(features, labels, queries))


def test_every_kind_of_feature_is_standardised_and_reported():
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    centres = 4 * np.eye(3, 5)

    def split(signal: float, scale: float) -> np.ndarray:
        return (signal * centres[labels] + generator.normal(size=(60, 5))) * [1, 1, 1, 1, scale]

    # The last column is noise, and would rule the cosine if it were not standardised.
    parts = ("train", "validation", "test")
    subject = GivenRows(
        labels=dict.fromkeys(parts, labels),
        features={name: split(1, 1e4) for name in parts},
        pixels={name: split(0, 1) for name in parts},
        random_features={name: split(0, 1) for name in parts},
    )
    results = evaluate(subject).results
    names = ("recall_at_1", "recall_at_5", "recall_at_10", "map")
    assert set(results) == {f"{prefix}retrieval_{name}" for prefix in ("", "pixel_", "random_") for name in names}
    assert results["retrieval_map"] > 0.7
    assert results["pixel_retrieval_map"] < 0.5 and results["random_retrieval_map"] < 0.5
    subject.labels = None
    assert evaluate(subject).results == {}
