"""The contrastive loss of SimCTG against a slow loop written from its docstring, and its invariants."""

import pytest
import torch

from modeling_hybrid.objectives import ObjectiveBatch
from modeling_hybrid.objectives.simctg import SimCTG


def simctg(states, margin=0.5):
    return SimCTG(margin)(ObjectiveBatch(decoder_states=states))[0]


def slow_simctg(states, margin):
    """One pair of patches at a time."""
    num_views, batch_size, num_patches, _ = states.shape
    total, pairs = 0.0, 0
    for v in range(num_views):
        for b in range(batch_size):
            for i in range(num_patches):
                for j in range(num_patches):
                    if i != j:
                        one, other = states[v, b, i], states[v, b, j]
                        cosine = (one * other).sum() / (one.square().sum() * other.square().sum()).sqrt()
                        total = total + torch.relu(margin - 1 + cosine)
                        pairs += 1
    return total / pairs


@pytest.mark.parametrize("margin", [0.3, 0.5, 1.5])
@pytest.mark.parametrize("shape", [(1, 1, 2, 3), (2, 3, 4, 5)])
def test_equals_the_slow_loop(shape, margin):
    states = 3 * torch.randn(*shape, dtype=torch.float64) + 1
    states[..., 1, :] = states[..., 0, :] + 0.1 * states[..., 1, :]  # so alike that they cost something
    fast, slow = (states.clone().requires_grad_() for _ in range(2))
    loss, expected = simctg(fast, margin), slow_simctg(slow, margin)
    assert expected > 0
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(fast.grad, slow.grad)


def test_without_a_margin_it_is_zero():
    torch.testing.assert_close(simctg(torch.randn(2, 3, 4, 5), 0.0).item(), 0.0, atol=1e-6, rtol=0)


@pytest.mark.parametrize("margin", [0.1, 0.5, 1.0])
def test_equal_patches_cost_the_margin(margin):
    states = torch.randn(2, 3, 1, 5, dtype=torch.float64).expand(2, 3, 4, 5)
    loss, telemetry = SimCTG(margin)(ObjectiveBatch(decoder_states=states))
    torch.testing.assert_close(loss.item(), margin)
    torch.testing.assert_close(telemetry["patch_similarity"].item(), 1.0)


def test_orthogonal_patches_cost_nothing_up_to_a_margin_of_one():
    states = 7 * torch.eye(4, dtype=torch.float64).expand(1, 2, 4, 4)
    assert simctg(states, 0.9) == 0
    torch.testing.assert_close(simctg(states, 1.2).item(), 0.2)


def test_a_single_patch_costs_nothing():
    states = torch.randn(2, 3, 1, 5, requires_grad=True)
    loss, telemetry = SimCTG()(ObjectiveBatch(decoder_states=states))
    loss.backward()
    assert loss == 0 and telemetry["patch_similarity"] == 0
    assert torch.equal(states.grad, torch.zeros_like(states))


def test_order_and_length_do_not_matter():
    states = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    loss = simctg(states)
    torch.testing.assert_close(simctg(states[:, :, torch.randperm(4)]), loss)
    torch.testing.assert_close(simctg(states * torch.rand(2, 3, 4, 1).add(0.1)), loss)
    # Patches are compared within their own view alone.
    torch.testing.assert_close(torch.stack([simctg(states[:1]), simctg(states[1:])]).mean(), loss)


def test_margin_must_not_be_negative():
    with pytest.raises(ValueError, match=r"margin=-0\.1"):
        SimCTG(-0.1)
