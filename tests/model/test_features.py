"""Features: one encoder whatever class holds it, poolings, attention back ends, precision, initial weights."""

import pytest
import torch
from model_fixtures import ENCODERS
from transformers import AutoModel

from modeling_hybrid import (
    HybridForImageClassification,
    HybridForImageGeneration,
    HybridForPreTraining,
    HybridModel,
)
from modeling_hybrid.patch_codes import pixels_to_codes
from modeling_hybrid.pooling import POOLINGS


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("pooling", POOLINGS)
@torch.no_grad()
def test_one_checkpoint_one_feature(make_model, draw_images, tmp_path, name, pooling):
    """The encoder alone, inside the pre-training model and from the checkpoint: the same features."""
    model = make_model(pooling=pooling, **ENCODERS[name])
    model.save_pretrained(tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path)
    x = draw_images(model.config, 6)
    output = encoder(x)
    assert output.last_hidden_state.shape == (6, 4, 16)
    assert output.pooler_output.shape == (6, model.config.pooled_size)
    views = model(x.view(2, 3, *x.shape[1:])).pooler_output.flatten(0, 1)
    codes = pixels_to_codes(x, model.config)
    for again in (encoder(x).pooler_output, encoder(codes=codes).pooler_output, views):
        torch.testing.assert_close(again, output.pooler_output)


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_what_the_first_patch_sees(make_model, draw_images, name):
    encoder = make_model(HybridModel, **ENCODERS[name])
    x = draw_images(encoder.config, 1)
    changed = x.clone()
    changed[..., -1, -1] *= -1
    changed[..., -1, -1] += 0.5 * (x[..., -1, -1] == 0)
    difference = (encoder(x).last_hidden_state - encoder(changed).last_hidden_state).abs().amax(-1)[0]
    sees = [False, False, False, True] if name == "causal" else [True] * 4
    assert (difference > 1e-2).tolist() == sees and (difference < 1e-5).tolist() == [not seen for seen in sees]


@torch.no_grad()
def test_features_know_the_view_tag(make_model, draw_images):
    encoder = make_model(HybridModel)
    x = draw_images(encoder.config)
    clean, augmented = (encoder(x, view_kinds=torch.full((3,), kind)).pooler_output for kind in (0, 1))
    torch.testing.assert_close(encoder(x).pooler_output, clean)
    assert (clean - augmented).abs().max() > 0.1


@torch.no_grad()
def test_poolings_are_the_means_they_claim(make_model, draw_images):
    # Of three patches a side, the middle row and column count on both sides of a grid of two.
    for side, grid, starts in ((4, 2, (0, 2)), (3, 2, (0, 1)), (4, 1, (0,)), (4, 4, range(4))):
        encoder = make_model(HybridModel, image_size=2 * side, pooling="regional", pooling_grid=grid)
        output = encoder(draw_images(encoder.config))
        patches = output.last_hidden_state.view(3, side, side, 16)
        length = -(-side // grid)
        regions = [patches[:, r : r + length, c : c + length].mean((1, 2)) for r in starts for c in starts]
        torch.testing.assert_close(output.pooler_output, torch.cat(regions, dim=1))
        assert output.pooler_output.shape == (3, encoder.config.pooled_size)

    encoder = make_model(HybridModel, pooling="mean")
    output = encoder(draw_images(encoder.config))
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state.mean(1))


@torch.no_grad()
def test_contextual_pooling_mixes_what_the_likelihood_keeps_apart(make_model, draw_images):
    encoder = make_model(HybridModel, pooling="contextual")
    x = draw_images(encoder.config)
    changed = x.clone()
    changed[..., -1, -1] = -1.0 * (x[..., -1, -1] >= 0)
    before, after = encoder(x), encoder(changed)
    torch.testing.assert_close(before.last_hidden_state[:, 0], after.last_hidden_state[:, 0])
    assert (before.pooler_output - after.pooler_output)[:, :16].abs().amax(dim=1).min() > 1e-2
    # Two patches a side and two regions: no averages, only the layer and its norm.
    expected = encoder.pooler.norm(encoder.pooler.layer(before.last_hidden_state, is_causal=False))
    torch.testing.assert_close(before.pooler_output, expected.flatten(1))


