"""Features of the decoder: the states of all patches under teacher forcing, averaged."""

import pytest
import torch

from modeling_hybrid import HybridForImageGeneration, HybridForPreTraining
from modeling_hybrid.patch_codes import pixels_to_codes


@torch.no_grad()
@pytest.mark.parametrize("encoder_attention", ["causal", "two_pass"])
def test_the_mean_over_the_patches(make_model, draw_images, encoder_attention, tmp_path):
    model = make_model(encoder_attention=encoder_attention)
    x = draw_images(model.config, 4)
    found = model.decoder_features(x)
    assert found.shape == (4, 16)
    # All but the state that knows no patch.
    whole = model.decoder_states(*_codes(model, x))
    torch.testing.assert_close(found, whole[:, 1:].mean(1))
    # The last patch is read by the last state alone, and shows.
    other = x.clone()
    other[:, :, 2:, 2:] = -other[:, :, 2:, 2:]
    assert ((model.decoder_features(other) - found).abs().amax(1) > 1e-4).all()
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(HybridForImageGeneration.from_pretrained(tmp_path).decoder_features(x), found)


def _codes(model, x):
    return pixels_to_codes(x, model.config), torch.zeros(len(x), dtype=torch.long)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["regional", "contextual"])
def test_regions_where_the_features_have_regions(make_model, draw_images, pooling):
    model = make_model(pooling=pooling)
    x = draw_images(model.config)
    # Each of the four patches is a region.
    expected = model.decoder_states(*_codes(model, x))[:, 1:].flatten(1)
    torch.testing.assert_close(model.decoder_features(x), expected)
    assert expected.shape == model.encoder(x).pooler_output.shape


def test_a_model_without_a_likelihood_has_none(make_model, draw_images):
    model = make_model(HybridForPreTraining, generative_weight=0)
    with pytest.raises(ValueError, match="no likelihood"):
        model.decoder_features(draw_images(model.config))
