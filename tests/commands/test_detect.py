"""`hybrid detect`: a threshold that holds its false-alarm rate, and verdicts by it."""

import csv
import json

import numpy as np
import pytest

from modeling_hybrid import HybridForOutOfDistributionDetection
from modeling_hybrid.commands.detect import THRESHOLD_FILE, Threshold


def test_fit_and_score(hybrid, checkpoint, digit_images, noise, tmp_path):
    folder = tmp_path / "normal"
    folder.mkdir()
    for i, image in enumerate(digit_images):
        image.save(folder / f"{i:03d}.png")
    detector = tmp_path / "detector"
    fitted = hybrid("detect", "fit", checkpoint, folder, "--output", detector, "--false-alarm-rate", 0.1)
    threshold = json.loads((detector / THRESHOLD_FILE).read_text())
    assert len(threshold["scores"]) == 40 and threshold["low"] <= 0.1 <= threshold["high"]
    assert f"{threshold['threshold']:.4f}" in fitted.stderr
    assert HybridForOutOfDistributionDetection.from_pretrained(detector).strangeness.is_fitted
    result = hybrid("detect", "score", detector, folder, noise, "--map", tmp_path / "maps")
    rows = list(csv.DictReader(result.stdout.splitlines()))
    of_threshold = [row for i, row in enumerate(rows[:200]) if i % 5 == 4]
    scores = sorted(float(row["score"]) for row in of_threshold)
    np.testing.assert_allclose(scores, threshold["scores"], atol=1e-3)
    # The image at the threshold itself may be rounded to either side.
    above = [(row["verdict"] == "strange", float(row["score"]) - threshold["threshold"]) for row in rows]
    assert all(is_strange == (difference > 0) for is_strange, difference in above if abs(difference) > 1e-3)
    assert [row["verdict"] for row in rows[200:]] == ["strange"] * 5
    assert [float(row["p_value"]) for row in rows[200:]] == pytest.approx([1 / 41] * 5, abs=1e-6)
    assert len(list((tmp_path / "maps").iterdir())) == 205


def test_the_rate_is_held_on_average():
    random = np.random.default_rng(0)
    rates = []
    for _ in range(300):
        chosen = Threshold.choose(random.normal(size=99).tolist(), 0.1)
        rates.append((random.normal(size=200) > chosen.threshold).mean())
        assert chosen.low < 0.1 < chosen.high
    assert np.mean(rates) == pytest.approx(0.1, abs=0.01)


def test_interval_and_p_values():
    chosen = Threshold.choose([float(i) for i in range(99)], 0.05)
    assert chosen.threshold == 94
    # Of Clopper and Pearson for 4 of 99, as quantiles of beta distributions.
    from scipy.stats import beta

    assert (chosen.low, chosen.high) == pytest.approx((beta.ppf(0.025, 4, 96), beta.ppf(0.975, 5, 95)))
    assert [chosen.p_value(score) for score in (-1, 94, 200)] == [1, 0.06, 0.01]


def test_refused(hybrid, checkpoint, detector, digits, tmp_path):
    few = hybrid("detect", "fit", checkpoint, digits, "--output", tmp_path / "out", code=1)
    assert "needs 19 images for the threshold, there are 8" in few.stderr and not (tmp_path / "out").exists()
    assert "no fitted detector" in hybrid("detect", "score", checkpoint, digits, code=1).stderr
    assert f"no {THRESHOLD_FILE}" in hybrid("detect", "score", detector, digits, code=1).stderr
    assert "not empty" in hybrid("detect", "fit", checkpoint, digits, "--output", digits, code=1).stderr
