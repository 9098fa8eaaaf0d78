"""SigLIP against a slow loop, and what it costs at the start."""

import math

import pytest
import torch
from objective_fixtures import unit_rows, value_and_gradient

from modeling_hybrid.objectives import ObjectiveBatch
from modeling_hybrid.objectives.siglip import SigLip


def slow_siglip(projections, scale, bias):
    num_views, batch_size, _ = projections.shape
    total = 0.0
    for a in range(num_views):
        for b in range(num_views):
            for i in range(batch_size if a != b else 0):
                for j in range(batch_size):
                    logit = scale * (projections[a, i] @ projections[b, j]) + bias
                    probability = 1 / (1 + torch.exp(-logit))
                    total = total - torch.log(probability if i == j else 1 - probability)
    return total / (num_views * (num_views - 1) * batch_size)


@pytest.mark.parametrize(("num_views", "batch_size", "bias"), [(2, 2, -10.0), (2, 5, -1.0), (4, 3, 0.5)])
def test_equals_the_slow_loop(num_views, batch_size, bias):
    projections = unit_rows(num_views, batch_size, 4)
    objective = SigLip(temperature=0.25, bias=bias).double()
    objective.start_weights()
    parameters = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (math.log(4), bias)]
    found = value_and_gradient(lambda z: objective(ObjectiveBatch(projections=z))[0], projections)
    expected = value_and_gradient(lambda z: slow_siglip(z, parameters[0].exp(), parameters[1]), projections)
    torch.testing.assert_close(found, expected)
    for ours, reference in zip((objective.log_scale, objective.bias), parameters, strict=True):
        torch.testing.assert_close(ours.grad, reference.grad)


def test_cost_at_the_start():
    """Equal rows have logits of zero; the bias makes negatives at right angles cheap and their positives dear."""
    equal = unit_rows(1, 1, 5).expand(2, 7, 5)
    loss, telemetry = SigLip()(ObjectiveBatch(projections=equal))
    torch.testing.assert_close(loss.item(), 7 * math.log(2), rtol=1e-5, atol=0)
    torch.testing.assert_close(telemetry["temperature"].item(), 0.1)
    assert telemetry["bias"] == -10
    apart = torch.eye(8, dtype=torch.float64).view(2, 4, 8)
    loss, _ = SigLip()(ObjectiveBatch(projections=apart))
    torch.testing.assert_close(loss.item(), math.log1p(math.exp(10)) + 3 * math.log1p(math.exp(-10)))


def test_the_order_of_views_does_not_matter():
    projections = unit_rows(3, 5, 5)
    losses = [SigLip()(ObjectiveBatch(projections=projections[order]))[0] for order in ([0, 1, 2], [2, 0, 1])]
    torch.testing.assert_close(*losses)


def test_start_weights_sets_scale_and_bias():
    objective = SigLip(temperature=0.5, bias=-3.0)
    torch.nn.init.zeros_(objective.log_scale)
    torch.nn.init.zeros_(objective.bias)
    objective.start_weights()
    torch.testing.assert_close(objective.log_scale.item(), math.log(2))
    assert objective.bias == -3


def test_counts():
    assert SigLip().counts([0, 1, 2], 6) == (2, 10)


def test_a_temperature_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="temperature=0"):
        SigLip(0)
