"""Two clean views are two dropout masks of an image (SimCSE): told apart by dropout alone, and trained on."""

import torch
from training_fixtures import log_lines, small_config, start, train_whole


TWO_CLEAN_VIEWS = {"augmentation__num_clean_views": 2, "augmentation__num_augmented_views": 0}


def projections(folder, dropout):
    run = start(small_config(folder, model__hidden_dropout=dropout, **TWO_CLEAN_VIEWS))
    levels = torch.randint(17, (6, 1, 8, 8), dtype=torch.uint8)
    return run.bare_model.train()(**run.views(levels)).projections.detach()


def test_dropout_alone_tells_the_views_apart(tmp_path):
    first, second = projections(tmp_path / "without", 0.0)
    assert torch.equal(first, second)
    first, second = projections(tmp_path / "with", 0.1)
    assert (first - second).abs().max() > 1e-2


def test_a_run_of_which_one_view_is_scored(tmp_path):
    """Bits are those of the clean views that there are any of."""
    overrides = TWO_CLEAN_VIEWS | {"model__num_generative_views": 1, "model__hidden_dropout": 0.1}
    train_whole(small_config(tmp_path, optimization__num_steps=2, logging__log_every=1, **overrides))
    found = [row for row in log_lines(tmp_path) if "bits_per_dim" in row]
    assert found and all(row["bits_per_dim"] > 0 for row in found)
