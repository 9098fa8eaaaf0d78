"""A density of the features is what it was fitted on, and travels with the checkpoint."""

import math

import pytest
import torch

from modeling_hybrid import HybridForImageGeneration, HybridForPreTraining, HybridModel
from modeling_hybrid.feature_density import FeatureDensity, k_means


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def clusters() -> tuple[torch.Tensor, torch.Tensor]:
    """300 and 100 and 100 rows (N, 3) around three centres, with one covariance; and the covariance's factor."""
    factor = torch.tensor([[1.0, 0, 0], [0.8, 0.5, 0], [0, 0.3, 0.2]])
    centres = torch.tensor([[20.0, 0, 0], [-20, 10, 0], [0, -20, 30]])
    return centres.repeat_interleave(torch.tensor([300, 100, 100]), dim=0) + torch.randn(500, 3) @ factor.T, factor


def test_one_gaussian_has_the_moments_of_the_features():
    features = torch.randn(4000, 3) @ torch.randn(3, 3) + torch.randn(3)
    samples = FeatureDensity(3, 1).fit(features).sample(40_000, seeded())
    torch.testing.assert_close(samples.mean(0), features.mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(samples.T.cov(), features.T.cov(), rtol=0.1, atol=0.1)


def test_clusters_are_found_with_their_shares_and_their_common_covariance():
    features, factor = clusters()
    density = FeatureDensity(3, 3).fit(features)
    order = density.shares.argsort(descending=True)
    assert density.shares[order].tolist() == pytest.approx([0.6, 0.2, 0.2])
    torch.testing.assert_close(density.means[order[0]], features[:300].mean(0))
    torch.testing.assert_close(density.spread @ density.spread.T, factor @ factor.T, rtol=0, atol=0.25)
    samples = density.sample(2000, seeded())
    assert (torch.cdist(samples, density.means).amin(1) < 6).all()
    near_first = (torch.cdist(samples, density.means).argmin(1) == order[0]).float().mean()
    assert near_first == pytest.approx(0.6, abs=0.05)


def test_the_same_features_give_the_same_density_and_a_seed_the_same_draw():
    features, _ = clusters()
    one, other = (FeatureDensity(3, 5).fit(features) for _ in range(2))
    assert all(torch.equal(*buffers) for buffers in zip(one.buffers(), other.buffers(), strict=True))
    assert torch.equal(one.sample(7, seeded()), other.sample(7, seeded()))
    assert not torch.equal(one.sample(7), one.sample(7))


def test_more_clusters_than_distinct_rows():
    rows = torch.tensor([[0.0, 1], [2, 3]]).repeat(5, 1)
    means, nearest = k_means(rows, 4)
    torch.testing.assert_close(means[nearest], rows)
    samples = FeatureDensity(2, 4).fit(rows).sample(50)
    torch.testing.assert_close(torch.cdist(samples, rows).amin(1), torch.zeros(50), rtol=0, atol=1e-3)


def test_two_stages(make_model, draw_images, tmp_path):
    """Fitted on images or on batches of them; saved; no other class carries or misses it."""
    model = make_model(HybridForPreTraining, decoder_condition="features").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = draw_images(model.config, 40)
    assert model.fit_feature_density(x, num_components=2, batch_size=7) is model and not model.training
    with torch.no_grad():
        expected = FeatureDensity(model.config.pooled_size, 2).fit(model.encoder(x).pooler_output)
    found = dict(model.feature_density.named_buffers())
    for name, buffer in expected.named_buffers():
        torch.testing.assert_close(found[name], buffer, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    features = model.sample_features(5, generator=seeded())
    assert model.generate(features=features).shape == (5, 4, 4)

    model.save_pretrained(tmp_path)
    loaded = HybridForImageGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded.sample_features(5, generator=seeded()), features)
    in_half = HybridForImageGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert in_half.generate(features=in_half.sample_features(2)).shape == (2, 4, 4)
    assert not any("density" in name for name in HybridModel.from_pretrained(tmp_path).state_dict())
    # Fitted again, with another number.
    assert loaded.fit_feature_density([x[:20], x[20:], x[:0]], 1).feature_density.means.shape == (1, 16)
    loaded.save_pretrained(tmp_path)
    assert HybridForPreTraining.from_pretrained(tmp_path).feature_density.means.shape == (1, 16)


def test_refusals(make_model, draw_images):
    model = make_model(decoder_condition="features")
    x = draw_images(model.config, 5)
    with pytest.raises(ValueError, match=r"no density of the features to draw from yet; call fit_feature_density\(\)"):
        model.sample_features(3)
    unfitted = make_model(decoder_condition="features", num_density_components=2)
    with pytest.raises(ValueError, match="no density of the features"):
        unfitted.sample_features(3)
    for images in (x[:3], x[:0], []):
        with pytest.raises(ValueError, match=r"There are \d images, expected 4 or more"):
            model.fit_feature_density(images, num_components=2)
    with pytest.raises(ValueError, match="num_components=0 must be at least 1"):
        model.fit_feature_density(x, num_components=0)
    with pytest.raises(ValueError, match="infinite or not a number"):
        FeatureDensity(2, 1).fit(torch.tensor([[1.0, 2], [math.nan, 0]]))
    with pytest.raises(ValueError, match="no condition"):
        make_model().fit_feature_density(x)
