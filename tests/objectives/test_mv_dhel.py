"""MV-DHEL against a slow loop, DHEL, and its cost of collapse."""

import math

import pytest
import torch
from objective_fixtures import unit_rows, value_and_gradient

from modeling_hybrid.objectives import ObjectiveBatch
from modeling_hybrid.objectives.mv_dhel import MvDhel


def mv_dhel(projections, temperature=0.5):
    return MvDhel(temperature)(ObjectiveBatch(projections=projections))[0]


def slow_mv_dhel(projections, temperature):
    num_views, batch_size, _ = projections.shape
    total = 0.0
    for i in range(batch_size):
        for view in projections:
            others = [torch.exp(view[i] @ view[j] / temperature) for j in range(batch_size) if j != i]
            total = total + torch.log(sum(others))
        pairs = [(a, b) for a in range(num_views) for b in range(a)]
        total = total - torch.log(sum(torch.exp(projections[a, i] @ projections[b, i] / temperature) for a, b in pairs))
    return total / batch_size


def dhel(projections, temperature):
    """Two views: the mean over samples of the spread of both less the similarity of the pair."""
    first, second = projections
    itself = torch.eye(len(first), dtype=torch.bool)
    spread = [(z @ z.T / temperature).masked_fill(itself, -torch.inf).logsumexp(1) for z in (first, second)]
    return (sum(spread) - (first * second).sum(-1) / temperature).mean()


@pytest.mark.parametrize(("num_views", "batch_size"), [(2, 2), (2, 5), (4, 3)])
def test_equals_the_slow_loop(num_views, batch_size):
    projections = unit_rows(num_views, batch_size, 4)
    found = value_and_gradient(lambda z: mv_dhel(z, 0.3), projections)
    torch.testing.assert_close(found, value_and_gradient(lambda z: slow_mv_dhel(z, 0.3), projections))


def test_with_two_views_it_is_dhel():
    projections = unit_rows(2, 6, 5)
    found = value_and_gradient(lambda z: mv_dhel(z, 0.1), projections)
    torch.testing.assert_close(found, value_and_gradient(lambda z: dhel(z, 0.1), projections))


@pytest.mark.parametrize("num_views", [2, 3, 5])
def test_cost_of_collapse(num_views):
    rows = unit_rows(1, 1, 5).expand(num_views, 7, 5)
    expected = num_views * (math.log(6) + 2) - 2 - math.log(num_views * (num_views - 1) / 2)
    torch.testing.assert_close(mv_dhel(rows).item(), expected)


def test_the_order_of_views_does_not_matter_and_cold_ones_do_not_overflow():
    projections = unit_rows(4, 5, 5, dtype=torch.float32)
    losses = [mv_dhel(projections[order], 0.01) for order in ([0, 1, 2, 3], [2, 0, 3, 1])]
    assert losses[0].isfinite()
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)


def test_counts():
    assert MvDhel().counts([0, 1, 2], 6) == (2, 5)


def test_a_temperature_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="temperature=0"):
        MvDhel(0)
