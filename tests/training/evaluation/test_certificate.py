"""The certificate: what the bound is in the limits and at worked values, and that it holds where the truth is known."""

import math

import numpy as np
import pytest
import torch
from training_fixtures import GivenRows, small_config

from training.config import save_config
from training.evaluation.probes import Labelled, fit_linear
from training.evaluation.questions.certificate import (
    DELTA,
    DELTA_OF_DRAWS,
    StochasticHead,
    bound,
    evaluate,
    kl_inverse,
    rows_of,
    union_over,
    weights_of,
)
from training.evaluation.subject import Subject


def clusters(num_images, seed, spread=1.0, num_classes=3):
    """Rows (N, 6) around centres that are the same for every seed, in the precision of features."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(num_classes, size=num_images)
    centres = 2 * np.random.default_rng(99).normal(size=(num_classes, 6))
    rows = centres[labels] + spread * generator.normal(size=(num_images, 6))
    return Labelled(rows.astype(np.float32), labels)


def subject_of(tmp_path, splits, num_steps=60) -> GivenRows:
    parts = dict(zip(("train", "validation", "test"), splits, strict=True))
    return GivenRows(
        config=small_config(tmp_path, evaluation__num_certificate_steps=num_steps),
        features={name: part.features for name, part in parts.items()},
        labels={name: part.labels for name, part in parts.items()},
        checkpoint=None,
    )


def test_the_inverse_of_the_divergence():
    assert kl_inverse(0.3, 0.0) == pytest.approx(0.3)
    assert kl_inverse(0.0, 0.2) == pytest.approx(1 - math.exp(-0.2))
    assert kl_inverse(1.0, 0.1) == 1 and kl_inverse(0.5, 100.0) == 1
    for share, limit in ((0.1, 0.01), (0.5, 0.2), (0.9, 0.001)):
        p = kl_inverse(share, limit)
        divergence = share * math.log(share / p) + (1 - share) * math.log((1 - share) / (1 - p))
        assert p > share and divergence == pytest.approx(limit, rel=1e-6)


def test_worked_values_of_the_bound():
    assert bound(0.02, 20, 650, math.log(20)) == pytest.approx(0.089, abs=5e-4)
    assert bound(0.02, 100, 5000, math.log(20)) == pytest.approx(0.064, abs=5e-4)
    assert bound(0.1, 10, 500, 3) < bound(0.1, 11, 500, 3) < bound(0.1, 11, 400, 3) < bound(0.2, 11, 400, 3)


def test_the_divergence_is_that_of_gaussians():
    mean, prior = torch.randn(2, 3, 4, dtype=torch.float64)
    variance = torch.rand(3, 4, dtype=torch.float64) + 0.1
    ours, theirs = (torch.distributions.Normal(m, v.sqrt()) for m, v in ((mean, variance), (prior, torch.tensor(0.3))))
    found = StochasticHead(mean, variance).divergence(prior, torch.tensor(0.3))
    torch.testing.assert_close(found, torch.distributions.kl_divergence(ours, theirs).sum())
    same = StochasticHead(prior, torch.full_like(prior, 0.3)).divergence(prior, torch.tensor(0.3, dtype=torch.float64))
    assert same.abs() < 1e-12


def test_the_shares_of_all_priors_sum_to_what_is_left():
    shares = (-union_over(torch.arange(1, 10**6, dtype=torch.float64))).exp()
    assert shares.sum() == pytest.approx(DELTA - DELTA_OF_DRAWS, rel=1e-5)


def test_each_row_draws_weights_of_its_own():
    """Logits have the mean and the spread that drawn weights would give."""
    mean, variance = torch.randn(2, 3, dtype=torch.float64), torch.rand(2, 3, dtype=torch.float64)
    row = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    logits = StochasticHead(mean, variance).draw(row.expand(20_000, -1))
    torch.testing.assert_close(logits.mean(dim=0), mean @ row, atol=0.05, rtol=0)
    torch.testing.assert_close(logits.var(dim=0), variance @ row.square(), atol=0.1, rtol=0.05)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_prior_is_the_probe(num_classes):
    train, test = (clusters(60, seed, num_classes=num_classes) for seed in (0, 1))
    probe = fit_linear(train, test)
    logits = rows_of(probe, test) @ weights_of(probe).T
    assert np.array_equal(probe.classes_[logits.argmax(dim=1)], probe.predict(test.features))


def test_it_holds_and_is_not_vacuous_where_classes_are_apart(tmp_path):
    many = clusters(4000, 3)
    found = evaluate(subject_of(tmp_path, [clusters(600, 0), clusters(100, 1), many]))
    results = found.results
    assert found.num_images == {"certified": 300} and len(found.per_image["stochastic_correct"]) == 4000
    assert results["stochastic_accuracy"] == found.per_image["stochastic_correct"].mean()
    # 4,000 images are nearly the truth.
    assert 0.5 < results["certified_accuracy"] < results["stochastic_accuracy"]
    assert 0.9 < results["held_out_certified_accuracy"] < results["stochastic_accuracy"]


def test_labels_without_sense_certify_no_more_than_chance(tmp_path):
    parts = [clusters(num, seed) for seed, num in enumerate((600, 100, 300))]
    for part in parts:
        part.labels = np.random.default_rng(5).permutation(part.labels)
    assert evaluate(subject_of(tmp_path, parts)).results["certified_accuracy"] < 0.4


def test_nothing_is_certified_unless_asked_or_without_labels(tmp_path):
    subject = subject_of(tmp_path, [clusters(60, seed) for seed in range(3)], num_steps=0)
    assert evaluate(subject).results == {}
    subject.config.evaluation.num_certificate_steps = 10
    subject.labels = None
    assert evaluate(subject).results == {}


def test_images_that_the_encoder_has_learnt_from_are_refused(tmp_path):
    subject = subject_of(tmp_path, [clusters(60, seed) for seed in range(3)], num_steps=5)
    save_config(subject.config, tmp_path / "config.yaml")
    subject.checkpoint = tmp_path / "model"
    assert subject.has_learnt_from_these
    with pytest.raises(ValueError, match=r"has learnt from data.dataset='digits'.*--dataset"):
        evaluate(subject)
    subject.config.data.dataset = "mnist"
    assert evaluate(subject).results["certified_accuracy"] >= 0
    assert Subject.has_learnt_from_these.fget(GivenRows(checkpoint=tmp_path / "elsewhere" / "model")) is False


def test_classes_that_the_prior_has_not_seen_are_named(tmp_path):
    train = clusters(60, 0)
    train.labels[:] = train.labels % 2
    with pytest.raises(ValueError, match=r"Class\(es\) \[2\] have no image in half of the training images"):
        evaluate(subject_of(tmp_path, [train, train, clusters(60, 1)]))
