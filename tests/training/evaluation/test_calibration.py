"""Calibration against logits whose true probabilities are known, sums by hand, and a probe on features."""

import json

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from training_fixtures import GivenRows

from training.evaluation.confidence import (
    NUM_BINS,
    TEMPERATURES,
    calibration,
    calibration_errors,
    fit_temperature,
)
from training.evaluation.questions.calibration import class_logits, evaluate


def draw(num_images: int, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, Y), and labels (N,) that come with the very probabilities that the logits stand for."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(num_images, num_classes))
    # The largest of logits plus Gumbel noise is a draw from their softmax.
    return logits, (logits + generator.gumbel(size=logits.shape)).argmax(axis=1)


@pytest.mark.parametrize("num_classes", [2, 10])
def test_temperature_scaling_mends_what_is_too_sure(num_classes):
    validation, test = draw(20_000, num_classes, 0), draw(20_000, num_classes, 1)
    right = calibration(*validation, *test)
    assert right["ece"] < 0.015 and right["temperature"] == pytest.approx(1, abs=0.05)
    assert right["calibrated_ece"] < 0.015

    too_sure = calibration(3 * validation[0], validation[1], 3 * test[0], test[1])
    assert too_sure["temperature"] == pytest.approx(3 * right["temperature"], rel=1e-3)
    assert too_sure["ece"] > 0.08
    for name in ("ece", "brier", "nll"):
        assert too_sure[name] > right[name] + 0.01
        assert too_sure[f"calibrated_{name}"] == pytest.approx(right[f"calibrated_{name}"], abs=1e-3)


def test_errors_by_hand():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.05, 0.05, 0.9], [0.05, 0.93, 0.02]])
    labels = np.array([0, 0, 2, 0])
    errors = calibration_errors(np.log(probabilities) + 5, labels)
    # The first and the third are right. Of 15 bins, .6 and .7 have one each, and .9 and .93 share that to 14/15.
    assert errors["ece"] == pytest.approx(((1 - 0.7) + 0.6 + (0.9 + 0.93 - 1)) / 4)
    brier = (0.09 + 0.04 + 0.01) + (0.49 + 0.36 + 0.01) + (0.0025 + 0.0025 + 0.01) + (0.9025 + 0.8649 + 0.0004)
    assert errors["brier"] == pytest.approx(brier / 4)
    assert errors["nll"] == pytest.approx(-np.log([0.7, 0.3, 0.9, 0.05]).mean())


def test_ece_is_that_of_a_loop_over_bins():
    logits, labels = draw(500, 4, 0)
    logits = logits * 1.7
    probabilities = softmax(logits, axis=1)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0
    for index in range(NUM_BINS):
        members = (confidence > index / NUM_BINS) & (confidence <= (index + 1) / NUM_BINS)
        expected += abs(correct[members].sum() - confidence[members].sum()) / len(labels)
    assert calibration_errors(logits, labels)["ece"] == pytest.approx(expected, abs=1e-6)


def test_errors_need_not_see_every_class():
    logits, labels = np.array([[0.0, 0.0, -50.0], [0.0, 0.0, -50.0]]), np.array([0, 0])
    errors = calibration_errors(logits, labels)
    assert errors["brier"] == pytest.approx(0.5) and errors["nll"] == pytest.approx(np.log(2))
    # No probability comes out as 0, however sure and wrong.
    assert calibration_errors(np.array([[0.0, 2000.0]]), np.array([0]))["nll"] == pytest.approx(2000)


def test_temperature_stays_within_bounds():
    without_mistake = np.eye(3)[[0, 1, 2]]
    assert fit_temperature(without_mistake, np.arange(3)) == pytest.approx(TEMPERATURES[0], rel=1e-3)
    assert fit_temperature(without_mistake, np.array([1, 2, 0])) == pytest.approx(TEMPERATURES[1], rel=1e-3)


@pytest.mark.parametrize("classes", [(0, 1), (0, 1, 2), (0, 2, 3)])
def test_logits_are_those_of_the_probabilities_of_scikit_learn(classes):
    generator = np.random.default_rng(0)
    labels = np.resize(classes, 60)
    features = generator.normal(size=(60, 5)) + labels[:, None]
    probe = make_pipeline(LogisticRegression()).fit(features, labels)
    logits = class_logits(probe, features, num_classes=4)
    assert logits.shape == (60, 4)
    np.testing.assert_allclose(softmax(logits[:, classes], axis=1), probe.predict_proba(features), atol=1e-12)
    unseen = [index for index in range(4) if index not in classes]
    np.testing.assert_array_equal(logits[:, unseen], logits.min(axis=1, keepdims=True).repeat(len(unseen), axis=1))


@pytest.fixture
def subject(tmp_path) -> GivenRows:
    """Two classes, which the features tell apart and the pixels do not."""
    generator = np.random.default_rng(0)
    sizes = {"train": 80, "validation": 40, "test": 60}
    labels = {name: generator.integers(0, 2, size) for name, size in sizes.items()}
    noise = {name: generator.normal(size=(size, 3)) for name, size in sizes.items()}
    features = {name: noise[name] + 3 * labels[name][:, None] * [1, -1, 1] for name in sizes}
    return GivenRows(labels=labels, features=features, pixels=noise, pictures=tmp_path)


def test_evaluator_reports_features_beside_pixels(subject):
    findings = evaluate(subject)
    results, per_image = findings.results, findings.per_image
    names = {"ece", "brier", "nll", "calibrated_ece", "calibrated_brier", "calibrated_nll", "temperature"}
    assert set(results) == {f"{prefix}linear_{name}" for prefix in ("", "pixel_") for name in names}
    assert json.loads(json.dumps(results)) == results
    for name in ("brier", "nll"):
        assert results[f"linear_{name}"] < results[f"pixel_linear_{name}"]
    assert set(per_image) == {"confidence", "calibrated_confidence", "linear_correct"}
    assert all(rows.shape == (60,) for rows in per_image.values())
    assert per_image["linear_correct"].dtype == bool and per_image["linear_correct"].mean() > 0.8
    # Of two classes, the confidence and whether it was right say what the Brier score is.
    for kind in ("", "calibrated_"):
        miss = per_image["linear_correct"] - per_image[f"{kind}confidence"]
        assert 2 * np.mean(miss**2) == pytest.approx(results[f"linear_{kind}brier"])
    assert (subject.pictures / "calibration.png").exists()


def test_nothing_without_labels(tmp_path):
    findings = evaluate(GivenRows(labels=None, pictures=tmp_path))
    assert not findings.results and not findings.per_image and not list(tmp_path.iterdir())
