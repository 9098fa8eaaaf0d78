"""SwAV against a naive form of its formulas, and its invariants."""

import math

import pytest
import torch
from objective_fixtures import unit_rows

from modeling_hybrid.objectives import ObjectiveBatch
from modeling_hybrid.objectives.base import AUGMENTED, CLEAN, LOCAL
from modeling_hybrid.objectives.swav import SwAV, sinkhorn


DIM, K = 4, 5


def build(**arguments):
    return SwAV(DIM, num_prototypes=K, **arguments).double()


def batch_of(projections, *kinds):
    return ObjectiveBatch(projections=projections, view_kinds=torch.tensor(kinds) if kinds else None)


def naive_sinkhorn(scores, epsilon, num_iterations):
    """Sums of exponentials, as in the paper's appendix: prototypes by samples, total mass one."""
    mass = (scores / epsilon).exp().T
    mass = mass / mass.sum()
    for _ in range(num_iterations):
        mass = mass / mass.sum(dim=1, keepdim=True) / mass.shape[0]
        mass = mass / mass.sum(dim=0, keepdim=True) / mass.shape[1]
    return (mass * mass.shape[1]).T


def slow_swav(projections, kinds, prototypes, past, temperature=0.1, epsilon=0.05, num_iterations=3):
    """One view pair and one sample at a time."""
    num_views, batch_size, _ = projections.shape
    losses = []
    for a in (a for a in range(num_views) if kinds[a] != LOCAL):
        rows = torch.cat([past, projections[a].detach()])
        codes = naive_sinkhorn(rows @ prototypes.detach().T, epsilon, num_iterations)[-batch_size:]
        of_view = []
        for v in (v for v in range(num_views) if v != a):
            for i in range(batch_size):
                exponentials = torch.exp(projections[v, i] @ prototypes.T / temperature)
                of_view.append(-sum(codes[i, k] * torch.log(exponentials[k] / exponentials.sum()) for k in range(K)))
        losses.append(sum(of_view) / len(of_view))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    "kinds", [(CLEAN, AUGMENTED), (AUGMENTED, LOCAL), (LOCAL, CLEAN, AUGMENTED, LOCAL), (CLEAN, CLEAN, CLEAN)]
)
@pytest.mark.parametrize("num_past", [0, 3, 12])
def test_equals_the_slow_loop(kinds, num_past):
    objective = build(queue_size=8 if num_past else 0, num_iterations=2)
    past = torch.empty(0, DIM, dtype=torch.float64)
    if num_past:
        objective.queue.enqueue(unit_rows(1, num_past, DIM))
        rows, held = objective.queue.read(torch.float64)
        past = rows[held]
    fast = unit_rows(len(kinds), 6, DIM).requires_grad_()
    slow = fast.detach().clone().requires_grad_()
    prototypes = torch.nn.functional.normalize(objective.prototypes.detach(), dim=-1).requires_grad_()
    expected = slow_swav(slow, kinds, prototypes, past, num_iterations=2)
    loss, _ = objective(batch_of(fast, *kinds))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    # The detach contract is in the slow loop: nothing flows through the codes.
    torch.testing.assert_close(fast.grad, slow.grad)
    torch.testing.assert_close(objective.prototypes.grad, prototypes.grad)


def test_codes_are_balanced():
    scores = torch.randn(32, K, dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(scores, 0.3, 3), naive_sinkhorn(scores, 0.3, 3))
    ones = torch.ones(32, dtype=torch.float64)
    for num_iterations in (1, 3, 200):
        torch.testing.assert_close(sinkhorn(scores, 0.3, num_iterations).sum(dim=1), ones)
    torch.testing.assert_close(sinkhorn(scores, 0.3, 200).sum(dim=0), 32 / K * torch.ones(K, dtype=torch.float64))
    # A sample without weight changes nothing for the others.
    log_weights = torch.zeros(32, dtype=torch.float64).index_fill(0, torch.tensor([3, 30]), -torch.inf)
    kept = log_weights == 0
    torch.testing.assert_close(sinkhorn(scores, 0.3, 3, log_weights)[kept], sinkhorn(scores[kept], 0.3, 3))


def test_codes_survive_what_overflows_an_exponential():
    scores = 20 * torch.randn(16, K)
    codes = sinkhorn(scores, 0.05, 3)
    assert codes.isfinite().all()
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(16))
    torch.testing.assert_close(codes.double(), sinkhorn(scores.double(), 0.05, 3), rtol=1e-3, atol=1e-3)


def test_equal_scores_give_uniform_codes():
    torch.testing.assert_close(sinkhorn(torch.full((6, K), 0.7), 0.05, 3), torch.full((6, K), 1 / K))
    objective = build()
    with torch.no_grad():
        objective.prototypes.copy_(objective.prototypes[:1].expand(K, DIM))
    loss, telemetry = objective(batch_of(unit_rows(2, 6, DIM)))
    torch.testing.assert_close(loss.item(), math.log(K))
    torch.testing.assert_close(telemetry["used_prototypes"].item(), float(K))


def test_the_order_of_views_does_not_matter():
    projections = unit_rows(3, 6, DIM)
    objective = build()
    loss = objective(batch_of(projections, CLEAN, AUGMENTED, LOCAL))[0]
    torch.testing.assert_close(objective(batch_of(projections.flip(0), LOCAL, AUGMENTED, CLEAN))[0], loss)
    # Which views are local does.
    assert (objective(batch_of(projections, CLEAN, LOCAL, AUGMENTED))[0] - loss).abs() > 1e-3


def test_local_views_never_give_codes():
    """The view that gives the only code predicts nothing, so no gradient reaches it."""
    projections = unit_rows(3, 6, DIM).requires_grad_()
    objective = build(queue_size=20)
    objective(batch_of(projections, LOCAL, CLEAN, LOCAL))[0].backward()
    assert torch.equal(projections.grad[1], torch.zeros(6, DIM, dtype=torch.float64))
    assert (projections.grad[[0, 2]].abs().amax(dim=(1, 2)) > 1e-2).all()
    rows, held = objective.queue.read(torch.float64)
    torch.testing.assert_close(rows[held], projections[1].detach())
    with pytest.raises(ValueError, match="all 2 views are local"):
        objective(batch_of(unit_rows(2, 6, DIM), LOCAL, LOCAL))


def test_prototypes_have_length_one_and_may_be_frozen():
    objective = build(freeze_steps=2)
    for step in range(3):
        with torch.no_grad():
            objective.prototypes.mul_(3)
        objective.zero_grad()
        objective(batch_of(unit_rows(2, 6, DIM)))[0].backward()
        torch.testing.assert_close(objective.prototypes.norm(dim=-1), torch.ones(K, dtype=torch.float64))
        assert objective.prototypes.grad.abs().max() > 1e-3 if step == 2 else not objective.prototypes.grad.any()


def test_the_queue_is_used_from_its_step_on():
    plain, queued = build(), build(queue_size=8, queue_start_step=2)
    queued.load_state_dict(plain.state_dict(), strict=False)
    for step in range(4):
        batch = batch_of(unit_rows(2, 6, DIM))
        difference = (queued(batch)[0] - plain(batch)[0]).abs()
        assert difference < 1e-12 if step < 2 else difference > 1e-3


@pytest.mark.parametrize(
    "arguments",
    [{"num_prototypes": 0}, {"temperature": 0.0}, {"epsilon": -0.1}, {"num_iterations": 0}, {"queue_size": -1}],
)
def test_bad_arguments_are_named(arguments):
    (name, value) = next(iter(arguments.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        SwAV(DIM, **arguments)
