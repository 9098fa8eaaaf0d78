"""MoCHi against a slow loop written from its docstring, against MoCo, and its invariants."""

import math

import pytest
import torch
from objective_fixtures import unit_rows

from modeling_hybrid.objectives import ObjectiveBatch
from modeling_hybrid.objectives.mochi import MoCHi


DIM = 4


def filled(num_rows=12, queue_size=16, **arguments):
    """An objective whose queue holds `num_rows` rows of the images 0, 1, 2, ..."""
    objective = MoCHi(DIM, queue_size, **({"num_hard": 4, "num_mixed": 3, "num_query_mixed": 2} | arguments)).double()
    objective.queue.enqueue(unit_rows(1, num_rows, DIM), torch.arange(num_rows))
    return objective


def draw(num_views=2, batch_size=3, ids=True):
    return ObjectiveBatch(
        projections=unit_rows(num_views, batch_size, DIM).requires_grad_(),
        keys=unit_rows(num_views, batch_size, DIM).requires_grad_(),
        sample_ids=torch.arange(batch_size) if ids else None,
    )


def slow_mochi(batch, rows, ids, step, temperature, num_hard, num_mixed, num_query_mixed):
    """One query, one pair of views, one mixture at a time."""
    queries, keys = batch.projections, batch.keys.detach()
    num_views, batch_size, _ = queries.shape
    generator = torch.Generator().manual_seed(step)
    draws = torch.rand(num_views, batch_size, 3 * num_mixed + 2 * num_query_mixed, generator=generator).double()
    total = 0.0
    for v in range(num_views):
        for i in range(batch_size):
            query, fixed = queries[v, i], queries[v, i].detach()
            known = batch.sample_ids is not None
            negatives = [row for row, of in zip(rows, ids, strict=True) if not (known and of == batch.sample_ids[i])]
            hard = sorted(negatives, key=lambda row, q=fixed: -float(q @ row))[:num_hard]
            uniform = iter(draws[v, i].tolist())
            first, second, share = ([next(uniform) for _ in range(num_mixed)] for _ in range(3))
            partner, query_share = ([next(uniform) for _ in range(num_query_mixed)] for _ in range(2))
            for x, y, a in zip(first, second, share, strict=True):
                one = int(x * len(hard))
                rest = hard[one + 1 :] + hard[:one]
                mixture = a * hard[one] + (1 - a) * rest[int(y * len(rest))]
                negatives.append(mixture / mixture.norm())
            for x, b in zip(partner, query_share, strict=True):
                mixture = b / 2 * fixed + (1 - b / 2) * hard[int(x * len(hard))]
                negatives.append(mixture / mixture.norm())
            for w in range(num_views):
                if w != v:
                    candidates = [keys[w, i], *negatives]
                    normaliser = sum(torch.exp(query @ candidate / temperature) for candidate in candidates)
                    total = total + torch.log(normaliser) - query @ keys[w, i] / temperature
    return total / (num_views * (num_views - 1) * batch_size)


@pytest.mark.parametrize(
    ("num_views", "num_rows", "ids", "sizes"),
    [(2, 12, True, (4, 3, 2)), (3, 12, False, (4, 3, 2)), (2, 30, True, (16, 5, 0)), (2, 5, False, (2, 0, 4))],
)
def test_equals_the_slow_loop(num_views, num_rows, ids, sizes):
    objective = filled(num_rows, num_hard=sizes[0], num_mixed=sizes[1], num_query_mixed=sizes[2])
    objective.step += 7
    rows, held = objective.queue.read(torch.float64)
    batch = draw(num_views, ids=ids)
    expected = slow_mochi(batch, rows[held], objective.queue.ids[held].tolist(), 7, objective.temperature, *sizes)
    expected_gradient = torch.autograd.grad(expected, batch.projections)[0]
    loss, _ = objective(batch)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(batch.projections.grad, expected_gradient)
    # The detach contract: keys get nothing; queue and mixtures are constants of the slow loop.
    assert batch.keys.grad is None


def test_without_mixtures_it_is_moco():
    objective = filled(16, num_mixed=0, num_query_mixed=0)
    rows, _ = objective.queue.read(torch.float64)
    batch = draw(ids=False)
    expected = []
    for query, key, negatives in zip(batch.projections, batch.keys.flip(0), batch.projections @ rows.T, strict=True):
        positive = torch.linalg.vecdot(query, key)[:, None]
        logits = torch.cat([positive, negatives], dim=1) / objective.temperature
        expected.append(torch.nn.functional.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long)))
    torch.testing.assert_close(objective(batch)[0], torch.stack(expected).mean(), rtol=1e-12, atol=0)


