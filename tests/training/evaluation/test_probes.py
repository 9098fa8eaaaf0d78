import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from training.evaluation.probes import NEIGHBOURS, Labelled, few_shot, fit_linear, nearest_neighbours


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


def wide_digits(num_columns: int = 200) -> list[Labelled]:
    rows, labels = load_digits(return_X_y=True)
    rows = np.tanh(rows @ np.random.default_rng(0).normal(size=(64, num_columns)) / 60)
    return [Labelled(rows[part], labels[part]) for part in (slice(0, 90), slice(90, 400), slice(400, 800))]


def test_fewer_images_than_columns_give_the_probe_of_the_columns_themselves():
    train, validation, test = wide_digits()
    probe = fit_linear(train, validation)
    penalty = probe[-1].C
    plain = make_pipeline(Normalizer(), StandardScaler(), LogisticRegression(C=penalty, max_iter=1000))
    plain.fit(train.features, train.labels)
    assert probe[-1].coef_.shape == plain[-1].coef_.shape == (10, 200)

    def objective(fitted):
        nats = log_loss(train.labels, fitted.predict_proba(train.features), normalize=False)
        return penalty * nats + np.square(fitted[-1].coef_).sum() / 2

    # Both stop where the gradient is small, so neither is the very minimum.
    assert objective(probe) == pytest.approx(objective(plain), rel=0.01)
    np.testing.assert_allclose(probe.predict_proba(test.features), plain.predict_proba(test.features), atol=0.1)


def test_few_shot_probes_read_more_with_more_shots():
    splits = wide_digits()
    one, five = (few_shot(*splits, num_shots, num_draws=3) for num_shots in (1, 5))
    assert one.shape == five.shape == (3, 400)
    assert 0.3 < one.mean() < five.mean()
