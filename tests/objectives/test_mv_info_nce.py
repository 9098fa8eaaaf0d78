"""MV-InfoNCE against a slow loop, its relation to CLIP, and its cost of collapse."""

import math

import pytest
import torch
from objective_fixtures import unit_rows, value_and_gradient

from modeling_hybrid.objectives import ObjectiveBatch
from modeling_hybrid.objectives.clip import Clip
from modeling_hybrid.objectives.mv_info_nce import MvInfoNCE


def mv_info_nce(projections, temperature=0.5, same_view_negatives=False):
    return MvInfoNCE(temperature, same_view_negatives)(ObjectiveBatch(projections=projections))[0]


def slow_mv_info_nce(projections, temperature, same_view_negatives):
    num_views, batch_size, _ = projections.shape
    views, samples = range(num_views), range(batch_size)
    losses = []
    for i in samples:
        term = {
            (a, b, j): torch.exp(projections[a, i] @ projections[b, j] / temperature)
            for a in views
            for b in views
            for j in samples
        }
        candidates = [value for (a, b, j), value in term.items() if a != b or (same_view_negatives and j != i)]
        positives = [value for (a, b, j), value in term.items() if a != b and j == i]
        losses.append(torch.log(sum(candidates)) - torch.log(sum(positives)))
    return sum(losses) / batch_size


@pytest.mark.parametrize("same_view_negatives", [False, True])
@pytest.mark.parametrize(("num_views", "batch_size"), [(2, 2), (2, 5), (4, 3)])
def test_equals_the_slow_loop(num_views, batch_size, same_view_negatives):
    projections = unit_rows(num_views, batch_size, 4)
    found = value_and_gradient(lambda z: mv_info_nce(z, 0.3, same_view_negatives), projections)
    expected = value_and_gradient(lambda z: slow_mv_info_nce(z, 0.3, same_view_negatives), projections)
    torch.testing.assert_close(found, expected)


def test_with_two_views_it_is_at_least_clip():
    """The mean of two normalisers is at least their geometric mean, and equal to it where they are equal."""
    for _ in range(5):
        batch = ObjectiveBatch(projections=unit_rows(2, 6, 5))
        assert mv_info_nce(batch.projections, 0.2) > Clip(0.2)(batch)[0] + 1e-4
    angle = 2 * math.pi * torch.arange(5, dtype=torch.float64) / 5
    angle = torch.stack([angle, angle + 0.3])
    polygon = torch.stack([angle.cos(), angle.sin()], dim=-1)
    clip = Clip(0.2)(ObjectiveBatch(projections=polygon))[0].detach()
    torch.testing.assert_close(mv_info_nce(polygon, 0.2), clip, rtol=1e-5, atol=0)


@pytest.mark.parametrize("num_views", [2, 3, 5])
def test_cost_of_collapse(num_views):
    rows = unit_rows(1, 1, 5).expand(num_views, 7, 5)
    torch.testing.assert_close(mv_info_nce(rows).item(), math.log(7))
    with_same_view = math.log((num_views * 7 - 1) / (num_views - 1))
    torch.testing.assert_close(mv_info_nce(rows, same_view_negatives=True).item(), with_same_view)


@pytest.mark.parametrize("same_view_negatives", [False, True])
def test_the_order_of_views_does_not_matter_and_cold_ones_do_not_overflow(same_view_negatives):
    projections = unit_rows(4, 5, 5, dtype=torch.float32)
    losses = [mv_info_nce(projections[order], 0.01, same_view_negatives) for order in ([0, 1, 2, 3], [2, 0, 3, 1])]
    assert losses[0].isfinite()
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)


def test_counts():
    assert MvInfoNCE().counts([0, 1, 2], 6) == (2, 10)
    assert MvInfoNCE(same_view_negatives=True).counts([0, 1, 2], 6) == (2, 15)


def test_a_temperature_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="temperature=0"):
        MvInfoNCE(0)
