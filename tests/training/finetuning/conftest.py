"""What the tests of fine-tuning share."""

import pytest
import torch
from training_fixtures import small_config

from modeling_hybrid import HybridForPreTraining, HybridImageProcessor
from training.config import save_config


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of the digits with an untrained model of a size that can learn them."""
    folder = tmp_path_factory.mktemp("run")
    config = small_config(folder, model__hidden_size=32, data__validation_fraction=0.7)
    save_config(config, folder / "config.yaml")
    torch.manual_seed(0)
    HybridForPreTraining(config.model_config()).save_pretrained(folder / "model")
    HybridImageProcessor.from_config(config.model_config()).save_pretrained(folder / "model")
    return folder
