"""The detector: its statistics against scikit-learn, what it ranks, and its checkpoints."""

import json

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from transformers import AutoModel, AutoModelForCausalLM

from modeling_hybrid import (
    HybridForImageClassification,
    HybridForImageGeneration,
    HybridForOutOfDistributionDetection,
    HybridForPreTraining,
    HybridModel,
)
from modeling_hybrid.strangeness import StrangenessScore, ledoit_wolf, whitening_matrix


@pytest.fixture
def detector(make_model):
    return make_model(HybridForOutOfDistributionDetection)


@pytest.fixture
def fitted(detector, draw_images):
    return detector.fit(draw_images(detector.config, 40), draw_images(detector.config, 20))


@pytest.mark.parametrize("shape", [(200, 5), (10, 30), (2, 4), (50, 1)])
def test_covariance_is_that_of_scikit_learn(shape):
    features = np.random.default_rng(0).normal(size=shape) * np.linspace(1, 3, shape[1]) + 5
    features[:, -1] += 2 * features[:, 0]
    mean, covariance = ledoit_wolf(torch.from_numpy(features))
    expected = LedoitWolf().fit(features)
    np.testing.assert_allclose(mean, expected.location_, rtol=1e-12)
    np.testing.assert_allclose(covariance, expected.covariance_, rtol=1e-9, atol=1e-12)
    whitening = whitening_matrix(covariance)
    np.testing.assert_allclose(whitening @ whitening.T, expected.precision_, rtol=1e-7, atol=1e-9)


def test_covariance_of_equal_features_is_zero():
    mean, covariance = ledoit_wolf(torch.full((6, 3), 2.0, dtype=torch.float64))
    assert torch.equal(mean, torch.full((3,), 2.0, dtype=torch.float64)) and not covariance.any()
    assert not whitening_matrix(covariance).any()


