"""Exported once, for any number of images; quantised layers."""

import pytest
import torch
from torch.export import Dim

from modeling_hybrid import (
    HybridForImageClassification,
    HybridForImageGeneration,
    HybridForOutOfDistributionDetection,
    HybridModel,
)


POOLINGS = ["attention", "contextual", "mean", "regional"]


@pytest.mark.parametrize(
    ("model_class", "options"),
    [(HybridModel, {"pooling": pooling}) for pooling in POOLINGS]
    + [
        (model_class, {})
        for model_class in (HybridForImageClassification, HybridForImageGeneration, HybridForOutOfDistributionDetection)
    ]
    # Of a size that no other test has: what is kept of a size is first computed here.
    + [(HybridForOutOfDistributionDetection, {"code_distribution": "logistic_mixture", "image_size": 6})],
)
@torch.no_grad()
def test_exported_for_any_batch(make_model, draw_images, model_class, options):
    model = make_model(model_class, **options)
    x = draw_images(model.config, 9)
    if model_class is HybridForOutOfDistributionDetection:
        features = torch.randn(40, model.config.regional_size)
        model.strangeness.fit(features, features, torch.randn(40))
    program = torch.export.export(
        model, (), {"pixel_values": x[:3]}, dynamic_shapes={"pixel_values": {0: Dim("batch")}}, strict=False
    )
    found, expected = program.module()(pixel_values=x), model(x)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("pooling", POOLINGS)
@torch.no_grad()
def test_linear_layers_can_be_quantised(make_model, draw_images, pooling):
    model = make_model(HybridForImageGeneration, pooling=pooling)
    x = draw_images(model.config, 3)
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    features, expected = quantised.encoder(x).pooler_output, model.encoder(x).pooler_output
    assert (features - expected).abs().mean() < 0.2 * expected.abs().mean()
    assert quantised.log_likelihood(x).isfinite().all()
