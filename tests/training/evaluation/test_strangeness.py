"""The scores of the evaluation: those of scikit-learn and numpy, and those of the detector that is loaded."""

import numpy as np
import pytest
import torch
from model_fixtures import ENCODERS
from scipy.stats import norm
from sklearn.covariance import LedoitWolf
from transformers import AutoModel

from modeling_hybrid import HybridForOutOfDistributionDetection
from training.embedding import Embedding, embed
from training.evaluation.questions.out_of_distribution import strangeness


@pytest.mark.parametrize("with_likelihood", [True, False])
def test_scores_are_those_of_scikit_learn_and_numpy(with_likelihood):
    generator = np.random.default_rng(0)

    def draw(num_images: int) -> Embedding:
        features = generator.normal(1, np.linspace(0.5, 4, 12), (num_images, 12)).astype(np.float32)
        nll = generator.normal(90, 20, num_images) + 5 * np.linalg.norm(features, axis=1)
        return Embedding(features[:, :1], features, nll.astype(np.float32) if with_likelihood else None)

    train, validation, test = draw(150), draw(60), draw(30)
    scores = strangeness(train, validation, {"test": test})["test"]
    gaussian = LedoitWolf().fit(train.regions.astype(np.float64))
    held_out, expected = ({"feature": 0.5 * np.log(gaussian.mahalanobis(x.regions))} for x in (validation, test))
    if with_likelihood:
        held_out["likelihood"], expected["likelihood"] = validation.nll, test.nll
        # What is left of the feature after regression on the likelihood.
        line = np.polyfit(held_out["likelihood"], held_out["feature"], 1)
        spread = np.std(held_out["feature"] - np.polyval(line, held_out["likelihood"]))
        combined = -norm.logsf(expected["feature"], np.polyval(line, expected["likelihood"]), spread)
        combined -= norm.logsf(expected["likelihood"], held_out["likelihood"].mean(), held_out["likelihood"].std())
    else:
        combined = -norm.logsf(expected["feature"], held_out["feature"].mean(), held_out["feature"].std())
    assert set(scores) == {*expected, "combined"}
    for name, values in (expected | {"combined": combined}).items():
        np.testing.assert_allclose(scores[name], values, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_detector_and_evaluation_give_the_same_scores(make_model, tmp_path, name):
    """Three times the same model: as pre-trained, as a detector that loads that, and as one that loads the detector."""
    model = make_model(**ENCODERS[name])
    model.save_pretrained(tmp_path / "pretrained")
    levels = torch.randint(model.config.num_levels, (75, 1, 4, 4), dtype=torch.uint8)
    splits = levels.split([40, 20, 15])
    train, validation, test = (embed(model, part, batch_size=8) for part in splits)
    expected = strangeness(train, validation, {"test": test})["test"]

    pixel_values = [part * (2 / (model.config.num_levels - 1)) - 1 for part in splits]
    detector = HybridForOutOfDistributionDetection.from_pretrained(tmp_path / "pretrained")
    assert detector.fit(*pixel_values[:2], batch_size=16) is detector
    detector.save_pretrained(tmp_path / "detector")
    loaded = AutoModel.from_pretrained(tmp_path / "detector")
    assert type(loaded) is HybridForOutOfDistributionDetection
    output = detector(pixel_values[2])
    for kind, values in (
        ("combined", output.scores),
        ("likelihood", output.likelihood_scores),
        ("feature", output.feature_scores),
    ):
        if kind in expected:
            torch.testing.assert_close(values, torch.from_numpy(expected[kind]), rtol=1e-4, atol=1e-4)
        else:
            assert name == "bidirectional" and kind == "likelihood" and values is None
    again = loaded(pixel_values[2])
    assert again.keys() == output.keys()
    for key, values in again.items():
        torch.testing.assert_close(values, output[key], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded(pixel_values[2], return_dict=False)[0], output.scores, rtol=1e-5, atol=1e-5)
