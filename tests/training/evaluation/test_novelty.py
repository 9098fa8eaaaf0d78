"""Kinds of images that no score was chosen by."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from training_fixtures import load_splits_once, small_config

from modeling_hybrid import HybridForPreTraining, HybridImageProcessor
from training.evaluation.foreign_sets import SHIFTS, images_of_others, load_foreign, shifted_sets
from training.evaluation.questions import novelty
from training.evaluation.requirements import require_enough
from training.evaluation.subject import Subject


@pytest.fixture
def squares(tmp_path) -> str:
    """A data set of bright squares, in a column that is not called image."""
    pictures = [Image.new("RGB", (12, 12), (i, 250, 250)) for i in range(30)]
    table = datasets.Dataset.from_dict({"picture": pictures}, features=datasets.Features({"picture": datasets.Image()}))
    table.to_parquet(tmp_path / "squares/test.parquet")
    return str(tmp_path / "squares")


def test_what_is_reported_is_no_kind_that_the_score_was_chosen_by(tmp_path, squares, one_thread):
    config = small_config(
        tmp_path,
        evaluation__max_images=60,
        evaluation__num_out_of_distribution=30,
        evaluation__foreign_datasets=f"[{squares}]",
    )
    torch.manual_seed(0)
    model = HybridForPreTraining(config.model_config()).eval()
    splits = load_splits_once(config.data, model.config)
    subject = Subject(model, HybridImageProcessor.from_config(model.config), config, splits, tmp_path)
    findings = novelty.evaluate(subject)
    by_set = findings.results["novelty_auroc_by_set"]
    assert set(by_set) == {f"{name} {i}" for name in SHIFTS for i in (1, 2, 3)} | {"squares"}
    assert findings.num_images["squares"] == 30 and findings.num_images["rotation 1"] == 30
    for prefix in ("", "pixel_", "random_"):
        assert findings.results[f"{prefix}novelty_auroc_by_set"]["squares"] > 0.9
        assert 0 <= findings.results[f"{prefix}novelty_fpr95"] <= 1
    # The mean over test images is the AUROC, so that two models can be compared image by image.
    assert findings.per_image["novelty_auroc"].shape == (60,)
    assert findings.per_image["novelty_auroc"].mean() == pytest.approx(findings.results["novelty_auroc"])


def test_the_score_is_the_one_that_separates_best_on_the_mean():
    inside = {"one": np.arange(10.0), "other": np.arange(10.0)}
    near = {"one": np.arange(10.0) + 5, "other": np.arange(10.0) + 3}
    far = {"one": np.arange(10.0) - 9, "other": np.arange(10.0) + 3}
    assert novelty.best_score({"validation": inside, "near": near}, "validation") == "one"
    assert novelty.best_score({"validation": inside, "near": near, "far": far}, "validation") == "other"


def test_shares_of_stranger_images_average_to_the_auroc():
    generator = np.random.default_rng(0)
    inside, foreign = generator.integers(0, 6, 50), generator.integers(2, 9, 40)  # with ties
    auroc = roc_auc_score(np.repeat([0, 1], [50, 40]), np.concatenate([inside, foreign]))
    assert novelty.share_stranger(inside, foreign).mean() == pytest.approx(auroc)


def test_statistics_tell_plain_images_from_busy_ones():
    generator = torch.Generator().manual_seed(0)
    busy = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=generator)
    rows = novelty.statistics(torch.cat([busy, torch.full_like(busy, 128)]))
    assert rows.shape == (8, 5)
    assert (rows[:4, 1:] > rows[4:, 1:]).all() and np.allclose(rows[4:, :4], [128, 0, 0, 0])


def test_shifts_grow():
    levels = torch.randint(0, 17, (20, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sets = shifted_sets(levels, 17, 20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    for name in ("occlusion", "contrast"):
        distances = [(sets[f"{name} {i}"].float() - levels[order].float()).abs().mean() for i in (1, 2, 3)]
        assert 0 < distances[0] < distances[1] < distances[2]


def test_foreign_sets_take_the_size_and_levels_of_the_model(squares):
    processor = HybridImageProcessor(size={"height": 8, "width": 8}, num_channels=1, num_levels=17)
    images = images_of_others([squares], processor, 10)["squares"]
    assert images.shape == (10, 1, 8, 8) and images.dtype == torch.uint8 and images.max() <= 16


def test_a_set_that_cannot_be_read_is_named_at_the_start(tmp_path, squares):
    missing = f"[{tmp_path / 'none'}]"
    config = small_config(tmp_path, evaluation__suite="[novelty]", evaluation__foreign_datasets=missing)
    splits = load_splits_once(config.data, config.model_config())
    with pytest.raises(ValueError, match=r"evaluation\.foreign_datasets names '.*none'.*cannot be loaded"):
        require_enough(splits, config.evaluation)
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "texts/test.parquet")
    with pytest.raises(ValueError, match=r"1 rows.*0 column\(s\) of images"):
        load_foreign(str(tmp_path / "texts"))
