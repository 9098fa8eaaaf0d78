"""OpTA: the plan is balanced, and what it assumes is what it gains from."""

import numpy as np
import pytest
import torch
from training_fixtures import GivenRows

from modeling_hybrid.objectives.swav import sinkhorn
from training.evaluation.probes import Labelled
from training.evaluation.questions import transductive
from training.evaluation.questions.transductive import classify, episodes, evaluate, moved_prototypes, standardised


def clusters(counts, spread=0.3, seed=0):
    """Rows of as many classes, far apart: (N, 8) and their classes."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    return 2 * np.eye(len(counts), 8)[labels] + spread * generator.normal(size=(len(labels), 8)), labels


def test_the_plan_gives_equal_mass_to_queries_and_to_prototypes():
    costs = torch.rand(75, 5, dtype=torch.float64)
    plan = sinkhorn(-costs, 0.05, num_iterations=50)
    torch.testing.assert_close(plan.sum(dim=1), torch.ones(75, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(dim=0), torch.full((5,), 15.0, dtype=torch.float64), rtol=1e-4, atol=0)


def test_without_the_cost_every_prototype_is_the_mean_of_the_queries():
    queries, _ = clusters((15,) * 5)
    moved = moved_prototypes(queries[::15], queries, num_shots=1, epsilon=1e9)
    np.testing.assert_allclose(moved, np.broadcast_to(queries.mean(axis=0), moved.shape), atol=1e-6)


def test_more_shots_keep_a_share_of_the_old_prototype():
    queries, _ = clusters((15,) * 5)
    prototypes = queries[::15]
    once = moved_prototypes(prototypes, queries, num_shots=5, epsilon=1e9)
    np.testing.assert_allclose(once, 0.7 * queries.mean(axis=0) + 0.3 * prototypes, atol=1e-6)


def test_equal_classes_are_found_and_unequal_ones_are_torn_apart():
    """From bad prototypes of clusters that are far apart."""
    for counts, low, high in (((15,) * 5, 1.0, 1.0), ((55, 5, 5, 5, 5), 0.5, 0.9)):
        queries, labels = clusters(counts)
        start = np.stack([queries[labels == way][0] for way in range(5)])
        accuracy = (classify(moved_prototypes(start, queries, num_shots=1), queries) == labels).mean()
        assert low <= accuracy <= high, counts


def test_rows_are_standardised_and_constant_ones_stay_finite():
    rows = standardised(np.array([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]]))
    np.testing.assert_allclose(rows.mean(axis=1), 0, atol=1e-12)
    assert rows[0].std() == pytest.approx(1) and (rows[1] == 0).all()


def test_the_question_reports_both_and_draws_the_same_again(monkeypatch):
    monkeypatch.setattr(transductive, "NUM_EPISODES", 6)
    parts = {
        name: clusters((20,) * 6, spread=1.0, seed=seed) for seed, name in enumerate(("train", "validation", "test"))
    }
    subject = GivenRows(
        features={name: rows for name, (rows, _) in parts.items()},
        labels={name: labels for name, (_, labels) in parts.items()},
    )
    found = evaluate(subject)
    assert set(found.results) == {
        f"{name}_{shots}_shot_accuracy{suffix}"
        for name in ("episode", "transductive")
        for shots in (1, 5)
        for suffix in ("", "_unbalanced")
    }
    assert found.results == evaluate(subject).results and found.num_images == {"episodes": 6}
    assert found.results["transductive_1_shot_accuracy"] > found.results["episode_1_shot_accuracy"] > 0.2
    subject.labels = None
    assert evaluate(subject).results == {}


def test_few_classes_and_few_images_give_what_they_have(monkeypatch):
    monkeypatch.setattr(transductive, "NUM_EPISODES", 3)
    rows, labels = clusters((4, 2))
    found = episodes(Labelled(rows, labels), Labelled(rows, labels), 5, (15,) * 5)
    assert found == [(1.0, 1.0)] * 3
