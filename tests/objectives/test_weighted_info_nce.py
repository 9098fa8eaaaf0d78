"""Weights of negatives: against slow loops, what they are in the limits, and how each objective finds its own."""

import pytest
import torch
from objective_fixtures import draw_batch, take_samples, unit_rows, value_and_gradient

from modeling_hybrid.objectives import ObjectiveBatch
from modeling_hybrid.objectives.deb_cse import DebCSE, centred
from modeling_hybrid.objectives.true_negatives import TrueNegatives
from modeling_hybrid.objectives.weighted_info_nce import weighted_info_nce


def slow(projections, temperature, weights):
    """`weights` as for [`weighted_info_nce`], not their logarithms; one process."""
    num_views, batch_size, _ = projections.shape
    losses = []
    for a in range(num_views):
        for b in range(num_views):
            for i in range(batch_size if a != b else 0):
                w = weights[a, b, i] if weights.dim() == 4 else weights[i]
                logits = [projections[a, i] @ projections[b, j] / temperature for j in range(batch_size)]
                losses.append(sum(w[j] * torch.exp(logits[j]) for j in range(batch_size)).log() - logits[i])
    return sum(losses) / len(losses)


@pytest.mark.parametrize("shape", [(5, 5), (3, 3, 5, 5)])
def test_equals_the_slow_loop(shape):
    projections, weights = unit_rows(3, 5, 4), torch.rand(shape, dtype=torch.float64)
    found = value_and_gradient(lambda z: weighted_info_nce(z, 0.3, weights.log()), projections)
    torch.testing.assert_close(found, value_and_gradient(lambda z: slow(z, 0.3, weights), projections))


def test_equal_weights_are_info_nce_and_dcl():
    """One way and across views: cross entropy, and softplus of DCL."""
    projections, ones = unit_rows(2, 6, 5), torch.ones(6, 6, dtype=torch.float64)
    logits = projections[0] @ projections[1].T / 0.2
    info_nce = [torch.nn.functional.cross_entropy(x, torch.arange(6)) for x in (logits, logits.T)]
    torch.testing.assert_close(weighted_info_nce(projections, 0.2, ones.log()), sum(info_nce) / 2)
    others = ones - torch.eye(6, dtype=torch.float64)
    dcl = [(x + others.log()).logsumexp(dim=1) - x.diagonal() for x in (logits, logits.T)]
    torch.testing.assert_close(weighted_info_nce(projections, 0.2, others.log()), torch.stack(dcl).mean())
    labelled = ObjectiveBatch(projections=projections, labels=torch.arange(6))
    torch.testing.assert_close(TrueNegatives(0.2)(labelled)[0], torch.stack(dcl).mean())


def test_samples_of_one_class_are_no_negatives():
    projections, labels = unit_rows(3, 6, 5), torch.tensor([0, 1, 1, 2, 0, 1])
    weights = (labels[:, None] != labels).double()
    expected = weights * 5 / weights.sum(dim=1, keepdim=True)  # of mean one among five others
    batch = ObjectiveBatch(projections=projections, labels=labels)
    torch.testing.assert_close(TrueNegatives(0.3)(batch)[0], slow(projections, 0.3, expected))
    everyone = 1 - torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(TrueNegatives(0.3, weight=1.0)(batch)[0], slow(projections, 0.3, everyone))
    alone = ObjectiveBatch(projections=projections.clone().requires_grad_(), labels=torch.zeros(6, dtype=torch.long))
    loss, telemetry = TrueNegatives(0.3)(alone)
    loss.backward()
    assert loss.isfinite() and alone.projections.grad.isfinite().all() and telemetry["left_out_share"] == 1


def test_images_that_all_look_alike_have_equal_weights():
    batch = draw_batch(batch_size=5)
    batch.pixel_values = batch.pixel_values[:, :1].expand_as(batch.pixel_values)[:1].expand_as(batch.pixel_values)
    weights = DebCSE(too_similar=2.0).weights(batch)
    torch.testing.assert_close(weights, torch.ones_like(weights))


def test_what_looks_alike_counts_less_and_with_the_other_sign_more():
    batch = draw_batch(kinds=(0, 0), batch_size=4)
    pixels = torch.rand(4, 1, 4, 4, dtype=torch.float64)
    pixels[1] = pixels[0] + 0.3  # brighter, which centring takes away
    batch.pixel_values = pixels.expand(2, -1, -1, -1, -1)
    for power, is_more in ((-1.0, False), (1.0, True)):
        weights = DebCSE(too_similar=2.0, power=power).weights(batch)
        assert ((weights[..., 0, 1] > weights[..., 0, 2]) == is_more).all()
        assert weights.min() >= 0.1 and weights.max() <= 10
    torch.testing.assert_close(DebCSE(too_similar=2.0, power=0.0).weights(batch), torch.ones(2, 2, 4, 4).double())


def test_rows_that_are_too_similar_are_no_negatives():
    batch = take_samples(draw_batch(batch_size=5), slice(None))
    rows = batch.projections.detach()
    rows[:, 1] = rows[:, 0]
    weights = DebCSE().weights(batch)
    similar = torch.einsum("aid,bjd->abij", rows, rows) > 0.9
    assert similar.any() and torch.equal(weights == 0, similar)


def test_pixels_are_blurred_centred_and_of_length_one():
    looks = centred(torch.rand(2, 3, 1, 4, 4, dtype=torch.float64))
    torch.testing.assert_close(looks.norm(dim=-1), torch.ones(2, 3, dtype=torch.float64))
    torch.testing.assert_close(looks.mean(dim=-1), torch.zeros(2, 3, dtype=torch.float64))
    assert (centred(torch.ones(1, 2, 1, 4, 4)) == 0).all()  # nothing to see


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: TrueNegatives(temperature=0.0), "temperature=0.0 must be positive"),
        (lambda: TrueNegatives(weight=-1.0), "weight=-1.0 must not be negative"),
        (lambda: DebCSE(width=0.0), "width=0.0 must be positive"),
        (lambda: DebCSE(bound=0.5), "bound=0.5 must be at least 1"),
    ],
)
def test_bad_arguments_are_named(build, said):
    with pytest.raises(ValueError, match=said):
        build()