def test_a_trained_model_ranks_noise_above_its_own_kind(tiny_config, draw_images):
    config = tiny_config(contrastive_weight=0)

    def stripes(num_images: int) -> torch.Tensor:
        return draw_images(config, num_images)[..., :1].expand(-1, -1, -1, 4).contiguous()

    detector = HybridForOutOfDistributionDetection(config)
    with pytest.raises(ValueError, match=r"call fit\(\)"):
        detector(stripes(2))
    optimizer = torch.optim.Adam(detector.parameters(), lr=1e-2)
    for _ in range(60):
        loss = -detector.log_likelihood(stripes(64)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    detector.fit(stripes(300), stripes(100))
    with torch.no_grad():
        own, noise = detector(stripes(100)), detector(draw_images(config, 100))
    for name in ("scores", "likelihood_scores", "feature_scores"):
        higher = noise[name][:, None] > own[name]
        assert higher.float().mean() > (0.8 if name == "feature_scores" else 0.98), name
    # The average of minus the log of two tail probabilities.
    assert 1 < own.scores.mean() < 3 < noise.scores.mean()


def test_fit_takes_tensors_batches_and_loaders(detector, draw_images):
    train, validation, x = (draw_images(detector.config, num) for num in (30, 10, 6))
    loader = torch.utils.data.DataLoader(train, batch_size=4)
    scores = [
        detector.fit(*arguments, batch_size=batch_size)(x).scores
        for arguments, batch_size in (
            ((train, validation), 256),
            ((train, validation), 7),
            ((loader, (validation[:3], validation[3:3], validation[3:])), 1),
        )
    ]
    for other in scores[1:]:
        torch.testing.assert_close(other, scores[0], rtol=1e-4, atol=1e-4)


def test_fit_changes_no_weight_and_ignores_dropout(make_model, draw_images):
    detector = make_model(HybridForOutOfDistributionDetection, hidden_dropout=0.5)
    x = draw_images(detector.config, 12)
    before = {name: parameter.clone() for name, parameter in detector.named_parameters()}
    fits = [detector.train().fit(x, x[:6]).strangeness.state_dict() for _ in range(2)]
    assert not detector.training
    assert all(torch.equal(parameter, before[name]) for name, parameter in detector.named_parameters())
    assert not any(name.startswith("strangeness") for name in before)
    for name, value in fits[0].items():
        assert torch.equal(value, fits[1][name]), name


def test_fit_again_forgets_the_first_data(detector, draw_images):
    train, validation, x = (draw_images(detector.config, num) for num in (30, 10, 6))
    expected = detector.fit(train, validation)(x).scores
    assert (detector.fit(x, validation)(x).scores - expected).abs().max() > 0.1
    torch.testing.assert_close(detector.fit(train, validation)(x).scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("num_train", "num_validation", "message"),
    [
        (0, 5, "0 training images, expected 2"),
        (1, 5, "1 training images, expected 2"),
        (5, 1, "1 held-out images, expected 2"),
        (5, 0, "0 held-out images, expected 2"),
    ],
)
def test_too_few_images_are_refused(detector, draw_images, num_train, num_validation, message):
    with pytest.raises(ValueError, match=message):
        detector.fit(draw_images(detector.config, num_train), draw_images(detector.config, num_validation))
    assert not detector.strangeness.is_fitted


def test_two_images_are_enough_and_equal_ones_give_finite_scores(detector, draw_images):
    x = draw_images(detector.config, 6)
    assert detector.fit(x[:2], x[2:4])(x).scores.isfinite().all()
    equal = x[:1].expand(4, -1, -1, -1)
    assert detector.fit(equal, equal)(x).scores.isfinite().all()


def test_images_that_do_not_fit_are_refused(fitted, draw_images):
    x = draw_images(fitted.config, 4)
    for call in (fitted, lambda wrong: fitted.fit(wrong, x), lambda wrong: fitted.fit(x, wrong)):
        with pytest.raises(ValueError, match=r"shape \(4, 1, 4, 3\), expected"):
            call(x[..., :3])
        with pytest.raises(ValueError, match="outside"):
            call(3 * x + 3)


def test_features_and_likelihoods_that_do_not_fit_are_refused():
    score = StrangenessScore(3, with_likelihood=True)
    features, nll = torch.randn(6, 3), torch.randn(6)
    with pytest.raises(ValueError, match="no statistics"):
        score(features, nll)
    score.fit(features, features, nll)
    for wrong in ((features[:, :2], nll), (features[0], nll[:1])):
        with pytest.raises(ValueError, match=r"expected \(num_images, 3\)"):
            score(*wrong)
        with pytest.raises(ValueError, match=r"expected \(num_images, 3\)"):
            score.fit(*wrong[:1], features, nll)
    for wrong in (None, nll[:3]):
        with pytest.raises(ValueError, match="nll has shape"):
            score(features, wrong)
        with pytest.raises(ValueError, match="nll has shape"):
            score.fit(features, features, wrong)
    with pytest.raises(ValueError, match=r"nll has shape \(6,\), expected None"):
        StrangenessScore(3, with_likelihood=False).fit(features, features, nll)


def test_a_plain_checkpoint_gives_a_detector_that_is_not_fitted(make_model, draw_images, run_python, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "pretrained")
    detector, info = HybridForOutOfDistributionDetection.from_pretrained(
        tmp_path / "pretrained", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, buffer in detector.strangeness.named_buffers():
        assert not buffer.any(), name
    x = draw_images(model.config)
    torch.testing.assert_close(detector.log_likelihood(x), model.log_likelihood(x))
    with pytest.raises(ValueError, match=r"call fit\(\)"):
        detector(x)
    # It is saved and loaded like any other.
    detector.save_pretrained(tmp_path / "unfitted")
    with pytest.raises(ValueError, match=r"call fit\(\)"):
        AutoModel.from_pretrained(tmp_path / "unfitted")(x)
    output = run_python(
        f"""
        from modeling_hybrid import HybridForOutOfDistributionDetection
        HybridForOutOfDistributionDetection.from_pretrained({str(tmp_path / "pretrained")!r})
        """
    )
    for word in ("MISSING", "UNEXPECTED", "newly initialized", "not used when initializing"):
        assert word not in output, output


def test_every_class_loads_from_a_detector_and_saves_as_itself(fitted, draw_images, tmp_path):
    fitted.save_pretrained(tmp_path / "detector")
    x = draw_images(fitted.config)
    for model_class in (HybridModel, HybridForImageGeneration, HybridForImageClassification, HybridForPreTraining):
        model, info = model_class.from_pretrained(tmp_path / "detector", output_loading_info=True)
        assert not info["unexpected_keys"]
        encoder = model if model_class is HybridModel else model.encoder
        torch.testing.assert_close(encoder(x).pooler_output, fitted.encoder(x).pooler_output)
        folder = tmp_path / model_class.__name__
        model.save_pretrained(folder)
        auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
        assert auto_map["AutoModel"] == "modeling_hybrid.HybridModel"
        assert type(AutoModel.from_pretrained(folder)) is HybridModel
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "detector")) is HybridForImageGeneration
    auto_map = json.loads((tmp_path / "detector" / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModel"] == "detection_hybrid.HybridForOutOfDistributionDetection"


@torch.no_grad()
def test_another_process_without_the_package(fitted, draw_images, run_python, tmp_path):
    fitted.save_pretrained(tmp_path / "detector")
    x = draw_images(fitted.config, 5)
    torch.save((x, dict(fitted(x)), fitted.encoder(x).pooler_output), tmp_path / "expected.pt")
    again = tmp_path / "again"
    output = run_python(
        f"""
        import torch
        from transformers import AutoModel, AutoModelForCausalLM

        x, expected, features = torch.load({str(tmp_path / "expected.pt")!r})
        again = {str(again)!r}

        def check(folder):
            detector = AutoModel.from_pretrained(folder, trust_remote_code=True)
            with torch.no_grad():
                for name, values in detector(x).items():
                    torch.testing.assert_close(values, expected[name], rtol=1e-4, atol=1e-4)
            return detector

        check({str(tmp_path / "detector")!r}).save_pretrained(again)
        assert (check(again).fit(x, x)(x).scores - expected["scores"]).abs().max() > 0.1

        generator = AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True)
        generator.save_pretrained(again + "_generator")
        encoder = AutoModel.from_pretrained(again + "_generator", trust_remote_code=True)
        torch.testing.assert_close(encoder(x).pooler_output, features)
        print("all agree")
        """,
        package=False,
    )
    assert "all agree" in output
    # The package reads it as well.
    torch.testing.assert_close(AutoModel.from_pretrained(again)(x).scores, fitted(x).scores, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_in_half_precision_the_statistics_stay_as_they_are(fitted, draw_images, tmp_path):
    x = draw_images(fitted.config, 16)
    expected = fitted(x)
    fitted.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.encoder.dtype is torch.bfloat16
    for name, buffer in fitted.strangeness.named_buffers():
        assert torch.equal(half.strangeness.get_buffer(name), buffer), name
    for model in (half, fitted.to(torch.bfloat16)):
        output = model(x)
        for name, values in output.items():
            assert values.dtype is torch.float32, name
            torch.testing.assert_close(values, expected[name], rtol=0.1, atol=0.2)
    refitted = half.fit(x.bfloat16(), x[:8].bfloat16())
    assert refitted(x).scores.isfinite().all() and refitted.strangeness.whitening.dtype is torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.no_grad()
def test_on_a_gpu(fitted, draw_images):
    train, validation, x = (draw_images(fitted.config, num) for num in (40, 20, 5))
    expected = fitted.fit(train, validation)(x).scores
    found = fitted.cuda().fit(train, validation)(x.cuda()).scores
    assert found.is_cuda and fitted.strangeness.whitening.is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)


def test_scores_have_gradients(fitted, draw_images):
    """For fine-tuning or for maps of what makes an image strange, through the states of the patches."""
    fitted(draw_images(fitted.config)).scores.sum().backward()
    assert fitted.encoder.embeddings.code_embedding.weight.grad.abs().max() > 1e-3