def test_a_rotation_of_rows_and_queue_does_not_matter():
    objective, batch = filled(), draw()
    loss = objective.eval()(batch)[0]
    rotation, _ = torch.linalg.qr(torch.randn(DIM, DIM, dtype=torch.float64))
    objective.queue.rows @= rotation
    turned = ObjectiveBatch(
        projections=batch.projections @ rotation, keys=batch.keys @ rotation, sample_ids=batch.sample_ids
    )
    torch.testing.assert_close(objective(turned)[0], loss)


def test_mixing_starts_at_its_step():
    batch = draw()
    plain, late = filled(num_mixed=0, num_query_mixed=0), filled(start_step=2)
    late.load_state_dict(plain.state_dict())
    for _ in range(2):
        torch.testing.assert_close(late(batch)[0], plain(batch)[0], rtol=1e-12, atol=0)
    assert late(batch)[0] > plain(batch)[0] + 1e-3


def test_mixing_only_raises_the_loss():
    batch = draw()
    losses = []
    for num_mixed, num_query_mixed in ((0, 0), (1, 0), (0, 1), (6, 6)):
        torch.manual_seed(1)
        losses.append(filled(num_mixed=num_mixed, num_query_mixed=num_query_mixed)(batch)[0])
    assert losses[0] + 1e-3 < min(losses[1:]) and losses[3] > max(losses[:3]) + 1e-3


def test_mixtures_are_unit_rows_and_harder_than_their_partner():
    objective = filled(num_hard=1, num_mixed=5, num_query_mixed=50)
    queries = unit_rows(2, 3, DIM)
    rows, held = objective.queue.read(torch.float64)
    similarities = (queries @ rows.T).masked_fill(~held, -torch.inf)
    mixtures, exists = objective.synthetic_negatives(queries, rows, similarities, step=0)
    assert exists.all()
    torch.testing.assert_close(mixtures.norm(dim=-1), torch.ones(2, 3, 55, dtype=torch.float64))
    partner, place = similarities.max(dim=2)
    # Of a single negative, there is one mixture: itself.
    torch.testing.assert_close(mixtures[:, :, :5], rows[place][:, :, None].expand(-1, -1, 5, -1))
    to_query = (mixtures[:, :, 5:] * queries[:, :, None]).sum(dim=-1)
    assert (to_query > partner[..., None] + 1e-9).all()
    # At most as close as the bisector, where the share of the query would be half.
    assert (to_query < ((1 + partner) / 2).sqrt()[..., None] - 1e-9).all()


def test_the_two_of_a_mixture_differ():
    objective = filled(num_hard=2, num_mixed=50, num_query_mixed=0)
    queries = unit_rows(1, 2, DIM)
    rows, held = objective.queue.read(torch.float64)
    similarities = (queries @ rows.T).masked_fill(~held, -torch.inf)
    mixtures, _ = objective.synthetic_negatives(queries, rows, similarities, step=0)
    closest = (mixtures @ rows.T)[0].amax(dim=2)
    assert (closest < 1 - 1e-9).all()


def test_an_empty_queue_costs_nothing_and_is_filled_after_use():
    objective = MoCHi(DIM, 16, num_hard=4)
    batch = draw()
    loss, telemetry = objective(batch)
    loss.backward()
    assert loss == 0 and telemetry["queue_accuracy"] == 1
    assert torch.equal(batch.projections.grad, torch.zeros_like(batch.projections))
    rows, held = objective.queue.read(torch.float32)
    torch.testing.assert_close(rows[held], batch.keys.detach().flatten(0, 1).float())
    assert objective.queue.ids[held].tolist() == [0, 1, 2, 0, 1, 2]
    assert objective(batch)[0] > 0


def test_rows_of_the_own_image_are_no_negatives():
    objective = MoCHi(DIM, 16, num_hard=4)
    batch = draw(batch_size=1)
    for _ in range(3):
        assert objective(batch)[0] == 0
    batch.sample_ids = torch.tensor([5])
    assert objective(batch)[0] > 0


def test_collapse_costs_the_logarithm_of_the_candidates():
    objective = filled(12, num_mixed=3, num_query_mixed=2)
    row = unit_rows(1, 1, DIM)
    objective.queue.rows.copy_(row[0].expand(16, DIM))
    same = row.expand(2, 3, DIM)
    loss, _ = objective(ObjectiveBatch(projections=same, keys=same))
    torch.testing.assert_close(loss.item(), math.log(1 + 12 + 3 + 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"num_hard": 0}, "num_hard=0"),
        ({"num_hard": 9, "queue_size": 8}, "num_hard=9 must be in 1..queue_size=8"),
        ({"num_mixed": -1}, "num_mixed=-1"),
        ({"temperature": 0.0}, "temperature=0.0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MoCHi(DIM, **arguments)
