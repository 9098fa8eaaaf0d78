"""Hidden states and attention weights of every class: how many, of what, and that asking for them changes nothing."""

import pytest
import torch
import transformers
from model_fixtures import ENCODERS
from packaging.version import Version

from modeling_hybrid import (
    HybridForImageClassification,
    HybridForImageGeneration,
    HybridForOutOfDistributionDetection,
    HybridForPreTraining,
    HybridModel,
)


WANTED = {"output_hidden_states": True, "output_attentions": True}


@pytest.fixture
def build(make_model, draw_images):
    """A model, in which attention is written out so that it has weights, and three images or two views of them."""

    def build(model_class, **fields):
        model = make_model(model_class, attn_implementation="eager", **fields)
        x = draw_images(model.config, 6)
        if model_class is HybridForOutOfDistributionDetection:
            model.fit(x, x)
        return model, x.view(2, 3, 1, 4, 4) if model_class is HybridForPreTraining else x[:3]

    return build


@pytest.mark.parametrize(
    ("model_class", "num_layers", "rows"),
    [
        (HybridModel, 2, 3),
        (HybridForImageClassification, 2, 3),
        (HybridForImageGeneration, 3, 3),
        (HybridForOutOfDistributionDetection, 3, 3),
        (HybridForPreTraining, 3, 6),
    ],
)
@torch.no_grad()
def test_every_class_gives_those_of_its_layers(build, model_class, num_layers, rows):
    model, x = build(model_class)
    plain, output = model(x), model(x, **WANTED)
    assert plain.get("hidden_states") is None and plain.get("attentions") is None
    for name in plain:
        torch.testing.assert_close(output[name], plain[name])
    assert len(output.hidden_states) == num_layers + 1
    # The decoder sees the tag and all patches but the last.
    positions = [5, 5, 5, 4][: num_layers + 1]
    assert [tuple(states.shape) for states in output.hidden_states] == [(rows, t, 16) for t in positions]
    assert [tuple(weights.shape) for weights in output.attentions] == [(rows, 2, t, t) for t in positions[1:]]
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    as_tuple = model(x, **WANTED, return_dict=False)
    assert any(part is not None and len(part) == num_layers + 1 for part in as_tuple if isinstance(part, tuple))
    model.config.output_hidden_states = True
    assert len(model(x).hidden_states) == num_layers + 1


@torch.no_grad()
def test_they_are_what_the_model_computes_with(build):
    model, x = build(HybridForImageGeneration)
    states = model(x, output_hidden_states=True).hidden_states
    encoder = model.encoder(x, output_hidden_states=True)
    for own, others in zip(states, encoder.hidden_states, strict=False):
        torch.testing.assert_close(own, others)
    torch.testing.assert_close(model.encoder.stack.norm(states[2])[:, 1:], encoder.last_hidden_state)
    codes = torch.randint(5, (3, 4, 4))
    logits = model(codes=codes).logits
    states = model(codes=codes, output_hidden_states=True).hidden_states
    torch.testing.assert_close(model.depth_head(model.decoder.norm(states[-1]), codes), logits)


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.23"), reason="transformers 5.23 brings it")
@torch.no_grad()
def test_one_layer_alone_counted_from_the_end(build):
    model, x = build(HybridForImageGeneration)
    for chosen_from, last in ((model, 3), (model.encoder, 2)):
        chosen = chosen_from(x, output_hidden_states=[-1]).hidden_states
        assert [part is not None for part in chosen] == [False] * last + [True]


@pytest.mark.parametrize("model_class", [HybridForPreTraining, HybridForOutOfDistributionDetection])
@torch.no_grad()
def test_a_second_pass_adds_its_own(build, model_class):
    model, x = build(model_class, **ENCODERS["two passes"])
    assert len(model(x, output_hidden_states=True).hidden_states) == 1 + 2 + 2 + 1


@torch.no_grad()
def test_the_momentum_encoder_has_none(build):
    model, x = build(HybridForPreTraining, objective={"name": "mochi", "queue_size": 40, "num_hard": 8})
    output = model(x, **WANTED)
    assert (len(output.hidden_states), len(output.attentions)) == (4, 3)
