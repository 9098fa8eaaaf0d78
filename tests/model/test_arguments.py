"""What models say to arguments, batches and checkpoints that nobody means."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from modeling_hybrid import (
    HybridForImageClassification,
    HybridForImageGeneration,
    HybridForOutOfDistributionDetection,
    HybridForPreTraining,
    HybridModel,
)


CLASSES = [HybridModel, HybridForImageClassification, HybridForImageGeneration, HybridForOutOfDistributionDetection]


@pytest.fixture
def build(make_model, draw_images):
    def build(model_class):
        model = make_model(model_class)
        x = draw_images(model.config, 6)
        if model_class is HybridForOutOfDistributionDetection:
            model.fit(x, x)
        return model, x.view(2, 3, 1, 4, 4) if model_class is HybridForPreTraining else x

    return build


@pytest.mark.parametrize("model_class", [*CLASSES, HybridForPreTraining])
def test_unexpected_arguments_are_refused(build, model_class):
    model, x = build(model_class)
    with pytest.raises(TypeError, match=r"Unexpected argument 'view_kind': pixel_values, codes and view_kinds"):
        model(x, view_kind=torch.zeros(6))
    with pytest.raises(TypeError, match=r"Unexpected argument 'attention_mask'.*nothing to mask"):
        model(x, attention_mask=torch.ones(6, 5))
    assert model(x, attention_mask=None, output_hidden_states=False).keys() == model(x).keys()


@pytest.mark.parametrize("model_class", [*CLASSES, HybridForPreTraining])
def test_a_batch_without_images_is_refused(build, model_class):
    model, x = build(model_class)
    with pytest.raises(ValueError, match=r"shape \(0, 1, 4, 4\): no image; pass one or more"):
        model(x[:, :0] if model_class is HybridForPreTraining else x[:0])
    if model_class is HybridModel:
        with pytest.raises(ValueError, match=r"shape \(0, 4, 4\): no image"):
            model(codes=torch.zeros(0, 4, 4, dtype=torch.long))


def test_embeddings_of_levels_can_be_replaced_but_not_resized(make_model):
    model = make_model(HybridForImageGeneration)
    replacement = nn.Embedding(5, 4)
    model.set_input_embeddings(replacement)
    assert model.get_input_embeddings() is model.encoder.embeddings.code_embedding is replacement
    with pytest.raises(ValueError, match="choose num_levels in the configuration"):
        model.resize_token_embeddings(7)


@pytest.mark.parametrize("source", [HybridModel, HybridForImageClassification])
def test_a_checkpoint_without_decoder_neither_scores_nor_samples(make_model, draw_images, source, tmp_path):
    """Its scores would be those of random weights."""
    model = make_model(source)
    model.save_pretrained(tmp_path)
    x = draw_images(model.config, 3)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    detector = HybridForOutOfDistributionDetection.from_pretrained(tmp_path)
    for call in (loaded, loaded.log_likelihood, lambda x: loaded.generate(), lambda x: detector.fit(x, x)):
        with pytest.raises(ValueError, match="no decoder or depth head"):
            call(x)
    loaded.train()(x).loss.backward()
    assert loaded.eval().log_likelihood(x).isfinite().all()
    model = make_model()
    model.save_pretrained(tmp_path / "whole")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "whole").log_likelihood(x).isfinite().all()


@torch.no_grad()
def test_a_detector_of_broken_weights_is_not_fitted(build):
    model, x = build(HybridForOutOfDistributionDetection)
    model.encoder.stack.norm.weight[0] = torch.nan
    with pytest.raises(ValueError, match="training features hold values that are infinite or not a number"):
        model.fit(x, x)


@torch.no_grad()
def test_a_detector_in_half_precision_keeps_its_statistics(build):
    model, _ = build(HybridForOutOfDistributionDetection)
    before = {name: value.clone() for name, value in model.strangeness.state_dict().items()}
    model.to(torch.bfloat16)
    assert model.dtype is torch.bfloat16
    for name, value in model.strangeness.state_dict().items():
        assert value.dtype is before[name].dtype and torch.equal(value, before[name]), name
