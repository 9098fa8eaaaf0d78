"""CACR against a slow loop, its borders, and whose gradient it has."""

import pytest
import torch
from objective_fixtures import unit_rows, value_and_gradient
from torch.nn.functional import normalize

from modeling_hybrid.objectives import ObjectiveBatch
from modeling_hybrid.objectives.cacr import Cacr


def cacr(projections, **arguments):
    return Cacr(**arguments)(ObjectiveBatch(projections=normalize(projections, dim=-1)))


def weighted_mean(costs, sharpness, detach):
    weights = [torch.exp(sharpness * cost) for cost in costs]
    if detach:
        weights = [weight.detach() for weight in weights]
    return sum(weight * cost for weight, cost in zip(weights, costs, strict=True)) / sum(weights)


def slow_cacr(projections, alpha=1.0, beta=1.0, t_pos=1.0, t_neg=2.0, detach_weights=False):
    projections = normalize(projections, dim=-1)
    num_views, batch_size, _ = projections.shape
    attraction, repulsion = [], []
    for a in range(num_views):
        for i in range(batch_size):
            cost = (projections[a, i] - projections).square().sum(-1)
            attraction.append(weighted_mean([cost[b, i] for b in range(num_views) if b != a], t_pos, detach_weights))
            for b in range(num_views):
                if b != a:
                    costs = [cost[b, j] for j in range(batch_size) if j != i]
                    repulsion.append(-weighted_mean(costs, -t_neg, detach_weights))
    return alpha * sum(attraction) / len(attraction) + beta * sum(repulsion) / len(repulsion)


@pytest.mark.parametrize("detach_weights", [False, True])
@pytest.mark.parametrize(("num_views", "batch_size"), [(2, 2), (2, 5), (4, 3)])
def test_equals_the_slow_loop(num_views, batch_size, detach_weights):
    projections = unit_rows(num_views, batch_size, 4)
    arguments = {"alpha": 0.7, "beta": 1.3, "t_pos": 0.8, "t_neg": 1.7, "detach_weights": detach_weights}
    found = value_and_gradient(lambda z: cacr(z, **arguments)[0], projections)
    torch.testing.assert_close(found, value_and_gradient(lambda z: slow_cacr(z, **arguments), projections))


def test_with_two_views_the_attraction_is_the_alignment():
    projections = unit_rows(2, 6, 5)
    for t_pos in (0, 1, 5):
        _, telemetry = cacr(projections, t_pos=t_pos)
        torch.testing.assert_close(telemetry["attraction"], telemetry["alignment"])


def test_at_zero_all_count_alike():
    projections = unit_rows(3, 6, 5)
    _, telemetry = cacr(projections, t_pos=0, t_neg=0)
    torch.testing.assert_close(telemetry["attraction"], telemetry["alignment"])
    costs = [
        (projections[a, i] - projections[b, j]).square().sum()
        for a in range(3)
        for b in range(3)
        for i in range(6)
        for j in range(6)
        if a != b and i != j
    ]
    torch.testing.assert_close(telemetry["repulsion"], -torch.stack(costs).mean())
    _, sharp = cacr(projections, t_pos=3, t_neg=3)
    assert all(sharp[name] > telemetry[name] + 1e-2 for name in ("attraction", "repulsion"))


@pytest.mark.parametrize("t_neg", [0.5, 2.0, 5.0])
def test_detached_it_has_the_gradient_of_dcl(t_neg):
    """2 t times that of DCL with negatives of the other view alone, both directions averaged, at t = 1 / (2 t_neg)."""
    temperature = 1 / (2 * t_neg)

    def cross_view_dcl(projections):
        first, second = normalize(projections, dim=-1)
        logits = first @ second.T / temperature
        itself = torch.eye(len(logits), dtype=torch.bool)
        others = logits.masked_fill(itself, -torch.inf)
        spread = (others.logsumexp(0) + others.logsumexp(1)) / 2
        return (spread - logits.diagonal()).mean()

    projections = unit_rows(2, 6, 5)
    _, found = value_and_gradient(lambda z: cacr(z, t_neg=t_neg, detach_weights=True)[0], projections)
    _, expected = value_and_gradient(cross_view_dcl, projections)
    torch.testing.assert_close(found, 2 * temperature * expected, rtol=0, atol=1e-12)
    _, through = value_and_gradient(lambda z: cacr(z, t_neg=t_neg)[0], projections)
    assert (found - through).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["alpha", "beta", "t_pos", "t_neg"])
def test_a_negative_argument_is_refused(name):
    with pytest.raises(ValueError, match=f"^{name}=-1"):
        Cacr(**{name: -1})


def test_counts():
    assert Cacr().counts([0, 1, 2], 6) == (2, 10)
