"""InfoNCE against a slow loop written from its docstring, and its invariants."""

import math

import pytest
import torch
from objective_fixtures import unit_rows

from modeling_hybrid.objectives import ObjectiveBatch
from modeling_hybrid.objectives.info_nce import InfoNCE
from modeling_hybrid.objectives.telemetry import effective_rank


def info_nce(projections, temperature=0.2):
    return InfoNCE(temperature)(ObjectiveBatch(projections=projections))[0]


def slow_info_nce(projections, temperature):
    """One anchor, one positive, one candidate at a time, in exact steps of the formula."""
    num_views, batch_size, _ = projections.shape
    rows = [(v, b) for v in range(num_views) for b in range(batch_size)]
    total, pairs = 0.0, 0
    for anchor in rows:
        similarity = {
            row: sum(x * y for x, y in zip(projections[anchor], projections[row], strict=True)) / temperature
            for row in rows
        }
        denominator = sum(torch.exp(similarity[row]) for row in rows if row != anchor)
        for positive in rows:
            if positive[1] == anchor[1] and positive[0] != anchor[0]:
                total = total - torch.log(torch.exp(similarity[positive]) / denominator)
                pairs += 1
    return total / pairs


@pytest.mark.parametrize(
    ("num_views", "batch_size", "temperature"), [(2, 2, 0.2), (2, 5, 0.2), (2, 4, 0.05), (3, 4, 0.2), (4, 3, 1.0)]
)
def test_equals_the_slow_loop(num_views, batch_size, temperature):
    fast = unit_rows(num_views, batch_size, 4).requires_grad_()
    slow = fast.detach().clone().requires_grad_()
    loss, expected = info_nce(fast, temperature), slow_info_nce(slow, temperature)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(fast.grad, slow.grad)


def test_gradcheck():
    assert torch.autograd.gradcheck(lambda z: info_nce(z, 0.5), unit_rows(3, 3, 2).requires_grad_())


def test_invariants():
    projections = unit_rows(2, 6, 5)
    loss = info_nce(projections)
    torch.testing.assert_close(info_nce(projections[:, torch.randperm(6)]), loss)
    torch.testing.assert_close(info_nce(projections.flip(0)), loss)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    torch.testing.assert_close(info_nce(projections @ rotation), loss)
    # Whose positive is whose matters.
    shuffled = torch.stack([projections[0], projections[1].roll(1, 0)])
    assert (info_nce(shuffled) - loss).abs() > 1e-3


@pytest.mark.parametrize(("num_views", "batch_size"), [(2, 2), (2, 8), (3, 4)])
def test_collapse_costs_the_logarithm_of_the_candidates(num_views, batch_size):
    projections = unit_rows(1, 1, 5).expand(num_views, batch_size, 5).clone().requires_grad_()
    loss, telemetry = InfoNCE(0.2)(ObjectiveBatch(projections=projections))
    torch.testing.assert_close(loss.item(), math.log(num_views * batch_size - 1))
    loss.backward()
    assert projections.grad.isfinite().all()
    torch.testing.assert_close(telemetry["alignment"].item(), 0.0, atol=1e-5, rtol=0)
    torch.testing.assert_close(telemetry["uniformity"].item(), 0.0, atol=1e-5, rtol=0)


def test_telemetry_equals_the_slow_definitions():
    projections = unit_rows(3, 4, 5)
    _, telemetry = InfoNCE(0.2)(ObjectiveBatch(projections=projections))
    distances = [
        (projections[v, b] - projections[w, b]).square().sum() for b in range(4) for v in range(3) for w in range(v)
    ]
    torch.testing.assert_close(telemetry["alignment"], torch.stack(distances).mean())
    kernels = [
        (-2 * (projections[v, a] - projections[v, b]).square().sum()).exp()
        for v in range(3)
        for a in range(4)
        for b in range(4)
        if a != b
    ]
    # The logarithm of the number of pairs is taken in single precision.
    torch.testing.assert_close(telemetry["uniformity"], torch.stack(kernels).mean().log(), rtol=1e-5, atol=1e-5)


def test_accuracy_counts_the_anchors_whose_nearest_row_is_a_positive():
    near = torch.eye(3, dtype=torch.float64)
    perfect = torch.stack([near, near])
    _, telemetry = InfoNCE()(ObjectiveBatch(projections=perfect))
    assert telemetry["contrastive_accuracy"] == 1
    _, telemetry = InfoNCE()(ObjectiveBatch(projections=torch.stack([near, near.roll(1, 0)])))
    assert telemetry["contrastive_accuracy"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cold_temperature_and_half_precision_stay_finite(dtype):
    projections = unit_rows(2, 16, 8).to(dtype).requires_grad_()
    loss = info_nce(projections, 0.01)
    assert loss.dtype is torch.float32
    assert loss.isfinite()
    loss.backward()
    assert projections.grad.isfinite().all()
    exact = info_nce(projections.detach().double(), 0.01)
    torch.testing.assert_close(loss.double(), exact, rtol=0.05 if dtype is torch.bfloat16 else 1e-4, atol=0)


@pytest.mark.parametrize(("num_views", "batch_size"), [(1, 4), (2, 1)])
def test_without_positives_or_negatives_it_is_refused(num_views, batch_size):
    with pytest.raises(ValueError, match=rf"not {num_views} view\(s\) of {batch_size} image\(s\)"):
        info_nce(unit_rows(num_views, batch_size, 4))


@pytest.mark.parametrize("singular", [[1.0], [1.0, 1.0, 1.0], [3.0, 1.0], [5.0, 2.0, 1.0, 1.0]])
def test_effective_rank_is_the_exponential_of_the_entropy_of_the_singular_values(singular):
    singular = torch.tensor(singular, dtype=torch.float64)
    share = singular / singular.sum()
    expected = torch.exp(-(share * share.log()).sum())
    left, right = (torch.linalg.qr(torch.randn(size, len(singular), dtype=torch.float64))[0] for size in (9, 5))
    for rows in (left * singular @ right.T, right * singular @ left.T):
        torch.testing.assert_close(effective_rank(rows), expected, rtol=1e-5, atol=0)
    rows[0, 0] = torch.nan
    assert effective_rank(rows).isnan()


@pytest.mark.parametrize("num_views", [2, 3])
def test_label_smoothing_gives_all_candidates_a_share(num_views):
    """As cross entropy does it, with the positives of an anchor as equal targets."""
    projections, smoothing = unit_rows(num_views, 4, 5), 0.1
    rows, sample = projections.flatten(0, 1), torch.arange(4).repeat(num_views)
    losses = []
    for i in range(len(rows)):
        others = [j for j in range(len(rows)) if j != i]
        logits = rows[others] @ rows[i] / 0.3
        positives = torch.tensor([float(sample[j] == sample[i]) for j in others], dtype=torch.float64)
        target = (1 - smoothing) * positives / positives.sum() + smoothing / len(others)
        losses.append(torch.nn.functional.cross_entropy(logits, target))
    loss, _ = InfoNCE(0.3, smoothing)(ObjectiveBatch(projections=projections))
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    smoothed = lambda z: InfoNCE(0.3, smoothing)(ObjectiveBatch(projections=z))[0]  # noqa: E731
    assert torch.autograd.gradcheck(smoothed, projections.requires_grad_())


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_a_smoothing_out_of_range_is_refused(smoothing):
    with pytest.raises(ValueError, match=f"^label_smoothing={smoothing} must be in"):
        InfoNCE(label_smoothing=smoothing)
