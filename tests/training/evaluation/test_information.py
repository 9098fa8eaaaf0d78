"""What the feature knows of its image, and what the decoder's states know of the class."""

import numpy as np
import pytest
import torch
from PIL import Image
from training_fixtures import load_splits_once, small_config

from modeling_hybrid import HybridForPreTraining, HybridImageProcessor
from modeling_hybrid.levels import levels_to_pixels
from training.evaluation.probes import join
from training.evaluation.questions import decoder_features, information, kept, latent, two_stages
from training.evaluation.subject import Subject
from training.reports.reported import TWO_STAGES


pytestmark = pytest.mark.usefixtures("one_thread")


def build(folder, **overrides) -> Subject:
    """An untrained model with weights that hide nothing, and few digits."""
    config = small_config(folder, evaluation__batch_size=32, **overrides)
    model = HybridForPreTraining(config.model_config()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    splits = load_splits_once(config.data, model.config)
    return Subject(model, HybridImageProcessor.from_config(model.config), config, splits, folder)


def test_bits_are_those_of_the_model_and_variations_are_drawn(tmp_path):
    subject = build(tmp_path, model__decoder_condition="features")
    findings = information.evaluate(subject)
    pixel_values = levels_to_pixels(subject.levels["test"], 17)
    features = torch.from_numpy(subject.features["test"])
    with torch.no_grad():
        own, other = (subject.model.information(pixel_values, rows) for rows in (features, features.roll(1, 0)))
    np.testing.assert_allclose(findings.per_image["information_bits"], own, rtol=1e-3, atol=1e-3)
    assert findings.results["information_bits"] == pytest.approx(own.mean().item(), abs=1e-3)
    assert findings.results["information_bits_per_dim"] == pytest.approx(own.mean().item() / 64, abs=1e-3)
    assert findings.results["information_bits_of_another"] == pytest.approx(other.mean().item(), abs=1e-3)
    assert {"variation_cosine", "variation_cosine_of_another", "variation_auroc"} < findings.results.keys()
    assert findings.num_images == {"variations": 20}
    with Image.open(tmp_path / "variations.png") as sheet:
        assert sheet.width / sheet.height == pytest.approx(9 / 12, rel=0.05)

    for name in ("interpolations.png", "information_map.png"):
        assert (tmp_path / name).exists()
    found = information.maps(subject, subject.levels["test"][:3], features[:3])
    with torch.no_grad():
        nats = subject.model.nll_map(pixel_values[:3]).view(3, 4, 4)
        saved = subject.model.information_map(pixel_values[:3], features[:3]).view(3, 4, 4)
    surprise, explained = found.values()
    np.testing.assert_allclose(surprise, nats / np.log(2), rtol=1e-4)
    np.testing.assert_allclose(explained, saved, rtol=1e-3, atol=1e-4)


def test_a_model_that_is_told_nothing_is_not_asked(tmp_path):
    subject = build(tmp_path)
    for question in (information, two_stages, latent, kept):
        assert question.evaluate(subject).results == {}


def test_two_stages_are_compared_by_guidance(tmp_path, monkeypatch):
    subject = build(tmp_path, model__decoder_condition="features", evaluation__num_scored_samples=8)
    drawn = []
    draw = information.draw_from

    def watched(subject, features, generator, scale):
        drawn.append((scale, features))
        return draw(subject, features, generator, scale)

    monkeypatch.setattr(two_stages, "draw_from", watched)
    findings = two_stages.evaluate(subject)
    assert [scale for scale, _ in drawn] == [1.0, 1.5, 3.0]
    assert all(torch.equal(features, drawn[0][1]) for _, features in drawn)
    for prefix in two_stages.GUIDANCE_SCALES:
        keys = ("frechet_distance", "precision", "recall", "legible_share")
        assert {prefix + key for key in keys} < findings.results.keys()
    assert set(two_stages.GUIDANCE_SCALES) == set(TWO_STAGES)
    with Image.open(tmp_path / "two_stages.png") as sheet:
        assert sheet.width / sheet.height == pytest.approx(3, rel=0.05)


def test_a_decoder_learns_to_read_what_features_keep(tmp_path):
    """Images are black or white: one bit, where features tell which. Encoders without a likelihood are asked too."""
    settings = {"model__generative_weight": 0, "model__encoder_attention": "bidirectional"}
    subject = build(tmp_path, evaluation__num_decoder_steps=80, model__hidden_dropout=0, **settings)
    width, is_white = subject.features["train"].shape[1], {}
    for split, levels in subject.levels.items():
        is_white[split] = torch.randint(2, (len(levels), 1))
        subject.levels[split] = 16 * is_white[split][:, :, None, None].expand_as(levels)
    pattern = torch.randn(width)
    results = {}
    for name in ("telling", "noise"):
        for split, white in is_white.items():
            rows = (2 * white - 1) * pattern if name == "telling" else torch.randn(len(white), width)
            subject.features[split] = rows.float().numpy()
        findings = kept.evaluate(subject)
        results[name] = found = findings.results
        difference = found["bits_without_features"] - found["bits_given_features"]
        assert found["kept_bits"] == pytest.approx(difference, abs=1e-3)
        assert findings.per_image["kept_bits"].mean() == pytest.approx(found["kept_bits"], abs=1e-3)
    # What tells nothing may cost bits, as the decoder is misled by it, but saves none.
    assert results["telling"]["kept_bits"] > 0.6 and results["noise"]["kept_bits"] < 0.3
    assert results["telling"]["kept_bits_of_another"] < 0.3


def test_likelihoods_of_a_model_with_latents(tmp_path):
    settings = {"model__decoder_condition": "latent", "model__objective": "{name: cmim}"}
    subject = build(tmp_path, **settings, augmentation__num_augmented_views=0)
    findings = latent.evaluate(subject)
    pixel_values = levels_to_pixels(subject.levels["test"][:20], 17)
    with torch.no_grad():
        nats = subject.model.log_likelihood(pixel_values, features=subject.model.posterior(pixel_values).mean)
    np.testing.assert_allclose(
        findings.per_image["conditional_bits_per_dim"], -nats / (64 * np.log(2)), rtol=1e-3, atol=1e-4
    )
    assert findings.results.keys() == {"conditional_bits_per_dim", "estimated_bits_per_dim"}
    assert "bits_per_dim" not in findings.results and findings.num_images == {"estimated": 20}
    assert information.evaluate(subject).results == {} and two_stages.evaluate(subject).results == {}
    assert decoder_features.evaluate(subject).results["decoder_linear_accuracy"] > 0


def test_closeness_around_the_centre():
    generator, centre = np.random.default_rng(0), np.array([5.0, 0, 0])
    given = generator.normal(size=(200, 3)) + centre
    same = information.closeness(given, centre + 3 * (given - centre), centre)
    assert same["variation_cosine"] == pytest.approx(1) and same["variation_auroc"] == pytest.approx(1, abs=0.02)
    assert abs(same["variation_cosine_of_another"]) < 0.2
    unrelated = information.closeness(given, generator.normal(size=(200, 3)) + centre, centre)
    assert abs(unrelated["variation_cosine"]) < 0.2 and unrelated["variation_auroc"] == pytest.approx(0.5, abs=0.1)


def test_decoder_features_are_probed(tmp_path):
    subject = build(tmp_path)
    with torch.no_grad():
        expected = subject.model.decoder_features(levels_to_pixels(subject.levels["test"], 17))
    np.testing.assert_allclose(subject.decoder_features["test"], expected, rtol=1e-4, atol=1e-4)
    results = decoder_features.evaluate(subject).results
    names = ("linear_accuracy", "knn_accuracy", "few_shot_accuracy")
    assert results.keys() == {f"{prefix}{name}" for prefix in ("decoder_", "joined_") for name in names}
    assert all(0 <= value <= 1 for value in results.values())
    # As wide as the encoder's (64), or as there are training images.
    assert subject.joined_features["test"].shape == (60, 60)

    subject.labels = None
    assert decoder_features.evaluate(subject).results == {}
    assert decoder_features.evaluate(build(tmp_path, model__generative_weight=0)).results == {}


def test_joined_features_know_what_either_knows():
    """The class shows in the sign of one column of each; neither alone, nor a width above that of one, would do."""
    generator = np.random.default_rng(0)
    shared = {name: generator.normal(size=(n, 2)) for name, n in (("train", 300), ("test", 100))}
    noise = {name: 0.01 * generator.normal(size=(len(rows), 2)) for name, rows in shared.items()}
    one = {name: np.repeat(rows[:, :1], 2, axis=1) + noise[name] for name, rows in shared.items()}
    other = {name: 100 * np.repeat(rows[:, 1:], 2, axis=1) + noise[name] for name, rows in shared.items()}
    joined = join(one, other)
    assert joined["test"].shape == (100, 2)
    for name in shared:
        # Both directions are there, whatever their units.
        coefficients, *_ = np.linalg.lstsq(joined[name], shared[name] - shared[name].mean(0), rcond=None)
        residual = shared[name] - shared[name].mean(0) - joined[name] @ coefficients
        assert np.abs(residual).max() < 0.2
    # Columns of about one size: a probe that standardises them changes little.
    wide = join(
        {"train": np.eye(40)[:, :8] + generator.normal(size=(40, 8))}, {"train": generator.normal(size=(40, 8))}
    )
    assert wide["train"].std(axis=0).max() < 2 * wide["train"].std(axis=0).min()
