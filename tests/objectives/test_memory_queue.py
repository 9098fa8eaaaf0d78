"""The queue of past rows against a plain list."""

import math
from collections import deque

import pytest
import torch
from objective_fixtures import unit_rows

from modeling_hybrid import HybridForPreTraining
from modeling_hybrid.objectives.memory_queue import MemoryQueue


def test_starts_empty():
    queue = MemoryQueue(5, 3)
    rows, filled = queue.read(torch.float64)
    assert rows.shape == (5, 3) and rows.dtype is torch.float64
    assert not filled.any() and queue.ids.tolist() == [-1] * 5


@pytest.mark.parametrize("batch_sizes", [(1,) * 9, (2, 2, 2, 2), (3, 3, 1, 3), (5, 5), (2, 12, 1), (7, 4)])
def test_first_in_first_out_for_any_batch_size(batch_sizes):
    size, num_views = 7, 2
    queue, expected = MemoryQueue(size, 3), deque(maxlen=size)
    for batch_size in batch_sizes:
        rows, ids = unit_rows(num_views, batch_size, 3, dtype=torch.float32), torch.randint(99, (batch_size,))
        queue.enqueue(rows, ids)
        expected.extend((rows[v, b].tolist(), ids[b].item()) for v in range(num_views) for b in range(batch_size))
        held, filled = queue.read(torch.float32)
        assert filled.sum() == len(expected)
        pairs = list(zip(held[filled].tolist(), queue.ids[filled].tolist(), strict=True))
        assert sorted(pairs) == sorted(expected)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7, 20])
def test_every_row_is_replaced_after_as_many_steps_as_fill_it(batch_size):
    queue = MemoryQueue(7, 3)
    queue.enqueue(unit_rows(1, 9, 3), torch.zeros(9, dtype=torch.long))
    steps = math.ceil(7 / batch_size)
    for step in range(steps):
        assert (queue.ids == 0).any(), step
        queue.enqueue(unit_rows(1, batch_size, 3), torch.ones(batch_size, dtype=torch.long))
    assert (queue.ids == 1).all()


def test_rows_carry_no_gradient_and_a_copy_outlives_them():
    queue = MemoryQueue(4, 3)
    rows = unit_rows(1, 4, 3).requires_grad_()
    queue.enqueue(rows)
    held, _ = queue.read(torch.float32)
    assert not queue.rows.requires_grad and queue.ids.tolist() == [-1] * 4
    query = torch.ones(3, requires_grad=True)
    loss = (held @ query).sum()
    before = held.clone()
    queue.enqueue(unit_rows(1, 2, 3))
    assert torch.equal(held, before) and (queue.rows - before).abs().max() > 0.1
    loss.backward()
    torch.testing.assert_close(query.grad, before.sum(dim=0))


def test_size_must_be_positive():
    with pytest.raises(ValueError, match="queue_size=0"):
        MemoryQueue(0, 3)


@pytest.mark.parametrize("name", ["nnclr", "swav"])
def test_a_model_brings_its_queue_back(make_model, draw_images, tmp_path, name):
    model = make_model(objective={"name": name, "queue_size": 8}).train()
    images = torch.stack([draw_images(model.config), draw_images(model.config)])
    model(images)
    model.save_pretrained(tmp_path)
    restored = HybridForPreTraining.from_pretrained(tmp_path)
    assert model.objective.queue.num_enqueued == 6
    for key, value in model.objective.state_dict().items():
        assert torch.equal(restored.objective.state_dict()[key], value), key
    # Where the checkpoint holds another objective, the queue starts empty.
    other = make_model(objective={"name": "info_nce", "temperature": 0.2})
    other.save_pretrained(tmp_path / "other")
    fresh = HybridForPreTraining.from_pretrained(
        tmp_path / "other", objective={"name": name, "queue_size": 8}, ignore_mismatched_sizes=True
    )
    assert fresh.objective.queue.num_enqueued == 0 and (fresh.objective.queue.ids == -1).all()
