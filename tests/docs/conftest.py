"""A finished run, as the first command of the README leaves it, but of an untrained model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from documents import OVERRIDES, ROOT

from modeling_hybrid import HybridForImageClassification, HybridForPreTraining, HybridImageProcessor
from training.config import load_config
from training.data.splits import load_splits
from training.evaluation.suite import evaluate_run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    """`runs/digits` in a folder like a clone."""
    root = tmp_path_factory.mktemp("clone")
    for name in ("model_cards", "training"):
        (root / name).symlink_to(ROOT / name)
    folder = root / "runs" / "digits"
    config = load_config(ROOT / "training/configs/digits.yaml", [f"output_dir={folder}", *OVERRIDES])
    torch.manual_seed(0)
    model = HybridForPreTraining(config.model_config())
    image_processor = HybridImageProcessor.from_config(model.config)
    for part in (model, image_processor):
        part.save_pretrained(folder / "model")
    names = {str(i): i for i in range(10)}
    classifier = HybridForImageClassification.from_pretrained(
        folder / "model", label2id=names, id2label={i: name for name, i in names.items()}
    )
    for part in (classifier, image_processor):
        part.save_pretrained(folder / "finetuned")
    splits = load_splits(config.data, model.config, config.evaluation.max_images)
    command = "python -m training.pretrain training/configs/digits.yaml"
    evaluate_run(folder / "model", splits, config, folder, command, train_seconds=1.0)
    return folder


@pytest.fixture
def run_as_user(run_folder):
    """Runs code as a new user would, in a fresh process beside `runs/` and `training/`."""

    def run(code: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=run_folder.parents[1], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr

    return run
