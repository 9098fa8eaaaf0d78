"""Features of the decoder: the states of all patches under teacher forcing, averaged."""

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

from modeling_hybrid import (
    HybridForImageClassification,
    HybridForImageGeneration,
    HybridForPreTraining,
    HybridImageProcessor,
    HybridModel,
)
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


# By what `features_from` asks for, of a checkpoint: the parts of `pooler_output`.
PARTS = {"encoder": [0], "decoder": [1], "joined": [0, 1]}


@pytest.fixture(
    params=[{}, {"encoder_attention": "two_pass"}, {"pooling": "contextual", "decoder_condition": "features"}]
)
def checkpoint(make_model, draw_images, request, tmp_path):
    """A folder, images, and features of encoder and decoder."""
    model = make_model(**request.param)
    model.save_pretrained(tmp_path)
    HybridImageProcessor.from_config(model.config).save_pretrained(tmp_path)
    x = draw_images(model.config)
    with torch.no_grad():
        return tmp_path, x, (model.encoder(x).pooler_output, model.decoder_features(x))


@torch.no_grad()
@pytest.mark.parametrize("source", PARTS)
def test_every_class_gives_the_features_that_the_configuration_names(checkpoint, source, tmp_path_factory):
    """Of any checkpoint, without training; what is saved from it gives them again."""
    path, x, features = checkpoint
    expected = torch.cat([features[part] for part in PARTS[source]], dim=1)
    encoder = AutoModel.from_pretrained(path, features_from=source)
    torch.testing.assert_close(encoder(x).pooler_output, expected)
    assert encoder.config.feature_size == expected.shape[1]
    classifier = AutoModelForImageClassification.from_pretrained(path, features_from=source, num_labels=3)
    torch.testing.assert_close(classifier(x).logits, classifier.classifier(expected))
    for model in (encoder, classifier):
        again = tmp_path_factory.mktemp("again")
        model.save_pretrained(again)
        torch.testing.assert_close(HybridModel.from_pretrained(again)(x).pooler_output, expected)
        assert HybridForImageClassification.from_pretrained(again).config.features_from == source
    torch.testing.assert_close(HybridForImageClassification.from_pretrained(again)(x).logits, classifier(x).logits)


def test_pipelines_give_them(checkpoint):
    path, x, (_, expected) = checkpoint
    images = AutoImageProcessor.from_pretrained(path).pixels_to_images(x)
    assert isinstance(images[0], Image.Image)
    extractor = pipeline(
        "image-feature-extraction", path, pool=True, trust_remote_code=False, model_kwargs={"features_from": "decoder"}
    )
    torch.testing.assert_close(torch.tensor(extractor(images))[:, 0], expected)


def test_losses_and_generation_keep_the_encoders(checkpoint):
    path, x, features = checkpoint
    model = HybridForPreTraining.from_pretrained(path, features_from="joined")
    with torch.no_grad():
        torch.testing.assert_close(model.encoder(x).pooler_output, features[0])
    assert model(torch.stack([x, x])).loss.isfinite()
    names = [name for name, _ in model.named_parameters()]
    assert not any(name.startswith("encoder.decoder") for name in names)


def test_with_their_own_code(make_model, draw_images, run_python, tmp_path):
    model = make_model(features_from="joined")
    model.save_pretrained(tmp_path)
    x = draw_images(model.config)
    with torch.no_grad():
        expected = torch.cat([model.encoder(x).pooler_output, model.decoder_features(x)], dim=1)
    torch.save((x, expected), tmp_path / "expected.pt")
    code = f"""
import torch
from transformers import AutoModel

path = {str(tmp_path)!r}
x, expected = torch.load(path + "/expected.pt")
with torch.no_grad():
    found = AutoModel.from_pretrained(path, trust_remote_code=True)(x).pooler_output
torch.testing.assert_close(found, expected)
print("agree")
"""
    assert "agree" in run_python(code, package=False)


def test_a_decoder_that_is_not_there(make_model, tiny_config, tmp_path):
    make_model(HybridModel).save_pretrained(tmp_path)
    for cls in (HybridModel, HybridForImageClassification):
        with pytest.raises(ValueError, match="reads the decoder, which this checkpoint lacks"):
            cls.from_pretrained(tmp_path, features_from="decoder")
    with pytest.raises(Exception, match=r"reads the decoder, which is off \(generative_weight=0\)"):
        tiny_config(features_from="decoder", generative_weight=0)
