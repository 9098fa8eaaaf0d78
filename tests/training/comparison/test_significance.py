"""Intervals of paired differences: by hand, and how often they hold the truth."""

import numpy as np
import pytest
from scipy import stats

from training.comparison.significance import difference_of_runs, paired_difference


def test_one_run_without_groups_is_the_paired_t_test():
    generator = np.random.default_rng(0)
    ours, theirs = generator.random((1, 40)), generator.random((1, 40))
    found = paired_difference(ours, theirs)
    expected = stats.ttest_rel(ours[0], theirs[0]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx((ours - theirs).mean())


def test_figures_of_runs_are_the_paired_t_test_over_seeds():
    found = difference_of_runs([0.9, 0.8, 0.95], [0.7, 0.75, 0.7])
    expected = stats.ttest_rel([0.9, 0.8, 0.95], [0.7, 0.75, 0.7]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    one = difference_of_runs([0.9], [0.7])
    assert one.mean == pytest.approx(0.2) and np.isnan(one.low) and not one.is_significant


def test_images_of_a_group_count_as_one():
    generator = np.random.default_rng(1)
    by_group = generator.random((1, 20))
    groups = np.repeat(np.arange(20), 5)
    copies = by_group[:, groups]
    alone, clustered = (
        paired_difference(rows, np.zeros_like(rows), g) for rows, g in ((by_group, None), (copies, groups))
    )
    assert (clustered.low, clustered.high) == pytest.approx((alone.low, alone.high))
    ignoring = paired_difference(copies, np.zeros_like(copies))
    assert ignoring.high - ignoring.low < 0.5 * (clustered.high - clustered.low)


def test_images_that_were_not_used_are_left_out():
    ours, theirs = np.array([[1, 0, np.nan, 1.0]]), np.array([[0, 0, 1, np.nan]])
    assert paired_difference(ours, theirs) == paired_difference(ours[:, :2], theirs[:, :2])
    with pytest.raises(ValueError, match="no image"):
        paired_difference(ours[:, 2:], theirs[:, 2:])
    with pytest.raises(ValueError, match=r"\(1, 4\) and \(1, 3\)"):
        paired_difference(ours, theirs[:, :3])


def test_models_that_do_not_differ():
    same = paired_difference(np.ones((3, 5)), np.ones((3, 5)))
    assert (same.mean, same.low, same.high) == (0, 0, 0) and not same.is_significant


@pytest.mark.parametrize("seed_effect", [0.0, 0.05])
def test_about_95_of_100_intervals_hold_the_true_difference(seed_effect):
    """Images in groups with an effect of their own, seeds with one of theirs; errs to either side, not by much."""
    generator = np.random.default_rng(2)
    groups = np.repeat(np.arange(60), 4)
    holds = []
    for _ in range(2000):
        of_group = 0.1 * generator.normal(size=60)[groups]
        of_seed = seed_effect * generator.normal(size=(3, 1))
        differences = 0.02 + of_group + of_seed + 0.3 * generator.normal(size=(3, len(groups)))
        found = paired_difference(differences, np.zeros_like(differences), groups)
        holds.append(found.low <= 0.02 <= found.high)
    # 97.5 without an effect of the seeds, 93.4 with it; the spread of this share is half a percent.
    assert 0.91 <= np.mean(holds) <= 0.99
