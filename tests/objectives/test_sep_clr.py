"""SepCLR: its slow loop, its bounds at collapse, batches of one kind, no order of views, and what it separates."""

from itertools import combinations

import pytest
import torch
from objective_fixtures import make, unit_rows

from modeling_hybrid.objectives import ObjectiveBatch
from modeling_hybrid.objectives.sep_clr import SepCLR


LABELS = torch.tensor([0, 2, 0, 1, 3, 0])


def found(objective, rows, labels=LABELS):
    return objective(ObjectiveBatch(projections=rows, labels=labels))


@pytest.mark.parametrize("num_views", [2, 3])
def test_the_formula(num_views):
    objective = make("sep_clr").double()
    rows = unit_rows(num_views, 6, 8)
    common, salient = objective.common(rows), objective.salient(rows)
    kept = torch.where(LABELS[:, None] > 0, salient, 0)

    def square(codes, view, i, other, j):
        return (codes[view, i] - codes[other, j]).square().sum()

    def align(codes, samples):
        of_pairs = [square(codes, a, i, b, i) for a, b in combinations(range(num_views), 2) for i in samples]
        return torch.stack(of_pairs).mean()

    def uniform(codes):
        of_views = [
            torch.stack([(-square(codes, v, i, v, j)).exp() for i, j in combinations(range(6), 2)]).mean().log()
            for v in range(num_views)
        ]
        return torch.stack(of_views).mean()

    def similar(v, i, j):
        return (-square(common, v, i, v, j) - square(kept, v, i, v, j)).exp()

    joint = [torch.stack([similar(v, i, j) for j in range(6)]).mean().log() for v in range(num_views) for i in range(6)]
    targets, background = [1, 3, 4], [0, 2, 5]
    expected = align(common, range(6)) + 2 * uniform(common)
    expected = expected + 1000 * (align(salient, targets) + 2 * uniform(kept))
    expected = expected + 1000 * salient[:, background].square().sum(-1).mean() + 10 * torch.stack(joint).mean()
    torch.testing.assert_close(found(objective, rows)[0], expected)


def test_equal_rows_cost_nothing_but_the_salient_code_of_the_background():
    rows = unit_rows(1, 1, 8).expand(2, 6, 8)
    _, telemetry = found(make("sep_clr").double(), rows, torch.ones(6, dtype=torch.long))
    for name in ("common_loss", "salient_loss", "background_loss", "joint_loss"):
        assert telemetry[name].abs() < 1e-12, name


@pytest.mark.parametrize("labels", [torch.zeros(6), torch.ones(6)])
def test_a_batch_of_targets_or_of_background_alone(labels):
    rows = unit_rows(2, 6, 8, dtype=torch.float32).requires_grad_()
    loss, telemetry = found(make("sep_clr"), rows, labels.long())
    loss.backward()
    assert loss.isfinite() and rows.grad.isfinite().all()
    # Without a target no salient code is left; without background none is to be small.
    of_none = "background_loss" if labels.any() else "salient_loss"
    assert telemetry[of_none] == 0 and telemetry["joint_loss"] < 0


def test_the_order_of_views_and_the_names_of_targets_do_not_matter():
    objective, rows = make("sep_clr").double(), unit_rows(2, 6, 8)
    torch.testing.assert_close(found(objective, rows)[0], found(objective, rows.flip(0))[0])
    torch.testing.assert_close(found(objective, rows)[0], found(objective, rows, LABELS.clamp(max=1))[0])
    other = make("sep_clr", background=7).double()
    moved = torch.where(LABELS == 0, 7, LABELS - 1)
    torch.testing.assert_close(found(objective, rows)[0], found(other, rows, moved)[0])


def test_what_only_targets_have_goes_to_the_salient_code():
    """Rows that hold one of four common marks, and targets one of three more: heads alone learn to tell them apart."""
    torch.manual_seed(0)
    objective = SepCLR(projection_dim=8, code_size=2)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.02)
    common, salient = torch.randint(4, (48,)), torch.randint(3, (48,))
    labels = torch.arange(48) % 2
    rows = torch.cat(
        [torch.nn.functional.one_hot(common, 4), labels[:, None] * torch.nn.functional.one_hot(salient, 3)], dim=1
    ).float()
    rows = torch.nn.functional.pad(rows, (0, 1)).expand(2, -1, -1)
    for _ in range(150):
        optimizer.zero_grad()
        found(objective, rows, labels)[0].backward()
        optimizer.step()
    weight = objective.salient_head
    # The salient code of a background row is what it makes of a common mark.
    assert weight[:, :4].norm() < 0.25 * weight[:, 4:7].norm()
    of_marks = objective.common(torch.eye(8)[:4])
    assert (of_marks @ of_marks.T).fill_diagonal_(0).max() < 0.8


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"code_size": 0}, "code_size=0 must be positive"),
        ({"salient_weight": -1.0}, "salient_weight=-1.0 must not be negative"),
        ({"joint_weight": float("nan")}, "joint_weight=nan must not be negative"),
    ],
)
def test_arguments_out_of_range(arguments, said):
    with pytest.raises(ValueError, match=said):
        make("sep_clr", **arguments)
