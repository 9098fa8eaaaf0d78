"""Sets of images that are too small, or lack a class: told before the training, and evaluated where they can be."""

import logging
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from training_fixtures import small_config

from modeling_hybrid import HybridForPreTraining, HybridImageProcessor
from training.config import EvaluationConfig, PretrainConfig
from training.data.splits import Splits, load_splits
from training.evaluation.requirements import require_enough
from training.evaluation.suite import evaluate_run


def config_of(folder: Path, **labels: str) -> PretrainConfig:
    """Noise of 8x8 pixels in Parquet files, one letter of each split the class of an image."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    generator, files = np.random.default_rng(0), []
    for split, letters in labels.items():
        images = [Image.fromarray(generator.integers(0, 255, (8, 8), dtype=np.uint8)) for _ in letters]
        rows = {"image": images, "label": list(letters)}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
        files.append(f"{split}: {folder / f'{split}.parquet'}")
    return small_config(
        folder / "run",
        data__dataset="parquet",
        data__validation_split="validation",
        data__arguments__data_files=f"{{{', '.join(files)}}}",
        evaluation__suite="[decoder_features,discrimination,likelihood,out_of_distribution,retrieval,validation]",
    )


def splits_of(config: PretrainConfig) -> Splits:
    return load_splits(config.data, config.model_config(), config.evaluation.max_images)


@pytest.mark.parametrize(
    ("train", "validation", "test"), [("ab", "ab", "ab"), ("aabbcc", "ddd", "ad")], ids=["two images", "new classes"]
)
def test_the_smallest_sets_are_evaluated(tmp_path, one_thread, train, validation, test):
    config = config_of(tmp_path, train=train, validation=validation, test=test)
    splits = splits_of(config)
    require_enough(splits, config.evaluation)
    model = HybridForPreTraining(config.model_config())
    for part in (model, HybridImageProcessor.from_config(model.config)):
        part.save_pretrained(tmp_path / "model")
    results = evaluate_run(tmp_path / "model", splits, config, tmp_path, "a test")
    assert results["failed_questions"] == {}
    assert 0 <= results["knn_accuracy"] <= 1 and results["bits_per_dim"] > 0


@pytest.mark.parametrize(("split", "letters"), [("train", "a"), ("validation", "b"), ("test", "a")])
def test_a_split_of_one_image_is_refused(tmp_path, split, letters):
    config = config_of(tmp_path, **({"train": "ab", "validation": "ab", "test": "ab"} | {split: letters}))
    name = {"train": "training"}.get(split, split)
    with pytest.raises(ValueError, match=rf"There is 1 {name} image, but the evaluation needs at least 2.*add images"):
        require_enough(splits_of(config), config.evaluation)


def test_a_bound_that_leaves_one_class_is_refused(tmp_path):
    splits = splits_of(config_of(tmp_path, train="abbb" + "a" * 6, validation="ab", test="ab"))
    require_enough(splits, EvaluationConfig(max_images=0))
    with pytest.raises(
        ValueError, match=r"evaluation\.max_images=2 leaves training images of one class, 'a'.*raise it"
    ):
        require_enough(splits, EvaluationConfig(max_images=2))


def test_what_the_probes_cannot_learn_is_named(tmp_path, caplog):
    splits = splits_of(config_of(tmp_path, train="aaab", validation="cdab", test="aabb"))
    with caplog.at_level(logging.WARNING):
        require_enough(splits, EvaluationConfig(num_shots=2))
    unknown, few = caplog.messages[-2:]
    assert "2 class(es) of the validation images, 'c', 'd', have no training image" in unknown
    assert "num_shots=2, but 1 of 2 classes have fewer training images, 'b' the fewest: 1" in few
    caplog.clear()
    require_enough(
        splits_of(config_of(tmp_path, train="aabb", validation="ab", test="ab")), EvaluationConfig(num_shots=2)
    )
    assert not [record for record in caplog.records if record.name.endswith("requirements")]