@torch.no_grad()
def test_attention_pooling_averages_each_head(make_model):
    pooler = make_model(HybridModel).pooler
    states = torch.randn(3, 4, 16)
    values = pooler.value(states)
    expected = torch.zeros(3, 16)
    for b in range(3):
        for head in range(2):
            weights = pooler.score(states[b])[:, head].exp()
            for s in range(4):
                share = slice(8 * head, 8 * head + 8)
                expected[b, share] += weights[s] / weights.sum() * values[b, s, share]
    torch.testing.assert_close(pooler(states), expected)


@pytest.mark.parametrize("implementation", ["eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_attention_back_ends_agree(make_model, draw_images, name, implementation):
    model = make_model(hidden_size=32, pooling="contextual", **ENCODERS[name])
    x = draw_images(model.config, 4).view(2, 2, 1, 4, 4)
    model.set_attn_implementation("sdpa")
    expected = model(x)
    model.set_attn_implementation(implementation)
    assert model.encoder.config._attn_implementation == implementation
    output = model(x)
    torch.testing.assert_close(output.pooler_output, expected.pooler_output)
    torch.testing.assert_close(output.loss, expected.loss)


@pytest.mark.parametrize("pooling", POOLINGS)
@torch.no_grad()
def test_hidden_states_and_attentions_on_request(make_model, draw_images, pooling):
    model = make_model(HybridModel, attn_implementation="eager", pooling=pooling)
    x = draw_images(model.config)
    output = model(x, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 3
    assert all(state.shape == (3, 5, 16) for state in output.hidden_states)
    assert [weights.shape for weights in output.attentions] == [(3, 2, 5, 5)] * 2
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 5))
        assert not weights.triu(1).any()
    torch.testing.assert_close(model.stack.norm(output.hidden_states[-1])[:, 1:], output.last_hidden_state)
    classified = make_model(HybridForImageClassification)(x, output_hidden_states=True)
    assert len(classified.hidden_states) == 3
    torch.testing.assert_close(model(x, return_dict=False)[1], output.pooler_output)


def test_classifier_loss_and_gradients(make_model, draw_images):
    model = make_model(HybridForImageClassification, num_labels=5)
    x, labels = draw_images(model.config, 4), torch.tensor([0, 4, -100, 2])
    output = model(pixel_values=x, labels=labels)
    assert output.logits.shape == (4, 5)
    expected = torch.nn.functional.cross_entropy(output.logits[[0, 1, 3]], labels[[0, 1, 3]])
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model(x).loss is None


@pytest.mark.parametrize(
    "overrides",
    [{}, {"pooling": "contextual"}, {"patch_size": 1}, {"encoder_attention": "bidirectional", "generative_weight": 0}],
)
def test_every_parameter_is_initialised(tiny_config, overrides, monkeypatch):
    """Parameters filled with NaN before `post_init`: what stays NaN was forgotten."""
    for model_class in (HybridForPreTraining, HybridForImageGeneration, HybridForImageClassification, HybridModel):
        original = model_class.post_init

        def fill(self, original=original):
            with torch.no_grad():
                for module in self.modules():
                    module._is_hf_initialized = False
                for parameter in self.parameters():
                    parameter.fill_(torch.nan)
                    parameter._is_hf_initialized = False
            original(self)

        with monkeypatch.context() as context:
            context.setattr(model_class, "post_init", fill)
            model = model_class(tiny_config(**overrides))
        forgotten = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
        assert not forgotten


@torch.no_grad()
def test_all_of_it_in_bfloat16(make_model, draw_images):
    """Cast as pipelines do, images included: 256 levels are still told apart."""
    model = make_model(num_levels=256)
    x = draw_images(model.config, 16)
    expected = model(x.view(2, 8, 1, 4, 4))
    half = model.to(torch.bfloat16)
    assert torch.equal(pixels_to_codes(x.bfloat16(), model.config), pixels_to_codes(x, model.config))
    output = half(x.bfloat16().view(2, 8, 1, 4, 4))
    assert output.pooler_output.dtype is torch.bfloat16
    for name in ("loss", "contrastive_loss", "generative_loss", "nll", "projections"):
        assert getattr(output, name).dtype is torch.float32
    torch.testing.assert_close(output.loss, expected.loss, rtol=0.03, atol=0)
    torch.testing.assert_close(output.nll, expected.nll, rtol=0.03, atol=0)
