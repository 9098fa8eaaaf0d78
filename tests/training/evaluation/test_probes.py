import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from training.evaluation.probes import NEIGHBOURS, Labelled, nearest_neighbours


@pytest.mark.parametrize("num_train", [400, 7])
def test_one_search_finds_what_a_classifier_for_each_k_finds(num_train):
    rows, labels = load_digits(return_X_y=True)
    rows = rows + np.random.default_rng(0).normal(size=rows.shape)  # no two distances are equal
    train, validation, test = (
        Labelled(rows[part], labels[part])
        for part in (slice(0, num_train), slice(num_train, num_train + 300), slice(1000, 1500))
    )

    def classifier(k):
        probe = make_pipeline(StandardScaler(), Normalizer(), KNeighborsClassifier(min(k, num_train)))
        return probe.fit(train.features, train.labels)

    accuracy = {k: classifier(k).score(validation.features, validation.labels) for k in NEIGHBOURS}
    expected = classifier(max(NEIGHBOURS, key=accuracy.get)).predict(test.features) == test.labels
    np.testing.assert_array_equal(nearest_neighbours(train, validation, test), expected)
