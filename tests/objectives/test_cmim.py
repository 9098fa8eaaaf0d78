"""The contrast of cMIM: its formula, its value at collapse, and no need of a second view."""

import math

import pytest
import torch
from objective_fixtures import unit_rows

from modeling_hybrid.objectives import ObjectiveBatch
from modeling_hybrid.objectives.cmim import CMim


def loss(projections, temperature=0.1):
    return CMim(temperature)(ObjectiveBatch(projections=projections))[0].item()


@pytest.mark.parametrize("num_views", [1, 3])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_formula(num_views, temperature):
    rows, terms = unit_rows(num_views, 5, 8), []
    for view in rows:
        for i in range(5):
            others = sum(math.exp(float(view[i] @ view[j]) / temperature) for j in range(5) if j != i) / 4
            terms.append(math.log(1 + others / math.exp(1 / temperature)))
    assert loss(rows, temperature) == pytest.approx(sum(terms) / len(terms))


@pytest.mark.parametrize("batch_size", [2, 7, 300])
@pytest.mark.parametrize("temperature", [0.02, 0.1, 2.0])
def test_collapse_costs_log_two_whatever_the_batch(batch_size, temperature):
    same = unit_rows(1, 1, 8).expand(1, batch_size, 8)
    assert loss(same, temperature) == pytest.approx(math.log(2))
    # Opposite codes cost less, and orthogonal ones too.
    assert loss(torch.eye(8).repeat(1, 1, 1), temperature) < math.log(2)


def test_codes_are_pushed_apart():
    rows = unit_rows(1, 6, 3, dtype=torch.float32)
    found = [loss(rows)]
    for _ in range(100):
        rows = rows.detach().requires_grad_()
        CMim()(ObjectiveBatch(projections=rows))[0].backward()
        rows = torch.nn.functional.normalize(rows - 0.1 * rows.grad, dim=-1)
        found.append(loss(rows))
    assert found[-1] < found[0] / 10


def test_a_temperature_that_is_not_positive():
    with pytest.raises(ValueError, match="temperature=0 must be positive"):
        CMim(0)
