"""The matrix products of a computation are counted, whichever operation computes them."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from training.comparison.matrix_products import MatrixProducts


def test_products_of_layers_are_those_that_torch_counts():
    layers = nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 3, bias=False))

    def step():
        (layers(torch.randn(4, 6)) @ torch.randn(3, 5)).sum().backward()

    with MatrixProducts() as products:
        step()
    with FlopCounterMode(display=False) as counter:
        step()
    assert products.flops() == counter.get_total_flops()
    assert products.counts[torch.Size([4, 6]), torch.Size([6, 10])] == 1
    assert products.seconds(repeats=1) > 0


def test_fused_attention_counts_as_its_products():
    query, key, value = torch.randn(3, 2, 4, 9, 16, requires_grad=True)
    with MatrixProducts() as forward:
        output = nn.functional.scaled_dot_product_attention(query, key, value)
    of_one = 2 * (2 * 4 * 9) * 9 * 16
    assert forward.flops() == 2 * of_one
    with MatrixProducts() as backward:
        output.sum().backward()
    assert backward.flops() == 5 * of_one
